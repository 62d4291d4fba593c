"""The problems: sums from reasoning-gym, how they are asked, and how answers are graded.

    python problems.py --split train --num 3
"""

import argparse
import re
from dataclasses import dataclass

import reasoning_gym

# Bigger sizes are harder: more terms, more digits.
FAMILY = "chain_sum"
SIZES = {"min_terms": 3, "max_terms": 5, "min_digits": 2, "max_digits": 2}

PROMPT = 'Calculate {} from left to right, one step a line. End with "The answer is N."'
EXAMPLE = ("40 - 64 + 71 - 9", "40 - 64 = -24\n-24 + 71 = 47\n47 - 9 = 38\nThe answer is 38.")
# Tokens of the longest answer.
MAX_TOKENS = 120
ANSWER = re.compile(r"(?i)\banswer is\s*:?\s*(-?\d[\d,]*)")

# Item i of a seed is drawn from seed + i: seeds that lie apart share no items.
HELD_OUT_SEED, SEEDS_APART = 0, 100_000
MAX_HELD_OUT = 500


@dataclass(frozen=True)
class Problem:
    """One question and its right answer."""

    id: str
    expression: str
    entry: dict
    dataset: object

    def messages(self):
        """The chat that asks it, after one example."""
        question, answer = EXAMPLE
        return [
            {"role": "user", "content": PROMPT.format(question)},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": PROMPT.format(self.expression)},
        ]

    def is_right(self, text):
        """Whether an answer's text ends with the right number, in the form that was asked for."""
        found = ANSWER.findall(text)
        return self.dataset.score_answer(found[-1].replace(",", "") if found else None, self.entry) >= 0.99


def draw(name, seed, num):
    """The first problems of a seed."""
    dataset = reasoning_gym.create_dataset(FAMILY, size=num, seed=seed, **SIZES)
    entries = (dataset[index] for index in range(num))
    return [Problem(f"{name}-{i}", entry["metadata"]["expression"], entry, dataset) for i, entry in enumerate(entries)]


def held_out(num):
    """Problems that are only for evaluation, always the same ones."""
    if num > MAX_HELD_OUT:
        raise ValueError(f"there are {MAX_HELD_OUT} held-out problems")
    return draw("held-out", HELD_OUT_SEED, num)


def train(iteration, num):
    """New problems for each iteration, none of them held out."""
    seen = {problem.expression for problem in held_out(MAX_HELD_OUT)}
    drawn = draw(f"train-{iteration}", iteration * SEEDS_APART, 2 * num)
    return [problem for problem in drawn if problem.expression not in seen][:num]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=["train", "held-out"], default="train")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--num", type=int, default=3)
    args = parser.parse_args()
    drawn = held_out(args.num) if args.split == "held-out" else train(args.iteration, args.num)
    for problem in drawn:
        print(f"{problem.id}: {problem.messages()[-1]['content']} ({problem.entry['answer']})")


if __name__ == "__main__":
    main()
