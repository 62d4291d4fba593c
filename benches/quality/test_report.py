"""Tests of the report: `python -m unittest test_report`, in this folder.

They need numpy, and that of the plot matplotlib; without, they are skipped.
"""

import importlib.util
import unittest
from unittest import mock

import grade
from fake_server import GREEDY, TEXT, VOTE, WithServer


@unittest.skipUnless(importlib.util.find_spec("numpy"), "numpy is not installed")
class Report(WithServer):
    def test_tables(self):
        self.call("--seeds", "1,2")
        text = self.call(report=True)
        for part in (
            "### all",
            "### code",
            "### text",
            "| vote@4x | 3 x 2 | 100.0 (43.9 to 100.0) | +100.0 (+100.0 to +100.0)",
        ):
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
