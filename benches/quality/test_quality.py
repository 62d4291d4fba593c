"""Tests of grading and asking: `python -m unittest test_quality`, in this folder."""

import contextlib
import io
import json
import sys
import unittest
from pathlib import Path
from unittest import mock

import arms
import asking
import grade
import quality
import records
import server
from fake_server import ADD, GREEDY, RIGHT_CODE, TEXT, VERIFIED, VOTE, WithServer


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
        greedy.write_text(
            json.dumps({"arm": "greedy", "id": "t/add", "seed": None, "usage": {"completion_tokens": 50}})
        )
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


if __name__ == "__main__":
    unittest.main()
