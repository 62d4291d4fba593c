"""Tests of the offline comparison of choosers: `python -m unittest test_choose`, in this folder. They need numpy."""

import contextlib
import importlib.util
import io
import json
import math
import sys
import tempfile
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from unittest import mock

import answer_key
import collect
import records

# Pairs of the tests of src/reward/verifier/math.rs that this port tells as the server does.
SAME = [
    ("1/2", r"\frac{1}{2}"),
    (r"\dfrac12", "0.5"),
    ("$0.50$", ".5"),
    ("1,234", "1234"),
    (r"1,\!234,\!567", "1234567"),
    ("1,234, 5", "1234,5"),
    ("x = 5", "$5$."),
    ("1 1/2", "1.5"),
    (r"-2\frac{1}{4}", "-2.25"),
    (r"1.2\times10^3", "1200"),
    ("2√3", r"\sqrt{12}"),
    (r"\frac{\pi}{4}", "pi/4"),
    ("2**10", "1024"),
    ("(1, 2)", r"\left( 1,2 \right)"),
    (r"\{1,2\}", "2, 1"),
    ("1 and 2", "2,1"),
    (r"1\pm\sqrt{2}", r"1-\sqrt2, 1+\sqrt2"),
    ("2x+3y=6", "6 = 3y + 2x"),
    ("Twelve", "12"),
    (r"\text{True}", "true"),
    ("a)", "A"),
    (r"5\text{ cm}^2", "5"),
    (r"90^{\circ}", "90 degrees"),
    ("60 miles per hour", "60 mph"),
    ("(x+1)^2", "x^2+2x+1"),
    ("5!", "120"),
    (r"\boxed{5}", "5"),
    ("no real  solution", "No real solution"),
    ("-2 + 7i", "7i-2"),
    ("4.0 - 7.0i", "4 - 7i"),
    ("10^{50}", "1e50"),
    ("", ""),
]
OTHER = [
    ("1", "2"),
    ("0.333", "1/3"),
    ("50%", "0.5"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2)"),
    ("1,2", "12"),
    ("1,1", "1,2"),
    ("2 3", "23"),
    ("1 1/2", "11/2"),
    ("-5", "5"),
    ("3x m", "3x"),
    ("Monday", "Sunday"),
    ("9^9^9^9", "9^9^9"),
    ("1e999999999", "1e99999999"),
]


class Keys(unittest.TestCase):
    def test_same(self):
        for a, b in SAME:
            with self.subTest(a=a, b=b):
                self.assertEqual(answer_key.normalise(a), answer_key.normalise(b))

    def test_other(self):
        for a, b in OTHER:
            with self.subTest(a=a, b=b):
                self.assertNotEqual(answer_key.normalise(a), answer_key.normalise(b))

    def test_keys_are_their_own_keys(self):
        for answer in {answer for pair in SAME + OTHER for answer in pair}:
            key = answer_key.normalise(answer)
            self.assertEqual(answer_key.normalise(key), key)

    def test_of_texts(self):
        for a, b in [
            (r"So \boxed{4}.", "3 + 1 is 4. The answer is 4."),
            ("The answer is 6/8.", "The answer is 0.75."),
            ("The answer is ['3', '-1'].", "I get ['3', '-1']. The answer is ['3', '-1']."),
            ("The answer is **Monday**.", "the answer is monday"),
        ]:
            self.assertEqual(answer_key.answer_key(a), answer_key.answer_key(b))
        self.assertNotEqual(answer_key.answer_key("The answer is 4."), answer_key.answer_key("The answer is 5."))


def answer(text, right, score, logprob=-0.5):
    return {
        "text": f"The answer is {text}.",
        "right": right,
        "scores": {"vm": score},
        "num_tokens": 9,
        "mean_logprob": logprob,
    }


# The vote is for 1 (wrong), the value model's choice 2 (right), its vote 2 as well, the likeliest 3.
ROW = [
    answer(1, False, 0.2),
    answer(1, False, 0.1),
    answer(2, True, 0.9),
    answer(3, False, 0.6, -0.1),
]


