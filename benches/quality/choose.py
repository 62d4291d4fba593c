"""Says who chooses best among sampled answers, without asking a server: what scorers, votes and an
oracle make of the same answers.

    python choose.py --answers scored.jsonl --reliability reliability.png

A line of the file is a problem with its sampled answers (collect.py makes such files):

    {"id", "answers": [{"text", "right", "scores": {NAME: x}, "num_tokens", "mean_logprob"}]}

Scores lie in 0..=1. `likelihood`, exp(mean_logprob), is a scorer too. For each k the choosers get k
of a problem's answers, `--subsets` times another random subset: these are the seeds of the
intervals (hierarchical bootstrap: problems are resampled, then the subsets of each; differences are
paired, all choosers get the same subsets). Subsets of one problem's answers overlap, so it is the
problems that make the width of an interval.

Answers count as the same in a vote by the server's rule (answer_key.py). As there, ties go to the
likelier answer, then to the first; a weighted vote returns the best-scored answer of its group.
"""

import argparse
import math
import random
import sys

import numpy

import families
import plots
from answer_key import answer_key
from intervals import interval, mean, percentile_interval, resampled_means
from records import read_lines
from report import grouped, points

SIZES = (1, 2, 4, 8, 16, 32)
BINS = 10
SAMPLE, ORACLE, VOTE, LIKELIHOOD = "a sample", "oracle", "vote", "likelihood"
CHOICE, WEIGHTED = "choice by {}", "vote weighted by {}"


class Problem:
    """A problem's answers, with their keys and scores by scorer."""

    def __init__(self, row):
        self.name, answers = row["id"], row["answers"]
        self.group = row.get("group") or group_of(row["id"])
        self.right = [bool(answer["right"]) for answer in answers]
        self.keys = [answer_key(answer["text"]) for answer in answers]
        self.likelihood = [math.exp(answer["mean_logprob"]) for answer in answers]
        self.scores = {LIKELIHOOD: self.likelihood}
        for name in answers[0].get("scores", {}):
            self.scores[name] = [answer["scores"].get(name) for answer in answers]


def group_of(name):
    """The group of a problem by its id, FAMILY/SEED."""
    family = name.partition("/")[0]
    return families.group(family) if family in families.FAMILIES else "code"


def read_answers(paths):
    """The problems of the files; ends the program where one lacks what the others have."""
    problems = [Problem(row) for path in paths for row in read_lines(path) if row["answers"]]
    if not problems:
        sys.exit(f"there are no answers in {', '.join(paths)}")
    names = problems[0].scores.keys()
    for problem in problems:
        if problem.scores.keys() != names:
            sys.exit(f"{problem.name} has scores by {sorted(problem.scores)}, others by {sorted(names)}")
        for name, scores in problem.scores.items():
            if not all(isinstance(score, (int, float)) and 0 <= score <= 1 for score in scores):
                sys.exit(f"{problem.name}: {name} is not a number in 0..=1 for every answer")
    return problems


def named_mean(text):
    """The name and scorers of "NAME=SCORER,SCORER"."""
    name, _, scorers = text.partition("=")
    if not name or not scorers:
        raise argparse.ArgumentTypeError(f"give NAME=SCORER,SCORER, not {text!r}")
    return name, scorers.split(",")


def add_mean(problems, name, scorers):
    """A scorer that is the mean of others, as the reward `weighted` with equal weights."""
    for problem in problems:
        if missing := [scorer for scorer in scorers if scorer not in problem.scores]:
            sys.exit(f"there is no scorer {missing[0]!r}; there are {', '.join(problem.scores)}")
        columns = zip(*(problem.scores[scorer] for scorer in scorers))
        problem.scores[name] = [sum(column) / len(column) for column in columns]


def best(problem, chosen, key):
    """The answer of the largest key; ties go to the likelier, then to the first."""
    return max(chosen, key=lambda index: (key(index), problem.likelihood[index], -index))


