"""Step 1: searches an answer to each training problem, and says of every answer in its tree whether it is right.

    python search.py --model qwen2.5-coder-0.5b --iteration 1

The server keeps each search as a trace (docs/traces.md). An interrupted run goes on where it stopped: problems whose
trace has outcomes already are left out.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from urllib.parse import urlencode

import openai

import problems


def client(url):
    """A client of the server; PONDER_API_KEY holds the key of one that asks for it."""
    return openai.OpenAI(base_url=url, api_key=os.environ.get("PONDER_API_KEY", "none"), timeout=600, max_retries=5)


def tags(args):
    """What the traces of one iteration have in common."""
    return [args.run, f"iteration-{args.iteration}"]


def graded_ids(server, args):
    """The problems of this iteration whose traces have outcomes."""
    query = {"tag": tags(args), "has_outcome": "true", "order": "asc", "limit": 1000}
    found = set()
    while True:
        page = server.get(f"/traces?{urlencode(query, doseq=True)}", cast_to=object)
        found.update(tag for trace in page["data"] for tag in trace["tags"])
        if not page["has_more"]:
            return found
        query["after"] = page["next"]


def search(server, problem, args):
    """The id of the trace of one search."""
    answer = server.chat.completions.create(
        model=args.model,
        messages=problem.messages(),
        max_tokens=problems.MAX_TOKENS,
        temperature=args.temperature,
        seed=args.seed,
        extra_body={
            "search": {
                "strategy": "best_of_n",
                "n": args.n,
                "reward": {"kind": "likelihood"},
                "tags": [*tags(args), problem.id],
            }
        },
    )
    trace_id = answer.search["trace_id"]
    if trace_id is None:
        sys.exit("the server kept no trace: its store is off (--no-traces) or failing, see its log")
    return trace_id


def answers(trace):
    """(node, text) of each whole answer of a tree. Texts of steps add up along the branch."""
    texts = []
    for number, node in enumerate(trace["nodes"]):
        before = "" if node["parent"] is None else texts[node["parent"]]
        texts.append(before + node["text"])
        if node["end"] in ("stop", "length"):
            yield number, texts[number]


def search_and_grade(server, problem, args):
    """How many samples are right, of how many, and whether the one that likelihood chose is."""
    trace_id = search(server, problem, args)
    trace = server.get(f"/traces/{trace_id}", cast_to=object)
    outcomes = {node: float(problem.is_right(text)) for node, text in answers(trace)}
    if outcomes:
        leaves = [{"node": node, "outcome": outcome} for node, outcome in outcomes.items()]
        server.post(f"/traces/{trace_id}/outcome", body={"leaves": leaves}, cast_to=object)
    # Identical samples are one node.
    counts = {node: 1 + len(trace["nodes"][node].get("duplicate_paths", [])) for node in outcomes}
    num_right = sum(counts[node] for node, outcome in outcomes.items() if outcome == 1)
    return num_right, sum(counts.values()), outcomes.get(trace["chosen"][0]) == 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True, help="the served model, or an adapter on it")
    parser.add_argument("--run", default="self-training", help="tag of all traces of the run")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--num-problems", type=int, default=120)
    parser.add_argument("--n", type=int, default=8, help="samples of a problem")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=4, help="searches at once")
    args = parser.parse_args()

    server = client(args.url)
    done = graded_ids(server, args)
    todo = [problem for problem in problems.train(args.iteration, args.num_problems) if problem.id not in done]
    print(f"{len(todo)} problems to search, {args.num_problems - len(todo)} done before", flush=True)
    started, results = time.monotonic(), []
    with ThreadPoolExecutor(args.concurrency) as pool:
        jobs = [pool.submit(search_and_grade, server, problem, args) for problem in todo]
        try:
            for job in as_completed(jobs):
                results.append(job.result())
                if len(results) % 10 == 0 or len(results) == len(todo):
                    report(results, len(todo), time.monotonic() - started)
        except openai.APIError as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f"{args.url}: {error}; the same command goes on from here")


def report(results, total, seconds):
    """One line about how far it is."""
    right, samples, chosen = (sum(column) for column in zip(*results))
    solved = sum(num_right > 0 for num_right, _, _ in results)
    print(
        f"{len(results)}/{total} problems, {seconds:.0f} s: {100 * right / max(samples, 1):.0f} % of samples right, "
        f"{100 * solved / len(results):.0f} % of problems solved by any, {100 * chosen / len(results):.0f} % by the chosen one",
        flush=True,
    )


if __name__ == "__main__":
    main()
