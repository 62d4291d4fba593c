"""Tests of asking, grading and the report: `python -m unittest test_quality`, in this folder.

Those of the report need numpy, that of the plot matplotlib; without, they are skipped.
"""

import contextlib
import importlib.util
import io
import json
import sys
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import arms
import asking
import grade
import quality
import records
import server

ADD = {
    "id": "t/add",
    "kind": "code",
    "messages": [{"role": "user", "content": "add"}],
    "prompt": 'from typing import List\n\n\ndef add(xs: List[int]):\n    """Sum.\n    >>> add([1])\n    1\n    """\n',
    "entry_point": "add",
    "public_tests": ["assert add([1]) == 1"],
    "hidden_test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n\ncheck(add)\n",
}
TEXT = {
    "id": "t/text",
    "kind": "text",
    "messages": [{"role": "user", "content": "2 + 3"}],
    "answer": "5",
    "dataset": "chain_sum",
    "metadata": {},
}
RIGHT_CODE = "```python\ndef add(xs):\n    return sum(xs)\n```"


class Grading(unittest.TestCase):
    def test_code(self):
        for text, is_right in [
            (RIGHT_CODE, True),
            ("First\n```python\nprint(1)\n```\nthen\n" + RIGHT_CODE, True),
            (RIGHT_CODE + "\nUse:\n```python\nprint(add([1]))\n```", True),
            ("```python\ndef add(xs):\n    return 0\n```\nNo:\n" + RIGHT_CODE, False),
            (RIGHT_CODE + "\nor\n```python\ndef add(xs):\n    return 0\n```", True),
            ("```\ndef add(xs: List[int]):\n    return sum(xs)", True),
            ("    return sum(xs)\n", True),
            ("return sum(xs)", True),
            ("def add(xs):\n    return sum(xs)\nif __name__ == '__main__':\n    input()", True),
            ("open = None\ndef add(xs):\n    return sum(xs)", True),
            ("import sys\ndef add(xs):\n    return 0\nsys.exit(0)", False),
            ("import os\ndef add(xs):\n    os._exit(0)", False),
            ("I cannot.", False),
            ("", False),
        ]:
            with self.subTest(text=text):
                self.assertEqual(grade.grade(ADD, text), is_right)

    def test_limits(self):
        with mock.patch.object(grade, "TIMEOUT_S", 1):
            self.assertFalse(grade.grade(ADD, "def add(xs):\n    while True: pass"))
            self.assertFalse(grade.grade(ADD, "import time\ndef add(xs):\n    time.sleep(60)"))
        self.assertFalse(grade.grade(ADD, "def add(xs):\n    x = bytearray(4 << 30)\n    return sum(xs)"))

    def test_text(self):
        for right, text, is_right in [
            ("5", "2 + 3 = 5. The answer is 5.", True),
            ("5", "So \\boxed{5}.", True),
            ("5", "**Answer:** x = 5", True),
            ("5", "The answer is 5 legs.", True),
            ("5", "The answer is 5.0.", True),
            ("5", "The answer is -5.", False),
            ("5", "The answer is 4. Not 5", False),
            ("5", "5", True),
            ("5", "So 10-5", True),
            ("-5", "So 10-5", False),
            ("-5", "It is -5", True),
            ("5", "The answer is:\n\\[\n5\n\\]", True),
            ("5", "It is 5. The answer is:\n$$\n", True),
            ("5", "", False),
            ("1234", "The answer is $1,234$.", True),
            ("-7", "The answer is −7.", True),
            ("3/4", "The answer is \\(\\frac{3}{4}\\).", True),
            ("3/4", "The answer is 6/8.", False),
            ("101", "The answer is 101_2.", True),
            ("101", "The answer is 101 (base 2).", True),
            ("Monday", "The answer is **Monday**.", True),
            ("Monday", "The answer is Sunday.", False),
            ("boc", 'The answer is "boc".', True),
        ]:
            with self.subTest(text=text, right=right), mock.patch.object(grade, "own_scorer", lambda _: None):
                self.assertEqual(grade.grade({**TEXT, "answer": right}, text), is_right)


