#!/usr/bin/env python3
"""Two builds of ponder, taking turns on this machine: `turns.py BEFORE AFTER MODEL [MODEL ...]`.

Every round runs `ponder bench engine` once with each build, in an order that alternates. For each measure it prints the median
rate of both, their ratio, and the medians and the range of the rounds' own ratios. Batch 0 is the prefill.
"""

import argparse
import json
import statistics
import subprocess


def rates(binary, model, batches, output_len):
    command = [binary, "bench", "engine", model, "--json", "--repeats", "1"]
    command += ["--batch", ",".join(str(batch) for batch in batches), "--output-len", str(output_len)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    measured = [(0, result["prefill"])] + list(zip(batches, result["decode"]))
    return {batch: entry["median"] for batch, entry in measured}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", default="1,16,64")
    parser.add_argument("--output-len", type=int, default=48)
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batch.split(",")]
    for model in args.models:
        seen = {"before": [], "after": []}
        for round_number in range(args.rounds):
            order = [("before", args.before), ("after", args.after)]
            if round_number % 2:
                order.reverse()
            for name, binary in order:
                seen[name].append(rates(binary, model, batches, args.output_len))
        for batch in [0] + batches:
            before = [run[batch] for run in seen["before"]]
            after = [run[batch] for run in seen["after"]]
            pairs = sorted(b / a for a, b in zip(before, after))
            name = f"batch {batch}" if batch else "prefill"
            print(
                f"{model} {name:9} before {statistics.median(before):8.1f} after {statistics.median(after):8.1f} "
                f"ratio {statistics.median(after) / statistics.median(before):.3f} best/best {max(after) / max(before):.3f} "
                f"rounds {statistics.median(pairs):.3f} ({pairs[0]:.3f} to {pairs[-1]:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
