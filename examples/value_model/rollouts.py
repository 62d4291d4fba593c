"""Values of steps by roll-outs, without any label of a step (Math-Shepherd, arXiv 2312.08935, section 3.3).

    python rollouts.py --url http://127.0.0.1:8000/v1 --problems train.jsonl --out rollouts.jsonl

For each problem one answer is sampled, a line at a time, in a session of /v1/branches. Each line is then continued
--rollouts times to the end of an answer, and its value is the share of them that are right: a soft label. The roll-outs
of a line share its KV blocks. Rows have the shape of `--format step_values`: train.py reads them with --target values.

A problem is a line {"id", "messages", "grade"}, where the grade is a verifier as a search's `reward` has it. An
interrupted run goes on where it stopped. PONDER_API_KEY holds the key of a server that asks for one.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import openai
from tqdm import tqdm


def client(url):
    return openai.OpenAI(base_url=url, api_key=os.environ.get("PONDER_API_KEY", "none"), timeout=600, max_retries=5)


def post(server, path, body):
    return server.post(path, body=body, cast_to=object)


def main_line(server, session, max_steps):
    """The nodes of one answer, step by step."""
    at, path = 0, []
    for _ in range(max_steps):
        body = {"nodes": [at], "n": 1, "step": {"delimiter": "\n"}}
        children = post(server, f"/branches/{session}/generate", body)["data"]
        if not children:
            break
        path.append(children[0])
        at = children[0]["node"]
        if children[0]["end"]:
            break
    return path


def problem_row(server, problem, args):
    """One row: the answer's steps and their values."""
    body = {"messages": problem["messages"], "temperature": args.temperature, "max_tokens": args.max_tokens, "seed": args.seed}
    session = post(server, "/branches", body)["id"]
    try:
        path = main_line(server, session, args.max_steps)
        texts = [node["text"] for node in path]
        inner = [at for at, node in enumerate(path) if not node["end"]]
        candidates, of = [], []
        if inner:
            body = {"nodes": [path[at]["node"] for at in inner], "n": args.rollouts}
            for child in post(server, f"/branches/{session}/generate", body)["data"]:
                at = next(at for at in inner if path[at]["node"] == child["parent"])
                candidates.append("".join(texts[: at + 1]) + child["text"])
                of.append(at)
        ends = [at for at, node in enumerate(path) if node["end"] in ("stop", "length")]
        candidates += ["".join(texts)] * len(ends)
        of += ends
        if not candidates:
            return None
        body = {"messages": problem["messages"], "candidates": candidates, "reward": problem["grade"]}
        scores = [row["score"] for row in post(server, "/score", body)["data"]]
    finally:
        server.delete(f"/branches/{session}", cast_to=object)
    values = []
    for at in range(len(path)):
        here = [float(score == 1) for score, step in zip(scores, of) if step == at]
        if not here:
            break
        values.append(sum(here) / len(here))
    is_complete = len(values) == len(path) and path[-1]["end"] == "stop"
    outcome = values[-1] if len(values) == len(path) and path[-1]["end"] else None
    return {
        "tags": [problem["id"]], "messages": problem["messages"], "completions": texts[: len(values)], "values": values,
        "outcome": outcome, "is_complete": is_complete, "value_source": "rollouts",
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="problems at most")
    parser.add_argument("--rollouts", type=int, default=8, help="of each step; the paper has 8")
    parser.add_argument("--max-steps", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=4)
    args = parser.parse_args()

    problems = [json.loads(line) for line in args.problems.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else []
    done = {json.loads(row)["tags"][0] for row in rows}
    left = [problem for problem in problems[: args.limit] if problem["id"] not in done]
    server = client(args.url)
    with open(args.out, "a", encoding="utf-8") as out, ThreadPoolExecutor(args.concurrency) as pool:
        jobs = [pool.submit(problem_row, server, problem, args) for problem in left]
        for job in tqdm(as_completed(jobs), total=len(jobs), unit="problem"):
            row = job.result()
            if row:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                out.flush()


if __name__ == "__main__":
    main()
