"""One picture of a machine's results: Ponder over the better peer by model and measure, and the
share of the roofline that decoding one sequence reaches. Needs matplotlib."""

import rates

AIM = 1.0


def ratio(own, peers, more_is_better=True):
    """Above 1 where Ponder is better; None where either is missing."""
    peers = [figure for figure in peers if figure]
    if not own or not peers:
        return None
    return own / max(peers) if more_is_better else min(peers) / own


def rate_bars(by_model):
    bars = []
    for model, engines in by_model.items():
        for index, measure in enumerate(rates.MEASURES):
            figures = {name: engines[name]["median"][index] for name in rates.present(engines)}
            own = figures.pop("Ponder", None)
            bars.append((f"{model}: {measure}", ratio(own, figures.values())))
    return bars


def long_bars(by_model):
    bars = []
    for model, engines in by_model.items():
        for size, own in engines.get("Ponder", {}).items():
            peers = [of.get(size, {}) for name, of in engines.items() if name != "Ponder"]
            for measure in ["prefill", "decode"]:
                theirs = [peer.get(measure) for peer in peers]
                label = f"{model}: {measure} at {int(size) // 1024}k"
                bars.append((label, ratio(own.get(measure), theirs)))
    return bars


def chat_bars(loads):
    bars = []
    for load, engines in loads.items():
        own, peer = engines.get("Ponder", {}), engines.get("llama.cpp", {})
        for label, key in [("tok/s", "tokens_per_second"), ("goodput", "goodput")]:
            bars.append((f"{load}: {label}", ratio(own.get(key), [peer.get(key)])))
        first = [of.get("ttft", {}).get("p50") for of in (own, peer)]
        bars.append((f"{load}: TTFT p50", ratio(first[0], [first[1]], False)))
    return bars


def start_bars(by_model):
    bars = []
    for model, engines in by_model.items():
        own, peer = engines.get("Ponder", {}), engines.get("llama.cpp", {})
        for label, key in [("start, cold", "cold_seconds"), ("start, warm", "warm_seconds")]:
            bars.append((f"{model}: {label}", ratio(own.get(key), [peer.get(key)], False)))
        memory = ratio(own.get("pss_answered"), [peer.get("pss_answered")], False)
        bars.append((f"{model}: memory", memory))
    return bars


SECTIONS = [("rates", rate_bars), ("long", long_bars), ("chat", chat_bars), ("start", start_bars)]


def bars(results):
    """(label, ratio) of all that was measured with a peer, in the order of the sections."""
    found = [bar for name, make in SECTIONS if name in results for bar in make(results[name])]
    return [(label, value) for label, value in found if value is not None]


def draw_ratios(panel, found):
    labels = [label for label, _ in found]
    values = [value for _, value in found]
    colours = ["tab:green" if value >= AIM else "tab:red" for value in values]
    panel.barh(labels, [value - AIM for value in values], left=AIM, color=colours)
    for place, value in enumerate(values):
        panel.text(max(value, AIM), place, f" {value:.2f}", va="center", fontsize=8)
    panel.axvline(AIM, color="black", linewidth=0.8)
    panel.invert_yaxis()
    panel.set_xscale("log")
    # Room for the last label.
    panel.set_xlim(min([0.5, *values]) * 0.9, max([2.0, *values]) * 1.4)
    panel.set_xlabel("Ponder over the better peer (above 1 is better)")
    panel.tick_params(axis="y", labelsize=8)


def draw(results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = bars(results)
    shares = rates.roofline(results.get("rates", {}))
    shares = {model: of["Ponder"] for model, of in shares.items() if of.get("Ponder")}
    # The right half only where rates were measured.
    widths = [3, 1] if shares else [1]
    figure, panels = pyplot.subplots(
        1,
        len(widths),
        figsize=(11, 1.5 + 0.24 * len(found)),
        width_ratios=widths,
        layout="constrained",
        squeeze=False,
    )
    draw_ratios(panels[0][0], found)
    if shares:
        right = panels[0][1]
        right.bar(list(shares), [share * 100 for share in shares.values()])
        right.set_ylabel("share of the read rate, decode of one sequence, %")
        right.tick_params(axis="x", rotation=45, labelsize=8)
    of = results["machine"]
    figure.suptitle(f"{of['processor']} ({of['kind']}), {of['threads']} threads")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
