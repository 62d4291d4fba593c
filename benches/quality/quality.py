"""Measures how often a server's answers are right, and at what cost, for several ways to ask ("arms").

    python quality.py --url http://127.0.0.1:8000/v1 --problems humaneval.jsonl --arms arms.json --out results.jsonl
    python quality.py --report results.jsonl --problems humaneval.jsonl
    python quality.py --outcomes traces.ndjson --problems humaneval.jsonl --out graded.ndjson

An arm is {"name": ..., "body": {...}}: the body is merged into the chat request. It may have "kinds": ["code"], the
kinds of problems that it is for. In a body these strings are replaced:

    "$PUBLIC_TESTS"  the problem's public tests, a list; a verifier of a problem without any becomes likelihood
    "$PREFIX"        the imports and helpers of the problem's prompt, which the grader puts before the answer too
    "$BUDGET:k"      k times the tokens that the arm "greedy" used for the problem, at least 64; --greedy names the file
                     with that arm's results when it is not --out

A run that was cut off goes on where it stopped: pairs of arm and problem in the --out file are not asked again, unless
they failed and --retry-errors is given. A server that cannot be reached ends the run. PONDER_API_KEY holds the key of a
server that asks for one. Code is graded after the run, with --report, so that it does not compete with the server.
"""

import argparse
import hashlib
import http.client
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import grade

GREEDY = "greedy"
MIN_BUDGET = 64
ATTEMPTS = 4
BUSY_WAITS = 120
GRADERS = 2
RESAMPLES = 10_000
Z95 = 1.959964


def read_lines(path):
    """The objects of a file of JSON lines; a last line that was cut off does not count."""
    rows = []
    if not Path(path).is_file():
        return rows
    for line in Path(path).read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def open_to_append(path):
    """The file, at the start of a line."""
    path = Path(path)
    is_torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    file = open(path, "a", encoding="utf-8")
    if is_torn:
        file.write("\n")
    return file


def latest(rows):
    """The newest result of each arm and problem."""
    return {(row["arm"], row["id"]): row for row in rows}


def read_problems(args):
    """The problems that the run or report is about."""
    if not Path(args.problems).is_file():
        sys.exit(f"there is no file {args.problems}; problems.py makes it")
    problems = [row for row in read_lines(args.problems) if not args.only_tested or row.get("public_tests")]
    return problems[: args.limit]


# Asking


class RequestFailed(Exception):
    """The server refused the request or gave up on it."""


class Unreachable(Exception):
    """No server answers."""


class Server:
    """The routes of an OpenAI-compatible server that the benchmark needs."""

    def __init__(self, url, timeout_s):
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        key = os.environ.get("PONDER_API_KEY")
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def model(self):
        """The name of the first model."""
        return self.send("/models")[0]["data"][0]["id"]

    def chat(self, body):
        """The response, and the seconds that it took."""
        return self.send("/chat/completions", json.dumps(body).encode("utf-8"))

    def send(self, route, data=None):
        """Tries again while the server is full or the connection breaks; the waits don't count as its time."""
        num_broken = num_busy = 0
        while True:
            request = urllib.request.Request(self.url + route, data, self.headers)
            start = time.perf_counter()
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return json.load(response), time.perf_counter() - start
            except urllib.error.HTTPError as error:
                num_busy += 1
                if error.code not in (429, 503) or num_busy > BUSY_WAITS:
                    raise RequestFailed(f"{error.code}: {error_message(error)}") from None
                time.sleep(retry_after(error))
            except TimeoutError:
                raise RequestFailed(f"no answer in {self.timeout_s} s") from None
            except (OSError, http.client.HTTPException) as error:
                num_broken += 1
                if num_broken >= ATTEMPTS:
                    raise Unreachable(f"{self.url}: {error}") from None
                time.sleep(num_broken)


