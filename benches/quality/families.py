"""The reasoning-gym families of the quality benchmark: which there are, their sizes, and how test and training items
are drawn apart.

A family is `seen` when training sets may have items of it, and `unseen` when none ever does; those are of other kinds
than the seen ones. `gsm_symbolic` is a seen family and a test set of its own.

What keeps training and test apart, by construction and proved for every family in test_problems.py:

- Seeds. Item i of a family is drawn with the generator seed `first_seed(split, draw, family) + i`; the ranges of test,
  of each training draw and of each family have no seed in common. Problems carry theirs as `generator_seed`.
- Questions. A training item whose question is in the test set is passed over.
- Template values. So is one with the same `template_values` as a test item: what fills the wording of the question.
  In families of numbers those are all numbers, months and weekdays of the question, in any order; so the same numbers
  under another wording, another operator, or with other names and things are the same values. In gsm_symbolic the
  number of the template comes with them. In families of words they are all words and numbers, in any order and case.
  Of number_sequence they are the first four numbers.
"""

import random
import re

TEXT_MESSAGE = '{question}\n\nThink step by step. End with "The answer is X.", where X is only the final answer.'

GSM = "gsm_symbolic"
# The sizes are such that a model of half a billion weights solves a part of each. Without time_intervals, whose
# metadata depend on today's date and whose score forgives minutes, and without the calendar's counting tasks, whose
# score accepts anything where the answer is -1. A family's place gives its seeds: new ones go to the end.
SEEN = {
    "chain_sum": {"min_terms": 2, "max_terms": 5, "min_digits": 1, "max_digits": 3},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 4, "max_digits": 2, "operators": ("+", "-", "*")},
    "gcd": {"min_value": 2, "max_value": 200},
    "fraction_simplification": {"max_value": 40, "max_factor": 20, "styles": ("plain",)},
    "simple_equations": {"min_terms": 2, "max_terms": 3, "max_value": 30},
    "leg_counting": {"min_animals": 2, "max_animals": 4, "max_instances": 9},
    "letter_counting": {"min_words": 2, "max_words": 5},
    "spell_backward": {"min_word_len": 3, "max_word_len": 6},
    "base_conversion": {"min_base": 2, "max_base": 10, "min_value": 2, "max_value": 64},
    "calendar_arithmetic": {"tasks": ["weekday_offset", "weekday_of_date_from_first_date"], "offset_upper_bound": 30},
    "lcm": {"min_value": 2, "max_value": 60},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    "decimal_chain_sum": {
        "min_terms": 2,
        "max_terms": 3,
        "min_digits": 1,
        "max_digits": 2,
        "min_decimal_places": 1,
        "max_decimal_places": 2,
    },
    "prime_factorization": {"min_value": 4, "max_value": 600},
    "number_sequence": {"min_terms": 4, "max_terms": 6, "max_complexity": 2},
    "complex_arithmetic": {"operations": ("+", "-", "*"), "operations_weights": [0.4, 0.4, 0.2]},
    GSM: {},
}
UNSEEN = {
    "simple_geometry": {"max_sides": 5},
    "coin_flip": {"min_trials": 2, "max_trials": 6},
    "aiw": {},
    "family_relationships": {"max_family_size": 6},
    "needle_haystack": {"min_num_statements": 10, "max_num_statements": 20},
    "number_filtering": {"max_numbers": 6, "max_decimals": 1},
    "word_sequence_reversal": {"min_words": 3, "max_words": 6},
}
FAMILIES = SEEN | UNSEEN
# Their template values are all words of the question; the others' are its numbers.
WORD_FAMILIES = {
    "leg_counting",
    "letter_counting",
    "spell_backward",
    "family_relationships",
    "needle_haystack",
    "word_sequence_reversal",
}

# Sequences that begin with the same numbers are the same one, shown to different lengths.
SEQUENCE_START = 4

# How many problems of each family the test sets have.
MIX_ITEMS, GSM_ITEMS = 20, 300
# Seeds: a span for the test sets and for each training draw, in it one for each family.
SPLIT_SPAN, FAMILY_SPAN = 10**9, 10**6
# Draws that are passed over before a family counts as used up.
MAX_DRAWS = 20_000

