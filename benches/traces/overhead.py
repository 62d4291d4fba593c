"""What keeping traces costs: searches that are kept and searches that are not, in turns on one server.

    ponder serve qwen2.5-coder-0.5b --trace-db traces.db
    python benches/traces/overhead.py --url http://127.0.0.1:8000/v1 --rounds 8

A round is two batches of searches, one kept and one not (which comes first alternates), each by CONCURRENCY clients at once.
Reports tokens a second of both and the mean of the rounds' ratios with a 95 % bootstrap interval.
"""

import argparse
import json
import random
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

PROMPTS = [
    "Write a Python function that returns the n-th prime.", "Explain binary search in a few sentences.",
    "Write a Python function that reverses the words of a string.", "What is 17 * 23? Think in short steps.",
]
RESAMPLES = 10_000


def ask(args, index, is_kept):
    """Completion tokens of one search."""
    body = {
        "messages": [{"role": "user", "content": PROMPTS[index % len(PROMPTS)]}], "temperature": 0.8, "seed": index,
        "max_tokens": args.max_tokens, "store": is_kept, "ignore_eos": True,
        "search": {"strategy": "best_of_n", "n": args.n, "reward": {"kind": "likelihood"}},
    }
    request = urllib.request.Request(
        args.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        answer = json.load(response)
    assert (answer["search"]["trace_id"] is not None) == is_kept, answer["search"]
    return answer["usage"]["completion_tokens"]


def batch(args, pool, first, is_kept):
    """Tokens a second of one batch."""
    started = time.perf_counter()
    tokens = sum(pool.map(lambda index: ask(args, first + index, is_kept), range(args.concurrency)))
    return tokens / (time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--concurrency", type=int, default=16, help="searches at once")
    parser.add_argument("--n", type=int, default=4, help="samples of a search")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    with ThreadPoolExecutor(args.concurrency) as pool:
        batch(args, pool, 0, True)  # warms up
        rates = {True: [], False: []}
        for number in range(args.rounds):
            order = [True, False] if number % 2 else [False, True]
            for is_kept in order:
                # The same searches in both: what they compute is equal.
                rates[is_kept].append(batch(args, pool, (number + 1) * args.concurrency, is_kept))
            print(f"round {number + 1}: kept {rates[True][-1]:.0f} tok/s, not kept {rates[False][-1]:.0f}", flush=True)
    ratios = [kept / plain for kept, plain in zip(rates[True], rates[False])]
    generator = random.Random(0)
    means = sorted(sum(generator.choices(ratios, k=len(ratios))) / len(ratios) for _ in range(RESAMPLES))
    mean = sum(ratios) / len(ratios)
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]
    print(f"kept / not kept: {mean:.4f} (95 %: {low:.4f} to {high:.4f}), {args.rounds} rounds of {args.concurrency} searches")


main()
