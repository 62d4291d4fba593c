"""Rates of prefill and decode of Ponder, llama.cpp, ik_llama.cpp and mistral.rs, in turns.

Figures are tok/s and medians over the repeats. Prefill is a prompt of 512 tokens; decode is 48
tokens after a prompt of 128, for one sequence and for 16 at once. llama.cpp is measured with flash
attention on and off, and the better figure counts: which one wins depends on the processor and the
batch. A star marks figures of an engine whose batched kernels compute something else than its own
token-by-token ones.
"""

import json
import os
import statistics
from pathlib import Path

from peers import Failed, last_json, run, say

HERE = Path(__file__).resolve().parent
ENGINES = ["Ponder", "llama.cpp", "ik_llama.cpp", "mistral.rs"]
PREFILL, PROMPT, OUTPUT, BATCHES = 512, 128, 48, [1, 16]
MEASURES = [f"prefill {PREFILL}"] + [f"decode, batch {n}" for n in BATCHES]
# Above this an engine's batched answers are not those of its own model; rounding stays well below.
SELF_KL_BOUND = 0.1

# Each measuring function returns {"prefill": tok/s, "decode": {"1": tok/s, ...}} and perhaps more.


def model_file(model):
    home = os.environ.get("PONDER_HOME") or Path.home() / ".cache" / "ponder"
    return Path(home) / "models" / model / f"{model}.gguf"


def comma(numbers):
    return ",".join(map(str, numbers))


def measure_ponder(args, model):
    command = [
        args.ponder,
        "bench",
        "engine",
        model,
        "--threads",
        args.threads,
        "--json",
        "--repeats",
        args.turn_repeats,
    ]
    command += [
        "--prefill",
        PREFILL,
        "--prompt-len",
        PROMPT,
        "--output-len",
        OUTPUT,
        "--batch",
        comma(BATCHES),
    ]
    result = json.loads(run(command, args.timeout))
    decode = {str(row["batch"]): row["median"] for row in result["decode"]}
    return {"prefill": result["prefill"]["median"], "decode": decode, "isa": result["isa"]}


def measure_llama_cpp(args, folder, model):
    by_flash = [measure_llama_cpp_with(args, folder, model, flash) for flash in args.flash]
    decode = {str(n): max(result["decode"][str(n)] for result in by_flash) for n in BATCHES}
    return {
        "prefill": max(result["prefill"] for result in by_flash),
        "decode": decode,
        "by flash": dict(zip(args.flash, by_flash)),
    }


def measure_llama_cpp_with(args, folder, model, flash):
    shared = ["-m", model_file(model), "-t", args.threads, "-fa", flash]
    # The 64 tokens after an empty context are llama-bench's usual figure. It counts for batch 1
    # where it is the better one.
    bench = [
        folder / "llama-bench",
        *shared,
        "-p",
        PREFILL,
        "-n",
        64,
        "-r",
        args.turn_repeats,
        "-o",
        "json",
    ]
    prefill, generation = json.loads(run(bench, args.timeout))
    batched = [folder / "llama-batched-bench", *shared, "-c", 8192, "-npp", PROMPT, "-ntg", OUTPUT]
    batched += ["-npl", comma(BATCHES * args.turn_repeats), "--output-format", "jsonl"]
    rows = [
        json.loads(line) for line in run(batched, args.timeout).splitlines() if line.startswith("{")
    ]
    decode = {
        str(n): statistics.median(row["speed_tg"] for row in rows if row["pl"] == n)
        for n in BATCHES
    }
    tg64 = statistics.median(generation["samples_ts"])
    decode["1"] = max(decode["1"], tg64)
    return {"prefill": statistics.median(prefill["samples_ts"]), "decode": decode, "tg64": tg64}


def measure_ik(args, python, model):
    command = [python, HERE / "ik_bench.py", model_file(model), "--threads", args.threads]
    return last_json(
        run([*command, "--batch", comma(BATCHES), "--repeats", args.turn_repeats], args.timeout)
    )


def measure_mistralrs(args, python, model):
    env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    return last_json(
        run([python, HERE / "mistralrs_bench.py", model_file(model)], args.timeout, env)
    )


