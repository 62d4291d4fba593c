"""Asks a server: every arm for every problem under every seed, one line of results each.

The arms are interleaved. All arms of a problem are asked one after the other, in an order that is
shuffled for each problem and seed (always the same one), so that what drifts on the machine, and
what the prompt's cached prefix saves, hits all arms alike. Only the greedy arm comes first: budgets
are counted in its tokens. The seeds come one after the other, so that a run that is cut off has
whole seeds.
"""

import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import arms
from records import Progress, append, latest, open_to_append, read_lines, read_problems
from server import RequestFailed, Server, Unreachable


def ask(server, common, arm, problem, seed, tokens_of):
    """One result line."""
    row = {"arm": arm["name"], "id": problem["id"], "seed": None if arms.is_fixed(arm) else seed}
    row |= {"asked": arms.asked(common["model"], arm, problem), "text": "", "usage": None, "search": None}
    row |= {"finish_reason": None, "seconds": 0.0, "error": None}
    start = time.perf_counter()
    try:
        filled = arms.filled(arm["body"], problem, tokens_of)
        start = time.perf_counter()
        body = {**common, "seed": seed, "messages": arms.messages(arm, problem), **filled}
        response, row["seconds"] = server.chat(body)
        choice = response["choices"][0]
        row |= {"text": choice["message"]["content"] or "", "finish_reason": choice.get("finish_reason")}
        row |= {"usage": response.get("usage"), "search": response.get("search")}
        row["trace"] = (row["search"] or {}).pop("tree", None)
    except RequestFailed as error:
        row |= {"error": str(error), "seconds": time.perf_counter() - start}
    except (ValueError, LookupError, TypeError) as error:
        row["error"] = f"an answer that is no chat completion: {error!r}"
    return row


def completion_tokens(row):
    """The tokens of a result, or None where it has none."""
    return row["usage"]["completion_tokens"] if row["usage"] else None


class GreedyTokens:
    """Completion tokens of the greedy arm by problem: of results that are there, and of those that
    this run asks for."""

    def __init__(self, rows):
        greedy = (row for row in latest(rows).values() if row["arm"] == arms.GREEDY and row["usage"])
        self.known = {row["id"]: completion_tokens(row) for row in greedy}
        self.pending = {}

    def of(self, name):
        """Waits for a result that is on its way; None where there is none."""
        if name not in self.known and name in self.pending:
            self.known[name] = completion_tokens(self.pending[name].result())
        return self.known.get(name)


def order(all_arms, problems, seeds):
    """(problem, seed, arm) of the whole run, in the order of asking."""
    for index, seed in enumerate(seeds):
        for problem in problems:
            mine = [arm for arm in all_arms if problem["kind"] in arm.get("kinds", [problem["kind"]])]
            mine = [arm for arm in mine if index == 0 or not arms.is_fixed(arm)]
            random.Random(f"{problem['id']}/{seed}").shuffle(mine)
            mine.sort(key=lambda arm: arm["name"] != arms.GREEDY)
            for arm in mine:
                yield problem, seed, arm


def left(jobs, rows, model, retry_errors):
    """The jobs without a result. Results of another question under the same name end the run."""
    results = latest(rows)
    for problem, seed, arm in jobs:
        row = results.get((arm["name"], problem["id"], None if arms.is_fixed(arm) else seed))
        if row and row["asked"] != arms.asked(model, arm, problem):
            sys.exit(
                f"the results have {arm['name']} on {problem['id']} for another model, body or prompt: "
                "name another --out, or the arm otherwise"
            )
        if row is None or (retry_errors and row["error"]):
            yield problem, seed, arm


def run(args):
    """Asks what has no result yet and appends each as it comes."""
    all_arms = arms.read_arms(args.arms, args.only)
    problems = read_problems(args.problems, args.limit, args.only_tested)
    server = Server(args.url, args.timeout)
    rows = read_lines(args.out)
    tokens = GreedyTokens(read_lines(args.greedy) if args.greedy else rows)
    try:
        model = args.model or server.model()
        jobs = list(left(order(all_arms, problems, args.seeds), rows, model, args.retry_errors))
        if jobs:
            ask_all(server, {"model": model, "stream": False}, jobs, tokens, args)
    except Unreachable as error:
        sys.exit(f"{error}; the same command goes on from here")
    except RequestFailed as error:
        sys.exit(f"{args.url}: {error}")


def ask_all(server, common, jobs, tokens, args):
    """Asks the jobs, so many at a time, and writes the results."""
    progress = Progress("asking", len(jobs))
    with open_to_append(args.out) as out, ThreadPoolExecutor(args.concurrency) as pool:
        futures = []
        for problem, seed, arm in jobs:
            future = pool.submit(ask, server, common, arm, problem, seed, tokens.of)
            # Jobs start in this order, so whoever waits for it waits for one that runs.
            if arm["name"] == arms.GREEDY:
                tokens.pending[problem["id"]] = future
            futures.append(future)
        try:
            for future in as_completed(futures):
                row = future.result()
                trace = row.pop("trace", None)
                if trace and args.traces:
                    write_trace(args.traces, trace, row)
                append(out, row)
                progress.step(bool(row["error"]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_trace(path, trace, row):
    """Appends a searched tree, tagged with its problem, arm and seed."""
    trace["tags"] = [row["id"], row["arm"], f"seed {row['seed']}"]
    with open_to_append(path) as out:
        out.write(json.dumps(trace, ensure_ascii=False) + "\n")