NAMED_VALUES = (
    "January February March April May June July August September October November December "
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
)
NUMBER = re.compile(rf"\d+(?:\.\d+)?|\b(?:{'|'.join(NAMED_VALUES.split())})\b")
WORD = re.compile(r"[^\W_]+")


class UsedUp(Exception):
    """A family has no more items that differ from those drawn and from the test set's."""


def group(family):
    """The part of the report that a family's problems belong to."""
    if family == GSM:
        return "gsm"
    return "seen" if family in SEEN else "unseen"


def first_seed(split, draw, family):
    """The generator seed of the family's first item. `draw` counts training sets, from 0."""
    if draw < 0:
        raise ValueError("draws count from 0")
    span = 0 if split == "test" else 1 + draw
    return span * SPLIT_SPAN + list(FAMILIES).index(family) * FAMILY_SPAN


def template_values(problem):
    """What fills the template of a problem's question; see above."""
    family, question = problem["dataset"], problem["question"]
    if family in WORD_FAMILIES:
        values = WORD.findall(question.lower())
    else:
        values = NUMBER.findall(question)
    if family == "number_sequence":
        values = values[:SEQUENCE_START]
    return family, problem["metadata"].get("template"), tuple(sorted(values))


def text_problem(family, item, seed):
    """One generated item as a problem."""
    question = item["question"].strip()
    return {
        "id": f"{family}/{seed}",
        "kind": "text",
        "group": group(family),
        "messages": [{"role": "user", "content": TEXT_MESSAGE.format(question=question)}],
        "question": question,
        "answer": item["answer"],
        "dataset": family,
        "generator_seed": seed,
        "metadata": item["metadata"],
        "grade": {"kind": "verifier", "type": "math", "answer": item["answer"]},
    }


def drawn(family, seed):
    """The family's problems from a seed on, without an end that matters."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(family, seed=seed, size=MAX_DRAWS, **FAMILIES[family])
    for index in range(MAX_DRAWS):
        item = dataset[index]
        if family == GSM:
            item["metadata"]["template"] = dataset.task_indices[index]
        yield text_problem(family, item, seed + index)


def test_items(family):
    """The family's test problems: no question twice."""
    num_items = GSM_ITEMS if family == GSM else MIX_ITEMS
    return distinct(drawn(family, first_seed("test", 0, family)), num_items, set(), set())


def train_items(family, num_items, draw):
    """Training problems of a seen family that share nothing with its test problems."""
    if family not in SEEN:
        raise ValueError(f"{family} is held out: no training set has items of it")
    tests = test_items(family)
    questions = {problem["question"] for problem in tests}
    values = {template_values(problem) for problem in tests}
    return distinct(drawn(family, first_seed("train", draw, family)), num_items, questions, values)


def distinct(problems, num_items, questions, values):
    """The first problems with neither these values nor these questions, nor a question twice."""
    kept, questions = [], set(questions)
    for problem in problems:
        if problem["question"] in questions or template_values(problem) in values:
            continue
        questions.add(problem["question"])
        kept.append(problem)
        if len(kept) == num_items:
            return kept
    family = problem["dataset"]
    raise UsedUp(f"{family}: {len(kept)} items differ in {MAX_DRAWS} draws, {num_items} are asked for")


def rounds(columns, seed=0):
    """All problems, a fair share of every column in each round, shuffled within it: so a prefix is a fair sample."""
    rng, num_rounds = random.Random(seed), min(len(column) for column in columns)
    problems = []
    for at in range(num_rounds):
        part = []
        for column in columns:
            start, end = (len(column) * edge // num_rounds for edge in (at, at + 1))
            part += column[start:end]
        rng.shuffle(part)
        problems += part
    return problems


def mix():
    """The test mix: all families but gsm_symbolic."""
    return rounds([test_items(family) for family in FAMILIES if family != GSM])


def gsm_symbolic():
    """The test set of gsm_symbolic."""
    return test_items(GSM)


def training(num_items, num_gsm, draw):
    """A training set: so many items of each seen family, and of gsm_symbolic."""
    counts = {family: num_gsm if family == GSM else num_items for family in SEEN}
    return rounds([train_items(family, count, draw) for family, count in counts.items() if count])
