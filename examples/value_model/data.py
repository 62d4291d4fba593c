"""Training examples from rows of `ponder traces export --format step_values`.

A row is one branch of a searched tree: the prompt, the steps, and what is known of each step. Rows of one prompt become a
Group: the trainer computes the prompt once for all of its answers, and metrics compare answers within a prompt.
"""

import hashlib
import json
import random
from dataclasses import dataclass, field

# Share of the prompts that is only measured on.
HELD_OUT = 0.15


@dataclass
class Answer:
    """One answer, or the beginning of one."""

    token_ids: list[int]
    # Of each token: the value that the prefix up to and with this token should have; None where nothing is known.
    targets: list[float | None]
    # Whether the answer ended by itself.
    is_complete: bool
    # 1 where the answer is right, 0 where it is not, None of the beginning of an answer.
    outcome: float | None
    text: str
    # Mean log-probability of the tokens under the policy, where the row has one.
    mean_logprob: float | None


@dataclass
class Group:
    """All answers to one prompt."""

    key: str
    prompt_token_ids: list[int]
    tags: list[str]
    answers: list[Answer] = field(default_factory=list)

    def is_mixed(self):
        """Whether there is something to choose between."""
        return len({answer.outcome for answer in self.answers if answer.outcome is not None}) > 1


def read_rows(paths):
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)


def targets_of(row, target):
    """The target of each token of a row's steps.

    `values`: a step's last token has the step's value (the quality value that ReST-MCTS* infers, or a roll-out estimate),
    the tokens within a step nothing. `outcome`: each token has the whole answer's outcome, as the token-level verifiers
    of Cobbe et al. (arXiv 2110.14168, section 4.2): its mean over answers is the probability that a prefix ends well.
    """
    targets = []
    for token_ids, value in zip(row["token_ids"], row["values"]):
        if target == "outcome":
            targets += [row.get("outcome")] * len(token_ids)
        elif token_ids:
            targets += [None] * (len(token_ids) - 1) + [value]
    return targets


def read_groups(paths, tokenizer, target):
    """Groups by prompt. Rows without token ids (of another model's traces) are tokenised here."""
    groups = {}
    end_id = tokenizer.eos_token_id
    for row in read_rows(paths):
        if "messages" in row:
            row["prompt"] = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        if not isinstance(row.get("prompt"), str):
            raise SystemExit("rows need a prompt: export with --format step_values")
        has_token_ids = bool(row.get("token_ids"))
        if not has_token_ids:
            row["token_ids"] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in row["completions"]]
        prompt = row.get("prompt_token_ids") or tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        targets = targets_of(row, target)
        token_ids = [token_id for step in row["token_ids"] for token_id in step][: len(targets)]
        is_complete = bool(row.get("is_complete"))
        # The server reads a whole answer at the token that ends it, which the ids of a trace include.
        if is_complete and not has_token_ids:
            token_ids.append(end_id)
            targets.append(row.get("outcome"))
        if not token_ids or all(value is None for value in targets):
            continue
        key = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()
        group = groups.setdefault(key, Group(key, prompt, row.get("tags", [])))
        outcome = row.get("outcome") if len(targets) == len(token_ids) else None
        text = "".join(row["completions"])
        group.answers.append(Answer(token_ids, targets, is_complete, outcome, text, row.get("mean_logprob")))
    return list(groups.values())


def split(groups, held_out=HELD_OUT):
    """Training and held-out groups; a prompt is on the same side in every run."""
    limit = int(held_out * 2**32)
    is_held_out = [int(group.key[:8], 16) < limit for group in groups]
    return [g for g, out in zip(groups, is_held_out) if not out], [g for g, out in zip(groups, is_held_out) if out]


def balanced(group, most, rng):
    """At most `most` different answers of a group, as many right as wrong ones where there are both."""
    unique = list({tuple(answer.token_ids): answer for answer in group.answers}.values())
    rng.shuffle(unique)
    right = [answer for answer in unique if answer.outcome == 1]
    rest = [answer for answer in unique if answer.outcome != 1]
    half = most // 2
    num_right = min(len(right), max(half, most - len(rest)))
    chosen = right[:num_right] + rest[: most - num_right]
    rng.shuffle(chosen)
    return chosen


def epoch(groups, most, seed):
    """(group, answers) of one pass in a random order. Where all answers are right or all are wrong there is nothing to
    choose between: a third of `most` says enough."""
    rng = random.Random(seed)
    order = list(groups)
    rng.shuffle(order)
    return [(group, balanced(group, most if group.is_mixed() else max(1, most // 3), rng)) for group in order]