def weighted_vote(problem, chosen, weight):
    """The answer that a vote with these weights returns: the best of the group that weighs most."""
    groups = {}
    for index in chosen:
        groups.setdefault(problem.keys[index], []).append(index)
    leaders = {}
    for group in groups.values():
        leader = max(group, key=lambda index: (weight(index), -index))
        # The sum in the answers' order is the same for the same votes.
        leaders[leader] = sum(weight(index) for index in group)
    return best(problem, leaders, leaders.__getitem__)


def outcomes(problem, chosen):
    """How right each chooser is with these answers, by its name."""
    right = problem.right
    result = {
        # Of all answers, since every subset's mean has this mean.
        SAMPLE: sum(right) / len(right),
        ORACLE: float(any(right[index] for index in chosen)),
        VOTE: float(right[weighted_vote(problem, chosen, lambda index: 1.0)]),
    }
    for name, scores in problem.scores.items():
        result[CHOICE.format(name)] = float(right[best(problem, chosen, scores.__getitem__)])
        result[WEIGHTED.format(name)] = float(right[weighted_vote(problem, chosen, scores.__getitem__)])
    return result


def subsets(problem, size, num_subsets, seed):
    """Random subsets of so many answers; the whole once, where it is no larger."""
    num = len(problem.right)
    if size >= num:
        return [range(num)]
    rng = random.Random(f"{seed}/{problem.name}/{size}")
    return [sorted(rng.sample(range(num), size)) for _ in range(num_subsets)]


def measured(problems, size, num_subsets, seed):
    """By chooser, for each problem how right it is with each subset."""
    values = {}
    for problem in problems:
        rows = [outcomes(problem, chosen) for chosen in subsets(problem, size, num_subsets, seed)]
        for name in rows[0]:
            values.setdefault(name, []).append([row[name] for row in rows])
    return values


# Tables


def table(title, head, rows):
    """The lines of a table."""
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def choice_tables(group, by_size, reference, seed):
    """Shares of right answers, and the differences to the reference with the same answers."""
    sizes, largest = list(by_size), list(by_size)[-1]
    shares, pairs = [], []
    for name in by_size[largest]:
        of_name = [by_size[size][name] for size in sizes]
        shares.append([name, *(points(mean(v), *interval(v, seed)) for v in of_name)])
        if name != reference and len(sizes) > 1:
            cells = [paired(by_size[size][name], by_size[size][reference], seed) for size in sizes[1:]]
            pairs.append([name, *cells, way_to_oracle(by_size[largest], name, seed)])
    num = len(by_size[largest][SAMPLE])
    lines = table(f"{group}: right, % (95 %), {num} problems", ["chooser", *(f"k = {k}" for k in sizes)], shares)
    if pairs:
        head = ["chooser", *(f"k = {k}" for k in sizes[1:]), f"way from vote to oracle, k = {largest}, %"]
        lines += table(f"{group}: to {reference}, points (95 %)", head, pairs)
    return lines


def paired(values, reference, seed):
    """The cell of a difference over the same answers."""
    pairs = [[a - b for a, b in zip(mine, theirs)] for mine, theirs in zip(values, reference)]
    return points(mean(pairs), *interval(pairs, seed), sign="+")


def way_to_oracle(values, name, seed):
    """How much of what an oracle has over a vote the chooser gets."""
    mine, vote, oracle = (values[of] for of in (name, VOTE, ORACLE))
    gap = mean(oracle) - mean(vote)
    if gap <= 0 or name in (VOTE, ORACLE):
        return "-"
    means = resampled_means([mine, vote, oracle], seed)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        shares = (means[0] - means[1]) / (means[2] - means[1])
    low, high = percentile_interval(numpy.where(numpy.isfinite(shares), shares, numpy.nan))
    return f"{100 * (mean(mine) - mean(vote)) / gap:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"


