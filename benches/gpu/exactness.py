#!/usr/bin/env python3
"""What must not change on a GPU: goldens, the rows beside a row, chunks, cache hits, drafts. Standard library alone.

    python3 benches/gpu/exactness.py --ponder PONDER --model smollm2-135m.gguf --goldens tests/goldens --out exactness.json

Starts servers on the GPU (and one on the processor for comparison), asks each for the same greedy and sampled answers in different
company, and compares them token by token.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n",
    "Water boils at 100 degrees. Ice melts at",
    "one two three four five six seven eight nine ten one two three four five six seven",
    "A list of fruits: apple, banana, cherry, date, elderberry, fig, grape,",
    "In 1969, the first person to walk on the Moon was",
    "import numpy as np\n\nx = np.zeros((3, 3))\nfor i in range(3):\n    for j in range(3):\n        x[i, j] =",
    "Question: What is 12 times 12?\nAnswer:",
]


class Server:
    def __init__(self, ponder, model, *flags):
        self.port = 18000 + os.getpid() % 1000
        self.log = open(f"/tmp/ponder-{self.port}.log", "w+")
        self.process = subprocess.Popen([ponder, "serve", model, "--port", str(self.port), *flags], stdout=self.log, stderr=self.log)
        for _ in range(1200):
            try:
                urllib.request.urlopen(self.url("/ready"), timeout=5)
                with urllib.request.urlopen(self.url("/v1/models"), timeout=5) as answer:
                    self.model = json.load(answer)["data"][0]["id"]
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        self.process.kill()
        self.log.seek(0)
        sys.exit("the server did not start: " + self.log.read()[-2000:])

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def post(self, body):
        request = urllib.request.Request(self.url("/v1/completions"), json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)["choices"]
        except urllib.error.HTTPError as error:
            sys.exit(f"{error}: {error.read().decode()}")

    def complete(self, prompt, **fields):
        body = dict(model=self.model, prompt=prompt, max_tokens=48, temperature=0, logprobs=1, ignore_eos=True)
        body.update(fields)
        choices = self.post(body)
        return [(c["text"], c["logprobs"]["token_logprobs"]) for c in choices]

    def all(self, together, **fields):
        with concurrent.futures.ThreadPoolExecutor(together) as pool:
            return list(pool.map(lambda prompt: self.complete(prompt, **fields), PROMPTS))


def same(a, b):
    """How many of the answers have equal text and equal logprobs."""
    return sum(x == y for x, y in zip(a, b))


def company(server, results):
    """Alone, together, again (from the cache), sampled: the same answers each time."""
    alone = server.all(1)
    checks = {
        "together": server.all(len(PROMPTS)),
        "from the prefix cache": server.all(1),
    }
    for name, answers in checks.items():
        results[f"{name} equals alone"] = [same(alone, answers), len(PROMPTS)]
    sampled = dict(temperature=0.8, top_p=0.9, seed=7, n=2)
    body = lambda prompt: server.complete(prompt, **sampled)
    first = [body(prompt) for prompt in PROMPTS]
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
        second = list(pool.map(body, PROMPTS))
    results["seeded together equals seeded alone"] = [same(first, second), len(PROMPTS)]
    for mode in ("prompt-lookup", "swift"):
        answers = server.all(4, speculative=mode)
        results[f"{mode} equals plain"] = [same(alone, answers), len(PROMPTS)]
    many = []
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        jobs = [pool.submit(server.complete, PROMPTS[i % len(PROMPTS)]) for i in range(64)]
        many = [job.result() for job in jobs]
    results["64 at once equals alone"] = [sum(many[i] == alone[i % len(PROMPTS)] for i in range(64)), 64]
    return alone


def near(a, b):
    """Tokens that two devices agree on, and the largest difference of a logprob before they part."""
    agreed = total = 0
    largest = 0.0
    for [(text_a, a_logprobs)], [(text_b, b_logprobs)] in zip(a, b):
        common = len(os.path.commonprefix([text_a, text_b]))
        agreed += common
        total += len(text_a)
        if text_a == text_b:
            largest = max(largest, max(abs(x - y) for x, y in zip(a_logprobs, b_logprobs)))
    return agreed, total, largest


def goldens(server, folder, name, results):
    """How far the likeliest token's logprob lies from that of the reference implementation (`tests/goldens/make.py`)."""
    path = pathlib.Path(folder) / f"{name}.logits.json"
    if not path.exists():
        return
    largest = 0.0
    cases = json.loads(path.read_text())
    for case in cases:
        body = dict(model=server.model, prompt=case["prompt"], max_tokens=1, temperature=0, logprobs=1)
        top = server.post(body)[0]["logprobs"]["top_logprobs"][0]
        largest = max(largest, abs(max(top.values()) - case["top"][0][1]))
    results["golden prompts"] = len(cases)
    results["largest difference of a golden logprob"] = largest


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ponder", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft-model")
    parser.add_argument("--goldens", default="tests/goldens")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", default="exactness.json")
    args = parser.parse_args()
    results = {}
    name = pathlib.Path(args.model).stem
    flags = ["--device", args.device]
    with Server(args.ponder, args.model, *flags) as server:
        plain = company(server, results)
        goldens(server, args.goldens, name, results)
    with Server(args.ponder, args.model, *flags, "--max-num-batched-tokens", "64", "--no-enable-prefix-caching") as server:
        results["chunks of 64 rows equal whole prompts"] = [same(plain, server.all(1)), len(PROMPTS)]
    if args.draft_model:
        with Server(args.ponder, args.model, *flags, "--draft-model", args.draft_model) as server:
            answers = server.all(4, speculative="draft-model")
            results["draft-model equals plain"] = [same(plain, answers), len(PROMPTS)]
    with Server(args.ponder, args.model, "--device", "cpu") as server:
        agreed, total, largest = near(plain, server.all(1))
        results["characters as on the processor"] = [agreed, total]
        results["largest difference of a logprob to the processor"] = largest
    pathlib.Path(args.out).write_text(json.dumps(results, indent=2))
    print(json.dumps(results, indent=2))
    wrong = [key for key, value in results.items() if " equal" in key and value[0] != value[1]]
    sys.exit(f"not equal: {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()