class FakeServer(ThreadingHTTPServer):
    """Greedy answers are wrong and 100 tokens long, searches are right."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.num_busy, self.is_broken = [], 1, False
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send(self, status, body, **headers):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.send(200, {"data": [{"id": "fake"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.is_broken:
            self.connection.close()
            return
        if self.server.num_busy:
            self.server.num_busy -= 1
            self.send(429, {"error": {"message": "full"}}, **{"Retry-After": "0"})
            return
        self.server.bodies.append(body)
        search = body.get("search")
        if search and search.get("reward", {}).get("tests") == []:
            self.send(400, {"error": {"message": "no tests"}})
            return
        text = "The answer is 5." if body["messages"] == TEXT["messages"] else RIGHT_CODE
        answer = {
            "choices": [{"message": {"content": text if search else "no"}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 400 if search else 100},
        }
        if search:
            answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 300}
            answer["search"] = {"strategy": search["strategy"], "scorer_tokens": 150}
        if search and search.get("return_tree"):
            nodes = [("", None, None), ("The answer", 0, None), (" is 5.", 1, "stop"), (" is 6.", 1, "length")]
            nodes = [{"text": text, "parent": parent, "end": end} for text, parent, end in nodes]
            answer["search"]["tree"] = {"nodes": nodes}
        self.send(200, answer)


GREEDY = {"name": "greedy", "body": {"temperature": 0}}
VERIFIED = {
    "name": "verified",
    "kinds": ["code"],
    "body": {
        "search": {
            "strategy": "best_of_n",
            "reward": {"tests": "$PUBLIC_TESTS", "prefix": "$PREFIX"},
            "budget": {"tokens": "$BUDGET:8"},
        }
    },
}
VOTE = {
    "name": "vote",
    "factors": [0.1, 4],
    "body": {"search": {"strategy": "self_consistency", "n": "$FACTOR", "budget": {"tokens": "$BUDGET:$FACTOR"}}},
}


class WithServer(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.server = FakeServer()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.out = self.folder / "results.jsonl"
        self.write([ADD, {**ADD, "id": "t/untested", "public_tests": []}, TEXT], [GREEDY, VERIFIED, VOTE])

    def write(self, rows, all_arms):
        (self.folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (self.folder / "arms.json").write_text(json.dumps(all_arms), encoding="utf-8")

    def call(self, *extra, report=False):
        if report:
            args = ["--report", str(self.out)]
        else:
            args = ["--url", self.server.url, "--arms", str(self.folder / "arms.json"), "--out", str(self.out)]
        args += ["--problems", str(self.folder / "problems.jsonl"), *extra]
        output = io.StringIO()
        with mock.patch.object(sys, "argv", ["quality.py", *args]), contextlib.redirect_stdout(output):
            with contextlib.redirect_stderr(io.StringIO()):
                quality.main()
        return output.getvalue()

    def rows(self):
        return records.latest(records.read_lines(self.out))

    def strategies(self):
        return [body.get("search", {}).get("strategy", "greedy") for body in self.server.bodies]


class Asking(WithServer):
    def test_bodies_and_results(self):
        self.call("--concurrency", "2", "--seeds", "3")
        rows = self.rows()
        self.assertEqual(len(rows), 3 + 2 + 2 * 3)
        self.assertIn("400: no tests", rows["verified", "t/untested", 3]["error"])
        self.assertEqual(rows["verified", "t/add", 3]["search"]["strategy"], "best_of_n")
        body = next(body for body in self.server.bodies if body.get("search", {}).get("strategy") == "best_of_n")
        self.assertEqual(body["search"]["budget"], {"tokens": 800})
        self.assertEqual(body["seed"], 3)
        tested = [b for b in self.server.bodies if b.get("search", {}).get("reward", {}).get("tests")]
        self.assertEqual(tested[0]["search"]["reward"]["tests"], ADD["public_tests"])
        self.assertIn("from typing import List", tested[0]["search"]["reward"]["prefix"])
        votes = [b["search"] for b in self.server.bodies if b.get("search", {}).get("strategy") == "self_consistency"]
        self.assertEqual({(v["n"], v["budget"]["tokens"]) for v in votes}, {(0.1, 64), (4, 400)})

    def test_every_arm_is_asked_under_every_seed_and_a_fixed_one_once(self):
        self.call("--seeds", "1,2,3", "--only", "greedy", "vote@4x")
        seeds = {}
        for arm, name, seed in self.rows():
            seeds.setdefault((arm, name), []).append(seed)
        self.assertEqual({seeds["greedy", name][0] for name in ("t/add", "t/text")}, {None})
        self.assertEqual(seeds["vote@4x", "t/text"], [1, 2, 3])
        self.assertEqual(len(self.rows()), 3 * (1 + 3))
        self.assertEqual(len(self.server.bodies), 3 * (1 + 3))

    def test_arms_are_interleaved_and_greedy_comes_first(self):
        many = [{**TEXT, "id": f"t/{index}"} for index in range(40)]
        self.write(many, [VOTE, GREEDY])
        jobs = list(asking.order(arms.read_arms(self.folder / "arms.json"), many, [1, 2]))
        self.assertEqual(jobs, list(asking.order(arms.read_arms(self.folder / "arms.json"), many, [1, 2])))
        names = [arm["name"] for _, _, arm in jobs]
        self.assertEqual(len(jobs), 40 * 3 + 40 * 2)
        first_seed = [names[start : start + 3] for start in range(0, 120, 3)]
        self.assertEqual({row[0] for row in first_seed}, {"greedy"})
        self.assertTrue(all(sorted(row[1:]) == ["vote@0.1x", "vote@4x"] for row in first_seed))
        # A fair shuffle: neither is mostly first.
        self.assertTrue(10 < sum(row[1] == "vote@4x" for row in first_seed) < 30)
        self.assertEqual([problem["id"] for problem, _, _ in jobs[:6]], ["t/0"] * 3 + ["t/1"] * 3)
        self.assertEqual([seed for _, seed, _ in jobs], [1] * 120 + [2] * 80)

    def test_resume(self):
        self.call("--limit", "1")
        num = len(self.server.bodies)
        self.call("--limit", "1")
        self.assertEqual(len(self.server.bodies), num)
        with open(self.out, "a", encoding="utf-8") as out:
            out.write('{"arm": "greedy", "id": "t/te')
        self.call()
        self.assertEqual(len(self.rows()), 11)
        num = len(self.server.bodies)
        self.call("--retry-errors")
        self.assertEqual(len(self.server.bodies), num + 1)
        self.call("--seeds", "0,1")
        self.assertEqual(len(self.rows()), 11 + 2 + 2 * 3)

    def test_results_of_another_question_are_not_taken(self):
        self.call()
        self.write([ADD, TEXT], [GREEDY, {**VERIFIED, "body": {"search": {"strategy": "mcts"}}}])
        num = len(self.server.bodies)
        with self.assertRaisesRegex(SystemExit, "verified on t/add for another model, body or prompt"):
            self.call()
        self.assertEqual(len(self.server.bodies), num)
        with self.assertRaisesRegex(SystemExit, "greedy on t/add for another model"):
            self.call("--model", "other")

    def test_an_unreachable_server_ends_the_run(self):
        self.call("--limit", "1")
        self.server.is_broken = True
        with mock.patch.object(server.time, "sleep"), self.assertRaisesRegex(SystemExit, "goes on from here"):
            self.call()
        self.assertEqual(len(self.rows()), 4)
        self.server.is_broken = False
        self.call()
        self.assertEqual(len(self.rows()), 11)

    def test_a_budget_needs_the_greedy_arm(self):
        self.write([ADD], [VERIFIED])
        self.call()
        self.assertIn("no result to take the budget", self.rows()["verified", "t/add", 0]["error"])
        greedy = self.folder / "greedy.jsonl"
        greedy.write_text(json.dumps({"arm": "greedy", "id": "t/add", "seed": None, "usage": {"completion_tokens": 50}}))
        self.call("--greedy", str(greedy), "--retry-errors")
        self.assertEqual(self.server.bodies[-1]["search"]["budget"], {"tokens": 400})

    def test_traces_are_kept_with_their_tags(self):
        self.write([TEXT], [{"name": "tree", "body": {"search": {"strategy": "mcts", "return_tree": True}}}])
        traces = self.folder / "traces.ndjson"
        self.call("--seeds", "4", "--traces", str(traces))
        self.assertNotIn("tree", self.rows()["tree", "t/text", 4]["search"])
        self.assertEqual(records.read_lines(traces)[0]["tags"], ["t/text", "tree", "seed 4"])
        graded = self.folder / "graded.ndjson"
        problems = str(self.folder / "problems.jsonl")
        args = ["quality.py", "--outcomes", str(traces), "--problems", problems, "--out", str(graded)]
        with mock.patch.object(sys, "argv", args), contextlib.redirect_stderr(io.StringIO()):
            quality.main()
        nodes = records.read_lines(graded)[0]["nodes"]
        self.assertEqual([node.get("outcome") for node in nodes], [None, None, 1.0, 0.0])

    def test_bad_arms_are_refused(self):
        for bad, message in [
            ([GREEDY, GREEDY], "two arms have one name"),
            ([{"name": "greedy", "body": {"max_tokens": "$BUDGET:2"}}], "cannot have its own tokens as a budget"),
            ([{**GREEDY, "seeds": [1]}], "has \\['seeds'\\], which nothing reads"),
        ]:
            self.write([TEXT], bad)
            with self.assertRaisesRegex(SystemExit, message):
                self.call()
        self.write([TEXT], [GREEDY])
        with self.assertRaisesRegex(SystemExit, "has no arm like mcts"):
            self.call("--only", "mcts")
        self.write([TEXT, TEXT], [GREEDY])
        with self.assertRaisesRegex(SystemExit, "more than once"):
            self.call()

    def test_example_arms_can_be_filled(self):
        for name in ("arms.json", "arms-value.json"):
            example = arms.read_arms(Path(__file__).with_name(name))
            self.assertEqual(example[0]["name"], "greedy")
            for arm in example:
                body = json.dumps(arms.filled(arm["body"], ADD, {ADD["id"]: 20}.get))
                self.assertNotIn("$", body)


@unittest.skipUnless(importlib.util.find_spec("numpy"), "numpy is not installed")
class Report(WithServer):
    def test_tables(self):
        self.call("--seeds", "1,2")
        text = self.call(report=True)
        for part in ("### all", "### code", "### text", "| vote@4x | 3 x 2 | 100.0 (43.9 to 100.0) | +100.0 (+100.0 to +100.0)"):
            self.assertIn(part, text)
        self.assertNotIn("### mix", text)
        self.assertIn("| greedy | 3 x 1 | 0.0 (0.0 to 56.1) | - | 100 | 0 |", text)
        line = next(line for line in text.splitlines() if line.startswith("| verified"))
        self.assertIn("| verified | 2 x 2 | 50.0", line)
        # 400 generated and 150 scored tokens; half of the four requests fail.
        self.assertIn("| 400 | 150 |", next(line for line in text.splitlines() if line.startswith("| vote@4x")))
        self.assertIn("| 75 % | - | 2 |", line)
        self.assertIn("problems are resampled, then the seeds", text)
        self.assertIn("| verified | 1 x 2 | 100.0", self.call("--only-tested", report=True))
        with mock.patch.object(grade, "grade", side_effect=AssertionError("graded again")):
            self.assertEqual(self.call(report=True), text)

    def test_groups_and_families(self):
        groups = {"seen": "gcd", "unseen": "aiw", "gsm": "gsm_symbolic"}
        rows = [{**TEXT, "id": f"{of}/1", "group": group, "dataset": of} for group, of in groups.items()]
        self.write(rows, [GREEDY, VOTE])
        self.call()
        titles = [line for line in self.call(report=True).splitlines() if line.startswith("###")]
        self.assertEqual(titles, ["### all", "### mix", "### seen", "### unseen", "### gsm"])
        self.assertIn("| aiw | 0 | 100 | 100 |", self.call("--families", report=True))
        self.write(rows[:2], [GREEDY, VOTE])
        titles = [line for line in self.call(report=True).splitlines() if line.startswith("###")]
        self.assertEqual(titles, ["### mix", "### seen", "### unseen"])
        self.write(rows[:1], [GREEDY, VOTE])
        titles = [line for line in self.call(report=True).splitlines() if line.startswith("###")]
        self.assertEqual(titles, ["### seen"])

    def test_differences_are_paired_by_seed(self):
        import report

        def arm(right):
            rows = [{"arm": "a", "id": name, "seed": seed} for name, of in right.items() for seed in of]
            return report.Arm(rows, {("a", name, seed): of[seed] for name, of in right.items() for seed in of})

        fixed = arm({"x": {None: 1}, "y": {None: 0}})
        sampled = arm({"x": {1: 1, 2: 0}, "y": {1: 1, 2: 1}, "z": {1: 1}})
        other = arm({"x": {2: 1, 3: 1}, "z": {2: 0}})
        self.assertEqual(report.differences(sampled, fixed), [[0, -1], [1, 1]])
        self.assertEqual(report.differences(fixed, sampled), [[0, 1], [-1, -1]])
        self.assertEqual(report.differences(sampled, other), [[-1]])

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
    def test_plot(self):
        self.call()
        path = self.folder / "budgets.png"
        self.call("--plot", str(path), report=True)
        self.assertEqual(path.read_bytes()[:4], b"\x89PNG")

    def test_series(self):
        import plots

        names = [("mcts@8x", ("mcts", 8)), ("mcts", ("mcts", 0)), ("a@b", ("a@b", 0)), ("v@0.5x", ("v", 0.5))]
        for name, series in names:
            self.assertEqual(plots.series_of(name), series)


@unittest.skipUnless(importlib.util.find_spec("numpy"), "numpy is not installed")
class Intervals(unittest.TestCase):
    def test_wilson(self):
        import intervals

        low, high = intervals.wilson(50, 100)
        self.assertAlmostEqual(low, 0.4038, 3)
        self.assertAlmostEqual(high, 0.5962, 3)

    def test_over_problems(self):
        import intervals

        pairs = [[1]] * 20 + [[-1]] * 10 + [[0]] * 70
        low, high = intervals.interval(pairs, 0)
        # The normal interval: 0.1 ± 1.96 * sqrt(0.29 / 100).
        self.assertAlmostEqual(low, -0.0055, delta=0.02)
        self.assertAlmostEqual(high, 0.2055, delta=0.02)
        self.assertEqual(intervals.interval(pairs, 0), (low, high))
        self.assertNotEqual(intervals.interval(pairs, 1), (low, high))

    def test_over_problems_and_seeds(self):
        import intervals

        # Seeds that agree are no more problems: the interval is that of one seed.
        one, three = [[1]] * 50 + [[0]] * 50, [[1, 1, 1]] * 50 + [[0, 0, 0]] * 50
        for a, b in zip(intervals.interval(one, 0), intervals.interval(three, 0)):
            self.assertAlmostEqual(a, b, delta=0.01)
        # All problems alike: what is left is the seeds' spread, 1.96 * sqrt(0.25 / (100 * 4)).
        low, high = intervals.interval([[1, 1, 0, 0]] * 100, 0)
        self.assertAlmostEqual(high - low, 2 * 1.96 * 0.025, delta=0.01)
        self.assertAlmostEqual((high + low) / 2, 0.5, delta=0.01)


if __name__ == "__main__":
    unittest.main()
