"""Wall clock of the same search in the engine and by a client in front of another server.

    python proxy.py --ponder http://127.0.0.1:8000/v1 --peer http://127.0.0.1:8080/v1 --problems humaneval.jsonl --limit 10

The client does what test-time-compute proxies do, without their own overhead: best-of-8 is eight requests at once and the
likeliest answer; beam search sends the prefix of each beam again for each of its children and keeps the likeliest. The peer is
any OpenAI server with log-probabilities, for example llama-server on the same file:

    llama-server -m qwen2.5-coder-0.5b.gguf -t 2 -np 8 -c 16384 --port 8080

Only one of the two servers computes at a time; problems alternate between them. Tokens are counted by each server.
"""

import argparse
import json
import math
import statistics
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

N, BRANCH, KEPT, STEPS = 8, 4, 2, 24
SAMPLING = {"temperature": 0.7, "max_tokens": 400}


def post(url, route, body):
    """One answer, parsed."""
    request = urllib.request.Request(url + route, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=900) as response:
        return json.load(response)


def chatml(messages):
    """The prompt of the model's chat template, for servers that continue text."""
    system = [{"role": "system", "content": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."}]
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in system + messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def logprobs(choice):
    """Of each token of a chat or text choice, in the shapes that servers use; an empty text may have none."""
    if not choice.get("logprobs"):
        return []
    content = choice["logprobs"].get("content")
    if content is not None:
        return [token["logprob"] for token in content]
    return [value for value in choice["logprobs"]["token_logprobs"] if value is not None]


def likelihood(values):
    return math.exp(sum(values) / max(len(values), 1))


def ponder(url, search, problem):
    """(seconds, tokens) of a search in the engine."""
    start = time.perf_counter()
    body = {"messages": problem["messages"], "seed": 0, **SAMPLING, "search": search}
    answer = post(url, "/chat/completions", body)
    return time.perf_counter() - start, answer["usage"]["completion_tokens"]


def proxy_best_of_n(url, problem):
    """(seconds, tokens) of eight requests at once."""
    start = time.perf_counter()

    def sample(seed):
        body = {"messages": problem["messages"], "seed": seed, **SAMPLING, "logprobs": True}
        return post(url, "/chat/completions", body)

    with ThreadPoolExecutor(N) as pool:
        answers = list(pool.map(sample, range(N)))
    max(answers, key=lambda answer: likelihood(logprobs(answer["choices"][0])))
    return time.perf_counter() - start, sum(answer["usage"]["completion_tokens"] for answer in answers)


def proxy_beam(url, problem):
    """(seconds, tokens) of a beam search over lines that sends every prefix again."""
    start, tokens = time.perf_counter(), 0
    prompt, beams = chatml(problem["messages"]), [("", [])]

    def sample(job):
        seed, (text, values) = job
        body = {"prompt": prompt + text, "seed": seed, "temperature": 0.7, "max_tokens": 48, "stop": ["\n"], "logprobs": 1}
        answer = post(url, "/completions", body)
        choice = answer["choices"][0]
        # A line that was ended by the stop string goes on; an empty one ended the answer, or is a blank line.
        is_end = choice["finish_reason"] == "stop" and not choice["text"]
        used = answer["usage"]["completion_tokens"]
        return (text + choice["text"] + "\n", values + logprobs(choice)), is_end, used

    with ThreadPoolExecutor(N) as pool:
        for step in range(STEPS):
            jobs = [(step * N + i, beam) for i, beam in enumerate(beam for beam in beams for _ in range(N // len(beams)))]
            children = list(pool.map(sample, jobs))
            tokens += sum(used for _, _, used in children)
            ranked = sorted(children, key=lambda child: -likelihood(child[0][1]))
            beams = [beam for beam, _, _ in ranked[:KEPT]]
            if sum(is_end for _, is_end, _ in children) >= N // 2:
                break
    return time.perf_counter() - start, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ponder", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--problems", required=True)
    parser.add_argument("--limit", type=int, default=10)
    args = parser.parse_args()
    with open(args.problems, encoding="utf-8") as file:
        problems = [json.loads(line) for line in file][: args.limit]
    best = {"strategy": "best_of_n", "n": N, "reward": {"kind": "likelihood"}}
    beam = {"strategy": "beam", "n": N, "branch": BRANCH, "max_depth": STEPS, "reward": {"kind": "likelihood"}}
    beam["step"] = {"delimiter": "\n", "max_tokens": 48}
    rows = {name: [] for name in ["best_of_8 in Ponder", "best_of_8 by proxy", "beam in Ponder", "beam by proxy"]}
    for problem in problems:
        rows["best_of_8 in Ponder"].append(ponder(args.ponder, best, problem))
        rows["best_of_8 by proxy"].append(proxy_best_of_n(args.peer, problem))
        rows["beam in Ponder"].append(ponder(args.ponder, beam, problem))
        rows["beam by proxy"].append(proxy_beam(args.peer, problem))
        print(problem["id"], {name: f"{row[-1][0]:.1f} s, {row[-1][1]} tokens" for name, row in rows.items()}, flush=True)
    print("| | s/problem | tokens/problem | tok/s |\n|---|---|---|---|")
    for name, row in rows.items():
        seconds, tokens = (statistics.mean(values) for values in zip(*row))
        print(f"| {name} | {seconds:.2f} | {tokens:.0f} | {tokens / seconds:.0f} |")


if __name__ == "__main__":
    main()