def measure_model(args, engines, model):
    """Every engine's turns on one model, interleaved so that a machine that slows down slows all of
    them."""
    turns = {name: [] for name in engines}
    failed = {}
    for repeat in range(args.repeats):
        for name, measure in engines.items():
            # mistral.rs takes minutes, and a failure would only repeat itself.
            if name in failed or (name == "mistral.rs" and repeat > 0):
                continue
            say(f"{model}: repeat {repeat + 1}/{args.repeats}: {name}")
            try:
                turns[name].append(measure(model))
            except (Failed, ValueError, LookupError) as failure:
                failed[name] = f"{type(failure).__name__}: {failure}"
                say(f"{model}: {name}: {failed[name]}")
    return {
        name: {"turns": done, "median": medians(done), "failed": failed.get(name)}
        for name, done in turns.items()
    }


def medians(turns):
    """One figure a measure, in the order of MEASURES; None where there is none."""
    rows = [[turn["prefill"]] + [turn["decode"].get(str(n)) for n in BATCHES] for turn in turns]
    columns = zip(*rows) if rows else [()] * len(MEASURES)
    kept = [[figure for figure in column if figure is not None] for column in columns]
    return [statistics.median(column) if column else None for column in kept]


# Reporting


def present(results):
    """The engines of a model's results, which hold facts of the model, too."""
    return [name for name in ENGINES if name in results]


def is_suspect(result):
    return any(turn.get("self_kl", 0) > SELF_KL_BOUND for turn in result["turns"])


def is_batched(index):
    """Decode at batch 1 runs the kernels that self_kl takes as the truth."""
    return MEASURES[index] != "decode, batch 1"


def cell(result, index):
    figure = result["median"][index] if result else None
    if figure is None:
        return "-"
    star = "*" if is_batched(index) and is_suspect(result) else ""
    return f"{figure:.{0 if figure >= 100 else 1}f}{star}"


def ratio(results, index):
    """Ponder over the best peer, suspect figures included."""
    own = results["Ponder"]["median"][index] if "Ponder" in results else None
    peers = [results[name]["median"][index] for name in present(results) if name != "Ponder"]
    best = max((figure for figure in peers if figure is not None), default=None)
    return f"{own / best:.2f}" if own and best else "-"


def table(all_results):
    lines = ["| model | measure | " + " | ".join(ENGINES) + " | ratio to the best peer |"]
    lines.append("|---" * (len(ENGINES) + 3) + "|")
    for model, results in all_results.items():
        for index, measure in enumerate(MEASURES):
            cells = [cell(results.get(name), index) for name in ENGINES]
            cells = [model if index == 0 else "", measure, *cells, ratio(results, index)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def suspects(all_results):
    """A footnote for figures of an engine whose batches do not compute its own model."""
    lines = []
    for model, results in all_results.items():
        for name in present(results):
            result = results[name]
            if is_suspect(result):
                worst = max(turn.get("self_kl", 0) for turn in result["turns"])
                lines.append(
                    f"\\* {name} on {model}: a prompt read in one batch and token by token differ "
                    f"by KL {worst:.2f} nat."
                )
    return lines


def roofline(all_results):
    """By model and engine: the share of the memory's read rate, as it was in that run, that decoding
    one sequence reaches, if a token reads every weight once."""
    shares = {}
    for model, results in all_results.items():
        nbytes, place = results.get("bytes_per_token"), MEASURES.index("decode, batch 1")
        read_gb_s = results.get("read_gb_s")
        if not nbytes or not read_gb_s:
            continue
        figures = {name: results[name]["median"][place] for name in present(results)}
        shares[model] = {
            name: figure * nbytes / 1e9 / read_gb_s for name, figure in figures.items() if figure
        }
    return shares


def roofline_table(all_results):
    shares = roofline(all_results)
    if not shares:
        return ""
    lines = ["| share of the read rate, batch 1 | GB/s | " + " | ".join(ENGINES) + " |"]
    lines.append("|---" * (len(ENGINES) + 2) + "|")
    for model, of in shares.items():
        cells = [f"{of[name] * 100:.0f} %" if name in of else "-" for name in ENGINES]
        lines.append(f"| {model} | {all_results[model]['read_gb_s']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ponder_isa(args, model):
    """The instruction set that Ponder uses here."""
    command = [args.ponder, "bench", "engine", model, "--threads", args.threads, "--json"]
    command += ["--repeats", 1, "--prefill", 1, "--prompt-len", 1, "--output-len", 2, "--batch", 1]
    return json.loads(run(command, args.timeout))["isa"]
