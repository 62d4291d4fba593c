"""A load as people make it, from one seed: conversations with ShareGPT's lengths, begun by a
Poisson process, each turn sending the whole history; and what counts of the answers. Pure: no
clock and no network.

Lengths are log-normal. Means of prompts and answers are those of ShareGPT in the vLLM paper (Kwon
et al. 2023, figure 11: 161.31 and 337.99 tokens). A conversation has 5.75 turns on average, and
73 % of them have more than one (Gao et al. 2024, "Cost-Efficient Large Language Model Serving for
Multi-turn Conversations with CachedAttention"), which fixes the spread of turns. The papers give no
spread of lengths: the ones here are chosen (medians of 78 and 205 tokens).
"""

import math
import random
from dataclasses import dataclass, field

PROMPT_MEAN, PROMPT_SIGMA = 161.31, 1.2
ANSWER_MEAN, ANSWER_SIGMA = 337.99, 1.0
TURNS_MEAN, TURNS_SIGMA = 5.75, 1.137
# What a chat template and rounding may add to a turn.
TURN_MARGIN = 16
# Tokens of a word of this repository's texts, on average, in the vocabularies of the catalogue.
TOKENS_PER_WORD = 1.6
PERCENTILES = [50, 95, 99]


@dataclass
class Turn:
    prompt: str
    answer_tokens: int
    # Seconds that the user reads and types before this turn.
    think_seconds: float


@dataclass
class Conversation:
    # Seconds from the load's start.
    arrival: float
    turns: list


@dataclass
class Answer:
    """What one turn saw. Times are seconds; `ttft` is None where no token came."""

    ttft: float | None = None
    gaps: list = field(default_factory=list)
    num_tokens: int = 0
    prompt_tokens: int = 0
    error: str | None = None


def log_normal(dice, mean, sigma):
    """A log-normal number of that mean, at least one."""
    return max(1, round(dice.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)))


def text(dice, words, num_tokens):
    """A run of about `num_tokens` tokens of consecutive words, which differ from any other's."""
    count = max(1, round(num_tokens / TOKENS_PER_WORD))
    start = dice.randrange(len(words))
    chosen = [words[(start + i) % len(words)] for i in range(count)]
    return f"[{dice.randrange(10**6)}] " + " ".join(chosen)


def conversation(dice, words, arrival, max_len, think_mean):
    """Turns until ShareGPT's number is reached or the context is full."""
    turns, used = [], 0
    for _ in range(log_normal(dice, TURNS_MEAN, TURNS_SIGMA)):
        prompt_tokens = log_normal(dice, PROMPT_MEAN, PROMPT_SIGMA)
        answer_tokens = log_normal(dice, ANSWER_MEAN, ANSWER_SIGMA)
        prompt_tokens = min(prompt_tokens, max_len // 4)
        answer_tokens = min(answer_tokens, max_len // 4)
        # The estimate of a prompt's tokens may be half of the truth.
        used += 2 * prompt_tokens + answer_tokens + TURN_MARGIN
        if used > max_len and turns:
            break
        think = dice.expovariate(1 / think_mean) if turns and think_mean > 0 else 0.0
        turns.append(Turn(text(dice, words, prompt_tokens), answer_tokens, think))
    return Conversation(arrival, turns)


def conversations(seed, words, rate, seconds, max_len, think_mean=0.0):
    """Those that begin within `seconds`, `rate` a second on average."""
    dice = random.Random(seed)
    found, at = [], 0.0
    while True:
        at += dice.expovariate(rate)
        if at > seconds:
            return found
        found.append(conversation(dice, words, at, max_len, think_mean))


def percentile(values, share):
    """By linear interpolation between the closest ranks, as numpy does; None of no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def percentiles(values):
    return {f"p{share}": percentile(values, share) for share in PERCENTILES}


def is_good(answer, ttft_bound, gap_bound):
    """Whether it was whole, began soon enough, and flowed: 95 % of its gaps within the bound."""
    if answer.error is not None or answer.ttft is None or answer.ttft > ttft_bound:
        return False
    return not answer.gaps or percentile(answer.gaps, 95) <= gap_bound


def summary(answers, seconds, ttft_bound, gap_bound):
    """Figures of a run that sent turns for `seconds`. What failed or was cut off counts as sent."""
    errors = {}
    for answer in answers:
        if answer.error is not None:
            errors[answer.error] = errors.get(answer.error, 0) + 1
    good = sum(is_good(answer, ttft_bound, gap_bound) for answer in answers)
    return {
        "requests": len(answers),
        "errors": errors,
        "ttft": percentiles([a.ttft for a in answers if a.ttft is not None]),
        "gap": percentiles([gap for a in answers for gap in a.gaps]),
        "tokens_per_second": sum(a.num_tokens for a in answers) / seconds,
        "prompt_tokens": sum(a.prompt_tokens for a in answers),
        "goodput": good / seconds,
        "good_share": good / len(answers) if answers else None,
    }
