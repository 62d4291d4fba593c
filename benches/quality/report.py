"""The tables of a run: how often each arm is right, at what cost, with intervals over problems and seeds."""

import sys

import plots
from arms import GREEDY
from grading import graded
from intervals import interval, mean, share_interval
from records import latest, read_lines, read_problems

NOTES = """\
Intervals: 95 %, hierarchical bootstrap: problems are resampled, then the seeds of each; differences
are paired by problem and seed. They say what other problems of these families and other seeds would
change, not what other families would. n: problems x seeds; a fixed arm is asked once and stands for
all seeds. Failed requests count as wrong. Tokens are those generated, discarded branches included;
"scored" are those that a reward's own model ran. Answers/min: of one client that asks one problem
after the other. right/1,000: by generated and scored tokens."""
GROUP_ORDER = ["all", "mix", "seen", "unseen", "gsm", "code", "text"]


class Arm:
    """An arm's results on some problems."""

    def __init__(self, rows, right):
        self.rows = list(rows)
        self.right = {}
        for row in self.rows:
            self.right.setdefault(row["id"], {})[row["seed"]] = float(right[row["arm"], row["id"], row["seed"]])

    def values(self):
        """Whether right, by problem and seed."""
        return [list(of_seeds.values()) for of_seeds in self.right.values()]

    def total(self, number):
        """The sum of a number over all results."""
        return sum(number(row) for row in self.rows)

    def generated(self):
        """Generated tokens."""
        return self.total(lambda row: (row["usage"] or {}).get("completion_tokens", 0))

    def scored(self):
        """Tokens that rewards ran."""
        return self.total(lambda row: (row["search"] or {}).get("scorer_tokens") or 0)

    def discarded(self):
        """Generated tokens that are not in the answer."""
        details = lambda row: (row["usage"] or {}).get("completion_tokens_details") or {}
        return self.total(lambda row: details(row).get("reasoning_tokens") or 0)

    def tokens_each(self):
        """Generated and scored tokens of an answer."""
        return (self.generated() + self.scored()) / len(self.rows)


def differences(arm, reference):
    """By problem, the differences to the reference arm for each seed that both have; fixed arms have every seed."""
    result = []
    for name, mine in arm.right.items():
        theirs = reference.right.get(name, {})
        if None in theirs:
            of_problem = [right - theirs[None] for right in mine.values()]
        elif None in mine:
            of_problem = [mine[None] - right for right in theirs.values()]
        else:
            of_problem = [right - theirs[seed] for seed, right in mine.items() if seed in theirs]
        if of_problem:
            result.append(of_problem)
    return result


def points(value, low, high, sign=""):
    """A share or difference with its interval, in points."""
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def ratio(numerator, denominator, digits):
    """A quotient for the table."""
    return f"{numerator / denominator:.{digits}f}" if denominator else "-"


def difference(arm, reference, seed):
    """The cell of the paired difference."""
    pairs = differences(arm, reference) if reference and arm is not reference else []
    if not pairs:
        return "-"
    of = f", {len(pairs)} problems" if len(pairs) < len(arm.right) else ""
    return points(mean(pairs), *interval(pairs, seed), sign="+") + of


def table_row(name, arm, reference, seed):
    """One arm's line of the table."""
    values, num = arm.values(), len(arm.rows)
    num_right = sum(map(sum, values))
    seconds = arm.total(lambda row: row["seconds"])
    scorer_ms = arm.total(lambda row: (row["search"] or {}).get("scorer_ms", 0))
    generated, scored = arm.generated(), arm.scored()
    seeds = sorted({len(of_seeds) for of_seeds in values})
    cells = [
        name,
        f"{len(values)} x {'-'.join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))}",
        points(mean(values), *share_interval(values, seed)),
        difference(arm, reference, seed),
        ratio(generated, num, 0),
        ratio(scored, num, 0),
        f"{seconds / num:.2f}",
        ratio(60 * num, seconds, 1),
        ratio(1000 * num_right, generated + scored, 2),
        f"{ratio(100 * arm.discarded(), generated, 0)} %" if generated else "-",
        f"{ratio(scorer_ms / 10, seconds, 0)} %" if scorer_ms else "-",
        str(arm.total(lambda row: bool(row["error"]))),
    ]
    return f"| {' | '.join(cells)} |"


def table(title, arms, reference, seed):
    """The lines of one table."""
    head = ["arm", "n", "right, % (95 %)", f"to {reference}, points (95 %)", "tokens", "scored", "s/problem"]
    head += ["answers/min", "right/1,000", "discarded", "scoring", "errors"]
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [table_row(name, arm, arms.get(reference), seed) for name, arm in arms.items()]
    return [*lines, ""]


def family_table(arms, problems):
    """Right answers in percent, by family and arm."""
    asked = {name for arm in arms.values() for name in arm.right}
    families = dict.fromkeys(
        problem["dataset"] for name, problem in problems.items() if name in asked and "dataset" in problem
    )
    lines = ["### families, right in %", "", f"| family | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for family in families:
        cells = []
        for arm in arms.values():
            values = [list(v.values()) for name, v in arm.right.items() if problems[name].get("dataset") == family]
            cells.append(f"{100 * mean(values):.0f}" if values else "-")
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return [*lines, ""] if families else []


def groups_of(problem):
    """The tables that a problem counts in."""
    group = problem.get("group") or problem["kind"]
    return ["all", "mix", group] if group in ("seen", "unseen") else ["all", group]


def arm_order(name):
    """Greedy first, then by series, then by factor."""
    series, factor = plots.series_of(name)
    return name != GREEDY, series, factor


def arms_of(rows, right):
    """The arms by name."""
    names = sorted({row["arm"] for row in rows}, key=arm_order)
    return {name: Arm((row for row in rows if row["arm"] == name), right) for name in names}


def grouped(items, problem_of):
    """Items by group, in order; "mix" and "all" only where they are more than one group."""
    parts = {}
    for item in items:
        for group in groups_of(problem_of(item)):
            parts.setdefault(group, []).append(item)
    if not parts.keys() >= {"seen", "unseen"}:
        parts.pop("mix", None)
    if len(parts.keys() - {"all", "mix"}) == 1 or parts.keys() == {"all", "mix", "seen", "unseen"}:
        del parts["all"]
    return {group: parts[group] for group in GROUP_ORDER if group in parts}


def report(args):
    """Grades what is new and prints the tables."""
    problems = {problem["id"]: problem for problem in read_problems(args.problems, args.limit, args.only_tested)}
    results = {of: row for of, row in latest(read_lines(args.report)).items() if row["id"] in problems}
    if not results:
        sys.exit(f"{args.report} has no results for these problems")
    right = graded(args.report, problems, results)
    groups = grouped(results.values(), lambda row: problems[row["id"]])
    groups = {group: arms_of(rows, right) for group, rows in groups.items()}
    lines = []
    for group, arms in groups.items():
        lines += table(group, arms, args.reference, args.resample_seed)
    if args.families:
        lines += family_table(arms_of(results.values(), right), problems)
    print("\n".join([*lines, NOTES]))
    if args.plot:
        plots.budgets(args.plot, groups, args.resample_seed)