def auc(right, scores):
    """How often a right answer of the prompt scores above a wrong one; ties count half. None where all are alike."""
    good = [score for is_right, score in zip(right, scores) if is_right]
    bad = [score for is_right, score in zip(right, scores) if not is_right]
    if not good or not bad:
        return None
    return sum((g > b) + 0.5 * (g == b) for g in good for b in bad) / (len(good) * len(bad))


def calibration(problems, name):
    """(mean score, share right, count) of the non-empty tenths of the scores' range."""
    bins = [[] for _ in range(BINS)]
    for problem in problems:
        for is_right, score in zip(problem.right, problem.scores[name]):
            bins[min(int(score * BINS), BINS - 1)].append((score, is_right))
    full = [list(zip(*entries)) for entries in bins if entries]
    return [(sum(scores) / len(scores), sum(right) / len(right), len(right)) for scores, right in full]


def expected_error(bins):
    """The expected calibration error."""
    num = sum(count for _, _, count in bins)
    return sum(count * abs(score - share) for score, share, count in bins) / num


def scorer_table(group, problems, seed):
    """How well each scorer tells right from wrong, and how far it can be believed."""
    rows = []
    mixed = [problem for problem in problems if 0 < sum(problem.right) < len(problem.right)]
    for name in problems[0].scores:
        of_prompt = [[auc(problem.right, problem.scores[name])] for problem in mixed]
        base = [[auc(problem.right, problem.likelihood)] for problem in mixed]
        squares = [[(s - r) ** 2 for s, r in zip(p.scores[name], p.right)] for p in problems]
        rows.append(
            [
                name,
                points(mean(of_prompt), *interval(of_prompt, seed)) if mixed else "-",
                paired(of_prompt, base, seed) if mixed and name != LIKELIHOOD else "-",
                f"{expected_error(calibration(problems, name)):.3f}",
                "{:.3f} ({:.3f} to {:.3f})".format(mean(squares), *interval(squares, seed)),
            ]
        )
    share = mean([problem.right for problem in problems])
    head = ["scorer", "AUC within a prompt, %", "to likelihood, points", "ECE", "Brier"]
    title = f"{group}: scorers, {len(mixed)} prompts with right and wrong answers"
    lines = table(title, head, rows)
    return [*lines, f"Brier score of saying {share:.3f} always: {share * (1 - share):.3f}", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", required=True, nargs="+", metavar="FILE")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="K", help="answers to choose from")
    parser.add_argument("--subsets", type=int, default=20, metavar="N", help="random subsets of each size")
    parser.add_argument("--reference", default=VOTE, metavar="CHOOSER", help="compared with, by default vote")
    parser.add_argument(
        "--mean", type=named_mean, action="append", default=[], metavar="NAME=SCORER,SCORER", help="also their mean"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the subsets and intervals")
    parser.add_argument("--reliability", metavar="PNG", help="draw how often answers are right over their scores")
    args = parser.parse_args()
    problems = read_answers(args.answers)
    for name, scorers in args.mean:
        add_mean(problems, name, scorers)
    num_answers = sorted(len(problem.right) for problem in problems)
    sizes = [size for size in sorted(set(args.sizes)) if 0 < size <= num_answers[-1]] or [num_answers[-1]]
    if args.reference not in outcomes(problems[0], [0]):
        sys.exit(f"there is no chooser {args.reference!r}; there are {', '.join(outcomes(problems[0], [0]))}")
    lines = []
    for group, part in grouped(problems, lambda problem: {"group": problem.group}).items():
        by_size = {size: measured(part, size, args.subsets, args.seed) for size in sizes}
        lines += choice_tables(group, by_size, args.reference, args.seed)
        lines += scorer_table(group, part, args.seed)
    fewer = sum(num < sizes[-1] for num in num_answers)
    lines.append(f"{fewer} of {len(problems)} problems have fewer than {sizes[-1]} answers; they give all they have.")
    print("\n".join(lines))
    if args.reliability:
        plots.reliability(args.reliability, {name: calibration(problems, name) for name in problems[0].scores})


if __name__ == "__main__":
    main()
