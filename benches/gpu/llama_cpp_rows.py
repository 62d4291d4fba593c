#!/usr/bin/env python3
"""llama-bench's JSON or llama-batched-bench's JSON lines as rows of the speed table: `llama_cpp_rows.py SHAPE bench|batched`."""

import json
import sys


def main():
    shape, kind = sys.argv[1:]
    row = dict(engine="llama.cpp", shape=shape, weights="q4_k_m")
    if kind == "bench":
        for run in json.load(sys.stdin):
            what = dict(prefill=run["n_prompt"]) if run["n_prompt"] else dict(batch=1, context=0)
            print(json.dumps(dict(row, **what, tokens_per_second=run["avg_ts"])))
        return
    for line in sys.stdin:
        if line.startswith("{"):
            run = json.loads(line)
            print(json.dumps(dict(row, batch=run["pl"], context=run["pp"], tokens_per_second=run["speed_tg"])))


if __name__ == "__main__":
    main()