@unittest.skipUnless(importlib.util.find_spec("numpy"), "numpy is not installed")
class Choosing(unittest.TestCase):
    def problem(self, answers=ROW, name="gcd/1", **row):
        import choose

        return choose.Problem({"id": name, "answers": answers, **row})

    def test_choosers(self):
        import choose

        found = choose.outcomes(self.problem(), range(4))
        self.assertEqual(
            found,
            {
                "a sample": 0.25,
                "oracle": 1.0,
                "vote": 0.0,
                "choice by likelihood": 0.0,
                "vote weighted by likelihood": 0.0,
                "choice by vm": 1.0,
                "vote weighted by vm": 1.0,
            },
        )
        # 0.2 and 0.1 together are below 0.6: without the second answer's group the vote would be 1.
        self.assertEqual(choose.outcomes(self.problem(), [0, 1, 3])["oracle"], 0.0)

    def test_ties_go_to_the_likelier_then_to_the_first(self):
        import choose

        tied = [answer(1, False, 0.5, -0.4), answer(2, True, 0.5, -0.3)]
        self.assertEqual(choose.outcomes(self.problem(tied), range(2))["vote"], 1.0)
        self.assertEqual(choose.outcomes(self.problem(tied), range(2))["choice by vm"], 1.0)
        equal = [answer(1, False, 0.5), answer(2, True, 0.5)]
        self.assertEqual(choose.outcomes(self.problem(equal), range(2))["vote"], 0.0)
        # A weighted vote returns its group's best, which the grader may judge otherwise.
        group = [answer("6/8", False, 0.3), answer("3/4", True, 0.4)]
        self.assertEqual(choose.outcomes(self.problem(group), range(2))["vote weighted by vm"], 1.0)
        self.assertEqual(choose.outcomes(self.problem(group), range(2))["vote"], 0.0)

    def test_a_mean_of_scorers_is_a_scorer(self):
        import choose

        problem = self.problem()
        choose.add_mean([problem], *choose.named_mean("both=likelihood,vm"))
        pairs = zip(problem.scores["likelihood"], problem.scores["vm"])
        self.assertEqual(problem.scores["both"], [(a + b) / 2 for a, b in pairs])
        with self.assertRaises(SystemExit):
            choose.add_mean([problem], "none", ["likelihood", "nobody"])

    def test_subsets(self):
        import choose

        problem = self.problem()
        made = choose.subsets(problem, 2, 50, 0)
        self.assertEqual(made, choose.subsets(problem, 2, 50, 0))
        self.assertEqual({len(set(chosen)) for chosen in made}, {2})
        self.assertEqual(len({tuple(chosen) for chosen in made}), 6)
        self.assertEqual([list(chosen) for chosen in choose.subsets(problem, 8, 50, 0)], [[0, 1, 2, 3]])

    def test_auc(self):
        import choose

        self.assertEqual(choose.auc([True, False, False], [0.5, 0.4, 0.6]), 0.5)
        self.assertEqual(choose.auc([True, False], [0.5, 0.5]), 0.5)
        self.assertEqual(choose.auc([True, True, False], [0.9, 0.1, 0.5]), 0.5)
        self.assertIsNone(choose.auc([True, True], [0.1, 0.2]))

    def test_calibration(self):
        import choose

        answers = [
            answer(1, right, score)
            for right, score in [(True, 0.9), (True, 0.95), (False, 0.1), (True, 0.1), (True, 1)]
        ]
        bins = choose.calibration([self.problem(answers)], "vm")
        self.assertEqual([count for _, _, count in bins], [2, 3])
        self.assertEqual([share for _, share, _ in bins], [0.5, 1.0])
        # 2/5 of 0.4 and 3/5 of 0.05.
        self.assertAlmostEqual(choose.expected_error(bins), 0.4 * 0.4 + 0.6 * 0.05)

    def test_the_way_to_the_oracle(self):
        import choose

        values = {
            "vote": [[0.0]] * 8 + [[1.0]] * 2,
            "oracle": [[1.0]] * 10,
            "vm": [[1.0]] * 4 + [[0.0]] * 4 + [[1.0]] * 2,
        }
        self.assertRegex(choose.way_to_oracle(values, "vm", 0), r"^\+50 \(\+\d+ to \+\d+\)$")
        self.assertEqual(choose.way_to_oracle(values, "vote", 0), "-")
        self.assertEqual(choose.way_to_oracle({**values, "oracle": values["vote"]}, "vm", 0), "-")

    def call(self, rows, *extra):
        import choose

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "answers.jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            output, args = io.StringIO(), ["choose.py", "--answers", str(path), *extra]
            with mock.patch.object(sys, "argv", args), contextlib.redirect_stdout(output):
                choose.main()
            return output.getvalue()

    def test_report(self):
        rows = [{"id": f"gcd/{index}", "answers": ROW} for index in range(5)]
        rows += [{"id": "aiw/1", "answers": ROW[:3]}, {"id": "gsm_symbolic/1", "answers": ROW}]
        text = self.call(rows, "--subsets", "4")
        titles = [line.split(":")[0] for line in text.splitlines() if ": right, %" in line]
        self.assertEqual(titles, ["### all", "### mix", "### seen", "### unseen", "### gsm"])
        self.assertIn("| choice by vm | 100.0 (100.0 to 100.0) |", self.call(rows[:5], "--sizes", "4"))
        self.assertIn("1 of 7 problems have fewer than 4 answers", text)
        self.assertIn("7 prompts with right and wrong answers", text)
        self.assertIn("| vm | 100.0 (100.0 to 100.0) |", text)

    def test_bad_answers_are_refused(self):
        rows = [{"id": "gcd/1", "answers": ROW}]
        for other, message in [
            ([{**ROW[0], "scores": {}}], "has scores by"),
            ([{**ROW[0], "scores": {"vm": 1.5}}], "vm is not a number in 0..=1"),
            ([{**ROW[0], "scores": {"vm": math.nan}}], "vm is not a number in 0..=1"),
            ([ROW[0], {**ROW[0], "scores": {}}], "vm is not a number in 0..=1"),
        ]:
            with self.assertRaisesRegex(SystemExit, message):
                self.call([*rows, {"id": "gcd/2", "answers": other}])
        with self.assertRaisesRegex(SystemExit, "no chooser 'x'"):
            self.call(rows, "--reference", "x")
        with self.assertRaisesRegex(SystemExit, "no answers"):
            self.call([])

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
    def test_reliability_diagram(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "reliability.png")
            self.call([{"id": "gcd/1", "answers": ROW}], "--reliability", str(path))
            self.assertEqual(path.read_bytes()[:4], b"\x89PNG")


