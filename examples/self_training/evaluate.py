"""Step 4: how many of the held-out problems each model answers right, greedily, and the difference to the first one.

    python evaluate.py --models qwen2.5-coder-0.5b sums-1 sums-2 --out results.json

Results of models that are in the file already are kept: a model that changed under its old name needs a new file.
"""

import argparse
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

import problems
from search import client

RESAMPLES = 10_000
Z95 = 1.959964


def ask(server, model, problem):
    """One graded answer."""
    answer = server.chat.completions.create(
        model=model, messages=problem.messages(), max_tokens=problems.MAX_TOKENS, temperature=0
    )
    text = answer.choices[0].message.content or ""
    tokens = answer.usage.completion_tokens
    return {"id": problem.id, "is_right": problem.is_right(text), "tokens": tokens, "text": text}


def evaluate(server, model, drawn, concurrency):
    """The graded answers of one model."""
    started, answers = time.monotonic(), []
    with ThreadPoolExecutor(concurrency) as pool:
        for answer in pool.map(lambda problem: ask(server, model, problem), drawn):
            answers.append(answer)
            if len(answers) % 50 == 0 or len(answers) == len(drawn):
                num_right = sum(answer["is_right"] for answer in answers)
                seconds = time.monotonic() - started
                print(f"{model}: {num_right} of {len(answers)} right, {seconds:.0f} s", flush=True)
    return answers


def wilson(num_right, num):
    """The 95 % interval of a share."""
    share, square = num_right / num, Z95 * Z95
    centre = (share + square / (2 * num)) / (1 + square / num)
    half = Z95 / (1 + square / num) * (share * (1 - share) / num + square / (4 * num * num)) ** 0.5
    return [max(0.0, centre - half), min(1.0, centre + half)]


def bootstrap(differences):
    """The 95 % percentile interval of the mean of paired differences."""
    rng, num = random.Random(0), len(differences)
    means = sorted(sum(rng.choices(differences, k=num)) / num for _ in range(RESAMPLES))
    return [means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]]


def summary(answers, reference):
    """One model in numbers, and paired with the reference."""
    right = [answer["is_right"] for answer in answers]
    pairs = [mine - theirs["is_right"] for mine, theirs in zip(right, reference)]
    return {
        "num": len(right),
        "accuracy": sum(right) / len(right),
        "wilson_95": wilson(sum(right), len(right)),
        "mean_tokens": sum(answer["tokens"] for answer in answers) / len(answers),
        "difference": sum(pairs) / len(pairs),
        "bootstrap_95": bootstrap(pairs),
    }


def line(model, numbers, is_reference):
    """The same for a terminal."""
    low, high = numbers["wilson_95"]
    text = f"{model}: {100 * numbers['accuracy']:.1f} % right (95 %: {100 * low:.1f} to {100 * high:.1f})"
    text += f", {numbers['mean_tokens']:.0f} tokens an answer"
    if not is_reference:
        low, high = numbers["bootstrap_95"]
        text += f", {100 * numbers['difference']:+.1f} points (95 %: {100 * low:+.1f} to {100 * high:+.1f})"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--models", nargs="+", required=True, help="the first is what the others are compared with")
    parser.add_argument("--num-problems", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    server, drawn = client(args.url), problems.held_out(args.num_problems)
    ids = [problem.id for problem in drawn]
    results = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}, "answers": {}}
    answers = results["answers"]
    for model in args.models:
        if [answer["id"] for answer in answers.get(model, [])] != ids:
            try:
                answers[model] = evaluate(server, model, drawn, args.concurrency)
            except openai.APIError as error:
                sys.exit(f"{args.url}, model {model}: {error}")
        results["models"][model] = summary(answers[model], answers[args.models[0]])
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    for model in args.models:
        print(line(model, results["models"][model], model == args.models[0]))


if __name__ == "__main__":
    main()
