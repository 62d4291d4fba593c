"""Searches with and without drafts on one server: the same answers, and how long they take.

    ponder serve qwen2.5-coder-0.5b
    python benches/speculative/prompts.py --out prompts.jsonl
    python benches/speculative/search.py --prompts prompts.jsonl

Every prompt is searched once with `speculative: off` and once with each --mode, which take turns in going first. All have the
same seed, so that a different answer would be a bug; the script stops there.
"""

import argparse
import json
import time

import openai

SEARCHES = {
    "best_of_n": {"strategy": "best_of_n", "n": 4, "reward": {"kind": "likelihood"}},
    "beam": {"strategy": "beam", "n": 4, "branch": 2, "reward": {"kind": "likelihood"}},
    "mcts": {"strategy": "mcts", "branch": 3, "reward": {"kind": "likelihood"}, "budget": {"tokens": 600}},
}


def ask(client, model, row, search, mode):
    """The answer, its tokens, and seconds."""
    started = time.monotonic()
    answer = client.chat.completions.create(
        model=model,
        messages=row["messages"],
        max_tokens=row["max_tokens"],
        temperature=0.7,
        seed=1,
        store=False,
        extra_body={"search": search, "speculative": mode},
    )
    return answer.choices[0].message.content, answer.usage, time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--task", default="code")
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--searches", nargs="+", default=list(SEARCHES), choices=SEARCHES)
    parser.add_argument("--modes", nargs="+", default=["auto"])
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.url, api_key="none", timeout=1200)
    model = client.models.list().data[0].id
    with open(args.prompts, encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["task"] == args.task][: args.limit]
    modes = ["off", *args.modes]
    print(f"{model}, {args.task}, {len(rows)} prompts")
    for name in args.searches:
        seconds, tokens, accepted, drafted = ({mode: 0 for mode in modes} for _ in range(4))
        for index, row in enumerate(rows):
            turns = modes[index % len(modes) :] + modes[: index % len(modes)]
            answers = {}
            for mode in turns:
                answers[mode], usage, elapsed = ask(client, model, row, SEARCHES[name], mode)
                details = usage.completion_tokens_details
                seconds[mode] += elapsed
                tokens[mode] += usage.completion_tokens
                accepted[mode] += details.accepted_prediction_tokens
                drafted[mode] += details.accepted_prediction_tokens + details.rejected_prediction_tokens
            if len(set(answers.values())) > 1 or len(set(tokens.values())) > 1:
                raise SystemExit(f"{row['id']}: {name} found another answer with drafts; this is a bug")
        for mode in modes:
            print(
                f"{name:<10} {mode:<14} {tokens[mode] / seconds[mode]:7.1f} tok/s, "
                f"ratio {seconds['off'] / seconds[mode]:.2f}, {accepted[mode]} of {drafted[mode]} draft tokens accepted",
                flush=True,
            )


if __name__ == "__main__":
    main()