def error_message(error):
    """What the body of an HTTP error says."""
    text = error.read().decode("utf-8", "replace")
    try:
        return json.loads(text)["error"]["message"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return text[:200]


def retry_after(error):
    """Seconds to wait before the next attempt."""
    try:
        return min(max(float(error.headers.get("Retry-After", 1)), 0.1), 30)
    except ValueError:
        return 1


def filled(value, problem, greedy_tokens):
    """A body with its placeholders replaced."""
    if isinstance(value, dict):
        result = {key: filled(inner, problem, greedy_tokens) for key, inner in value.items()}
        # A few problems have no public tests: likelihood is what is left to choose by.
        return {"kind": "likelihood"} if result.get("kind") == "verifier" and result.get("tests") == [] else result
    if isinstance(value, list):
        return [filled(inner, problem, greedy_tokens) for inner in value]
    if value == "$PUBLIC_TESTS":
        return problem.get("public_tests", [])
    if value == "$PREFIX":
        return grade.preamble(problem) if problem["kind"] == "code" else ""
    if isinstance(value, str) and value.startswith("$BUDGET:"):
        if problem["id"] not in greedy_tokens:
            raise RequestFailed(f"the arm {GREEDY!r} has no result to take the budget from")
        return max(MIN_BUDGET, int(float(value.removeprefix("$BUDGET:")) * greedy_tokens[problem["id"]]))
    return value


def ask(server, common, arm, problem, greedy_tokens):
    """One result line."""
    row = {"arm": arm["name"], "id": problem["id"], "text": "", "usage": None, "search": None}
    row |= {"finish_reason": None, "seconds": 0.0, "error": None}
    start = time.perf_counter()
    try:
        body = {**common, "messages": problem["messages"], **filled(arm["body"], problem, greedy_tokens)}
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


def greedy_tokens(rows):
    """Completion tokens of the greedy arm by problem."""
    greedy = (row for row in latest(rows).values() if row["arm"] == GREEDY and row["usage"])
    return {row["id"]: row["usage"]["completion_tokens"] for row in greedy}


def write_trace(path, trace, problem):
    """Appends a searched tree, tagged with its problem."""
    trace["tags"] = [problem["id"]]
    with open_to_append(path) as out:
        out.write(json.dumps(trace, ensure_ascii=False) + "\n")


def write_outcomes(args):
    """Grades the whole answers of the trees in a file and writes the trees with their outcomes."""
    problems = {problem["id"]: problem for problem in read_problems(args)}
    traces = [trace for trace in read_lines(args.outcomes) if trace["tags"] and trace["tags"][0] in problems]
    with open(args.out, "w", encoding="utf-8") as out, ThreadPoolExecutor(GRADERS) as pool:
        progress = Progress("grading", len(traces))
        for trace in traces:
            problem = problems[trace["tags"][0]]
            texts, jobs = [], []
            for node in trace["nodes"]:
                before = texts[node["parent"]] if node["parent"] is not None else ""
                texts.append(before + node["text"])
                if node["end"] in ("stop", "length"):
                    jobs.append((node, pool.submit(grade.grade, problem, texts[-1])))
            for node, job in jobs:
                node["outcome"] = float(job.result())
            if not args.only_mixed or len({node["outcome"] for node, _ in jobs}) > 1:
                out.write(json.dumps(trace, ensure_ascii=False) + "\n")
            progress.step({"error": None})


class Progress:
    """A line on stderr that says how far an arm is."""

    def __init__(self, name, total):
        self.name, self.total = name, total
        self.num_done = self.num_errors = 0
        self.start = time.monotonic()

    def step(self, row):
        self.num_done += 1
        self.num_errors += bool(row["error"])
        pace = (time.monotonic() - self.start) / self.num_done
        left = pace * (self.total - self.num_done)
        done = f"{self.num_done}/{self.total}, {self.num_errors} errors"
        text = f"{self.name}: {done}, {pace:.1f} s each, {left:.0f} s left"
        is_last = self.num_done == self.total
        if sys.stderr.isatty():
            print(f"\r{text}\033[K", end="\n" if is_last else "", file=sys.stderr, flush=True)
        elif is_last or self.num_done % 10 == 0:
            print(text, file=sys.stderr, flush=True)


def run_arm(server, common, arm, problems, tokens, args):
    """Asks all problems and appends each result as it comes."""
    progress = Progress(arm["name"], len(problems))
    problems_by_id = {problem["id"]: problem for problem in problems}
    with open_to_append(args.out) as out, ThreadPoolExecutor(args.concurrency) as pool:
        jobs = [pool.submit(ask, server, common, arm, problem, tokens) for problem in problems]
        try:
            for job in as_completed(jobs):
                row = job.result()
                trace = row.pop("trace", None)
                if trace and args.traces:
                    write_trace(args.traces, trace, problems_by_id[row["id"]])
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                out.flush()
                progress.step(row)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run(args):
    """Asks every arm after the other, so that the greedy arm's tokens are there for the others' budgets."""
    arms = json.loads(Path(args.arms).read_text(encoding="utf-8"))
    if len({arm["name"] for arm in arms}) != len(arms):
        sys.exit(f"{args.arms}: two arms have one name")
    problems = read_problems(args)
    server = Server(args.url, args.timeout)
    try:
        common = {"model": args.model or server.model(), "seed": args.seed, "stream": False}
        for arm in arms:
            rows = read_lines(args.out)
            done = {key for key, row in latest(rows).items() if not (args.retry_errors and row["error"])}
            tokens = greedy_tokens(read_lines(args.greedy) if args.greedy else rows)
            left = [
                problem
                for problem in problems
                if problem["kind"] in arm.get("kinds", [problem["kind"]]) and (arm["name"], problem["id"]) not in done
            ]
            if left:
                run_arm(server, common, arm, left, tokens, args)
    except Unreachable as error:
        sys.exit(f"{error}; the same command goes on from here")
    except RequestFailed as error:
        sys.exit(f"{args.url}: {error}")


# Grading


def grade_key(problem, row):
    """Changes with whatever the grade depends on."""
    scorer = problem["kind"] == "text" and grade.own_scorer(problem["dataset"]) is not None
    material = json.dumps([problem, row["text"], scorer], sort_keys=True)
    return hashlib.sha256(material.encode("utf-8", "surrogatepass")).hexdigest()


def graded(path, problems, results):
    """Whether each result is right, by arm and problem. Grades are kept in a file beside the results."""
    cache_path = Path(path).with_suffix(".graded.jsonl")
    cache = {row["key"]: row["correct"] for row in read_lines(cache_path)}
    keys = {pair: grade_key(problems[pair[1]], row) for pair, row in results.items() if not row["error"]}
    todo = {key: pair for pair, key in keys.items() if key not in cache}
    with open_to_append(cache_path) as out, ThreadPoolExecutor(GRADERS) as pool:
        jobs = {}
        for key, pair in todo.items():
            jobs[pool.submit(grade.grade, problems[pair[1]], results[pair]["text"])] = key, pair
        for job in as_completed(jobs):
            key, (arm, name) = jobs[job]
            cache[key] = job.result()
            out.write(json.dumps({"arm": arm, "id": name, "key": key, "correct": cache[key]}) + "\n")
            out.flush()
    return {pair: pair in keys and cache[keys[pair]] for pair in results}


# The report


def wilson(num_right, num):
    """The 95 % Wilson interval of a share."""
    share, square = num_right / num, Z95 * Z95
    centre = (share + square / (2 * num)) / (1 + square / num)
    half = Z95 / (1 + square / num) * (share * (1 - share) / num + square / (4 * num * num)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(differences, seed):
    """The 95 % percentile interval of the mean of paired differences."""
    rng, num = random.Random(seed), len(differences)
    means = sorted(sum(rng.choices(differences, k=num)) / num for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]


def ratio(numerator, denominator, digits):
    """A quotient for the table."""
    return f"{numerator / denominator:.{digits}f}" if denominator else "-"


def difference(arm, reference, right, seed):
    """The paired difference to the reference arm, in points, over the problems that both have."""
    mine = {name: is_right for (of, name), is_right in right.items() if of == arm}
    theirs = {name: is_right for (of, name), is_right in right.items() if of == reference}
    both = sorted(mine.keys() & theirs.keys())
    if arm == reference or not both:
        return "-"
    pairs = [mine[name] - theirs[name] for name in both]
    low, high = bootstrap(pairs, seed)
    of = f", {len(both)} pairs" if len(both) < len(mine) else ""
    return f"{100 * sum(pairs) / len(pairs):+.1f} ({100 * low:+.1f} to {100 * high:+.1f}{of})"


def table_row(arm, results, right, reference, seed):
    """One arm's line of the table."""
    rows = [row for (of, _), row in results.items() if of == arm]
    num, num_right = len(rows), sum(is_right for (of, _), is_right in right.items() if of == arm)
    usages = [row["usage"] for row in rows if row["usage"]]
    tokens = sum(usage["completion_tokens"] for usage in usages)
    details = [usage.get("completion_tokens_details") or {} for usage in usages]
    discarded = sum(detail.get("reasoning_tokens") or 0 for detail in details)
    seconds = sum(row["seconds"] for row in rows)
    scorer_ms = sum((row["search"] or {}).get("scorer_ms", 0) for row in rows)
    low, high = wilson(num_right, num)
    cells = [
        arm,
        str(num),
        f"{100 * num_right / num:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        difference(arm, reference, right, seed),
        ratio(tokens, len(usages), 0),
        f"{seconds / num:.2f}",
        ratio(num_right, seconds, 3),
        ratio(1000 * num_right, tokens, 2),
        f"{ratio(100 * discarded, tokens, 0)} %" if tokens else "-",
        f"{ratio(scorer_ms / 10, seconds, 0)} %" if scorer_ms else "-",
        str(sum(bool(row["error"]) for row in rows)),
    ]
    return f"| {' | '.join(cells)} |"


def table(title, results, right, reference, seed):
    """The lines of one table; arms in the order of their first results."""
    head = ["arm", "n", "right, % (95 %)", f"to {reference}, points (95 %)", "tokens", "s/problem"]
    head += ["right/s", "right/1,000 tokens", "discarded", "scoring", "errors"]
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm in dict.fromkeys(of for of, _ in results):
        lines.append(table_row(arm, results, right, reference, seed))
    return [*lines, ""]


def report(args):
    """Grades what is new and prints the tables."""
    problems = {problem["id"]: problem for problem in read_problems(args)}
    results = {pair: row for pair, row in latest(read_lines(args.report)).items() if pair[1] in problems}
    if not results:
        sys.exit(f"{args.report} has no results for these problems")
    right = graded(args.report, problems, results)
    kinds = sorted({problems[name]["kind"] for _, name in results})
    lines = []
    for kind in [*(["all"] if len(kinds) > 1 else []), *kinds]:
        pairs = [pair for pair in results if kind in ("all", problems[pair[1]]["kind"])]
        part = {pair: results[pair] for pair in pairs}
        lines += table(kind, part, {pair: right[pair] for pair in pairs}, args.reference, args.seed)
    lines.append("Failed requests count as wrong. Tokens include those of discarded branches.")
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", required=True, metavar="FILE", help="from problems.py")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    parser.add_argument("--only-tested", action="store_true", help="only problems with public tests")
    parser.add_argument("--seed", type=int, default=0, help="of the requests, or of the report's resampling")
    asking = parser.add_argument_group("asking")
    asking.add_argument("--url", help="of the server, with /v1")
    asking.add_argument("--arms", metavar="FILE")
    asking.add_argument("--out", metavar="FILE", help="results, appended")
    asking.add_argument("--traces", metavar="FILE", help="keep the trees of arms with \"return_tree\": true, for ponder train")
    asking.add_argument("--greedy", metavar="FILE", help="results that have the greedy arm; --out by default")
    asking.add_argument("--model", help="the server's first by default")
    asking.add_argument("--concurrency", type=int, default=1, metavar="K", help="requests at once; seconds overlap")
    asking.add_argument("--timeout", type=float, default=1800, metavar="S", help="of one request")
    asking.add_argument("--retry-errors", action="store_true", help="ask again what failed")
    asking.add_argument("--outcomes", metavar="TRACES", help="grade the answers of kept trees into --out, and ask nothing")
    asking.add_argument("--only-mixed", action="store_true", help="with --outcomes: only trees with right and wrong answers")
    reporting = parser.add_argument_group("reporting")
    reporting.add_argument("--report", metavar="RESULTS")
    reporting.add_argument("--reference", default=GREEDY, metavar="ARM", help="compared with, by default greedy")
    args = parser.parse_args()
    if args.report:
        report(args)
    elif args.outcomes and args.out:
        write_outcomes(args)
    elif args.url and args.arms and args.out:
        run(args)
    else:
        parser.error("give --url, --arms and --out, or --report, or --outcomes and --out")


if __name__ == "__main__":
    main()