def node(text, parent, end, num_tokens, logprob, path, **more):
    ids = list(range(num_tokens))
    return {
        "text": text,
        "parent": parent,
        "end": end,
        "token_ids": ids,
        "logprob": logprob,
        "branch_path": path,
        **more,
    }


TREE = {
    "tags": ["gcd/1"],
    "search": {"reward": {"kind": "value_head"}},
    "nodes": [
        node("", None, None, 0, 0.0, []),
        node("a", 0, "stop", 2, -1.0, [1], outcome=1.0, score=0.7, duplicate_paths=[[0], [3]]),
        node("b", 0, None, 2, -1.0, [2]),
        node("c", 2, "length", 2, -3.0, [2, 0], outcome=0.0, score=0.1),
        node("d", 2, "cut", 2, -3.0, [2, 1], score=0.2),
    ],
}


class Scores(BaseHTTPRequestHandler):
    """Scores a text by its length in tenths."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        data = [{"index": index, "score": len(text) / 10} for index, text in enumerate(body["candidates"])]
        content = json.dumps({"data": data[::-1]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Collecting(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name, rows):
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def call(self, *args):
        with mock.patch.object(sys, "argv", ["collect.py", *args]), contextlib.redirect_stderr(io.StringIO()):
            collect.main()

    def test_answers_of_trees(self):
        out = self.folder / "answers.jsonl"
        trees = self.write("trees.ndjson", [TREE, {**TREE, "tags": ["gcd/2"]}, TREE])
        self.call("answers", "--trees", trees, "--out", str(out))
        rows = records.read_lines(out)
        self.assertEqual([(row["id"], len(row["answers"])) for row in rows], [("gcd/1", 8), ("gcd/2", 4)])
        answers = rows[1]["answers"]
        # Duplicates count as often as they were sampled, in the samples' order.
        self.assertEqual([answer["text"] for answer in answers], ["a", "a", "bc", "a"])
        self.assertEqual([answer["right"] for answer in answers], [True, True, False, True])
        self.assertEqual((answers[2]["num_tokens"], answers[2]["mean_logprob"]), (4, -0.75))
        self.assertEqual(answers[2]["scores"], {"value_head": 0.1})

    def test_scores_of_a_server(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Scores)
        server.bodies = []
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        Thread(target=server.serve_forever, daemon=True).start()
        messages = [{"role": "user", "content": "q"}]
        problems = self.write("problems.jsonl", [{"id": f"gcd/{index}", "messages": messages} for index in (1, 2)])
        texts = ["a", "bbb", "a"]
        rows = [
            {"id": f"gcd/{index}", "answers": [{"text": text, "scores": {"x": 1}} for text in texts]}
            for index in (1, 2)
        ]
        out = self.folder / "scored.jsonl"
        common = ["--problems", problems, "--url", f"http://127.0.0.1:{server.server_port}", "--out", str(out)]
        common += ["--reward", 'vm={"kind": "value_model"}']
        self.call("scores", "--answers", self.write("one.jsonl", rows[:1]), *common)
        self.call("scores", "--answers", self.write("two.jsonl", rows), *common)
        scored = records.read_lines(out)
        self.assertEqual([row["id"] for row in scored], ["gcd/1", "gcd/2"])
        self.assertEqual(
            [answer["scores"] for answer in scored[0]["answers"]], [{"x": 1, "vm": n} for n in (0.1, 0.3, 0.1)]
        )
        body = {"messages": messages, "candidates": ["a", "bbb"], "reward": {"kind": "value_model"}}
        self.assertEqual(server.bodies, [body, body])


if __name__ == "__main__":
    unittest.main()
