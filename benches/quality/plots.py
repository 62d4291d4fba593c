"""The benchmark's pictures (needs matplotlib)."""

import sys

from intervals import mean, share_interval

RELIABILITY_SIZE, PANEL_SIZE, MAX_COLUMNS = (5, 5), (6, 5), 3


def series_of(name):
    """The series and factor of an arm's name: "mcts@8x" is the point 8 of "mcts"."""
    series, mark, factor = name.rpartition("@")
    try:
        return (series, float(factor.removesuffix("x"))) if mark else (name, 0.0)
    except ValueError:
        return name, 0.0


def pyplot():
    """matplotlib, or the end of the program."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("pictures need matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def budgets(path, groups, seed):
    """Accuracy over tokens, a panel for each group and a line for each series of arms."""
    plt = pyplot()
    num_columns = min(MAX_COLUMNS, len(groups))
    num_rows = -(-len(groups) // num_columns)
    size = PANEL_SIZE[0] * num_columns, PANEL_SIZE[1] * num_rows
    figure, panels = plt.subplots(num_rows, num_columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(groups) :]:
        panel.set_axis_off()
    for panel, (group, arms) in zip(panels.flat, groups.items()):
        series = {}
        for name, arm in arms.items():
            series.setdefault(series_of(name)[0], []).append(arm)
        for index, (name, points) in enumerate(series.items()):
            draw_series(panel, name, points, f"C{index % 10}", "osD^vX*P"[index // 10 % 8], seed)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.set_title(group)
        panel.set_xlabel("tokens a problem, generated and scored")
        panel.set_ylabel("right, %")
        panel.grid(alpha=0.3)
        if "greedy" in arms and arms["greedy"].tokens_each():
            add_multiples(panel, arms["greedy"].tokens_each())
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_series(panel, name, points, colour, marker, seed):
    """One line with its intervals."""
    points = sorted(points, key=lambda arm: arm.tokens_each())
    shares = [100 * mean(arm.values()) for arm in points]
    bounds = [share_interval(arm.values(), seed) for arm in points]
    errors = [
        [max(0.0, share - 100 * low) for share, (low, _) in zip(shares, bounds)],
        [max(0.0, 100 * high - share) for share, (_, high) in zip(shares, bounds)],
    ]
    tokens = [max(1.0, arm.tokens_each()) for arm in points]
    panel.errorbar(tokens, shares, errors, label=name, color=colour, marker=marker, capsize=2, markersize=5)


def add_multiples(panel, unit):
    """An axis above that counts in greedy answers."""
    above = panel.secondary_xaxis("top", functions=(lambda x: x / unit, lambda x: x * unit))
    above.set_xscale("log", base=2)
    above.set_xticks([1, 2, 4, 8, 16, 32], ["1x", "2x", "4x", "8x", "16x", "32x"])
    above.set_xlabel("in greedy answers")


def reliability(path, bins_by_scorer):
    """How often answers are right over what scorers say: bins of (mean score, share right, count)."""
    plt = pyplot()
    figure, panel = plt.subplots(figsize=RELIABILITY_SIZE)
    panel.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    for name, bins in bins_by_scorer.items():
        means, shares, counts = zip(*bins)
        panel.plot(means, shares, linewidth=1, label=name)
        panel.scatter(means, shares, s=[200 * count / max(counts) for count in counts], alpha=0.6)
    panel.set(xlabel="score", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
    panel.legend()
    panel.grid(alpha=0.3)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
