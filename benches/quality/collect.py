"""Makes the file of sampled answers that choose.py reads.

    python quality.py --outcomes trees.ndjson --problems mix.jsonl --out graded.ndjson
    python collect.py answers --trees graded.ndjson --out answers.jsonl
    python collect.py scores --answers answers.jsonl --problems mix.jsonl --url http://127.0.0.1:8000/v1 \\
        --reward value_model='{"kind": "value_model"}' --out scored.jsonl

`answers` takes the whole answers of graded trees (as kept by quality.py --traces, one or more for a
problem); an answer that was sampled several times counts as often. What the search's own reward
said becomes a score by the name of its kind. `scores` adds what a server's rewards say
(`/v1/score`), and goes on where it stopped: problems in the --out file are not scored again.
"""

import argparse
import json
import sys

from grading import WHOLE, node_texts
from records import Progress, append, open_to_append, read_lines, read_problems
from server import RequestFailed, Server, Unreachable

# Of one call of /v1/score.
MAX_CANDIDATES = 256


def tree_answers(trace):
    """The graded whole answers of a tree, in the order of their samples."""
    texts, lengths = node_texts(trace), []
    kind = ((trace.get("search") or {}).get("reward") or {}).get("kind")
    answers = []
    for node, text in zip(trace["nodes"], texts):
        lengths.append(len(node["token_ids"]) + (lengths[node["parent"]] if node["parent"] is not None else 0))
        if node["end"] not in WHOLE or node.get("outcome") is None or not lengths[-1]:
            continue
        answer = {"text": text, "right": node["outcome"] == 1, "scores": {}}
        answer |= {"num_tokens": lengths[-1], "mean_logprob": node["logprob"] / lengths[-1]}
        # choose.py takes the likelihood from the log-probability.
        if kind not in (None, "likelihood") and node.get("score") is not None:
            answer["scores"][kind] = node["score"]
        paths = [node["branch_path"], *node.get("duplicate_paths", [])]
        answers += [(path, answer) for path in paths]
    return [answer for _, answer in sorted(answers, key=lambda pair: pair[0])]


def write_answers(args):
    """Collects the answers of each problem."""
    by_problem = {}
    for trace in (trace for path in args.trees for trace in read_lines(path)):
        by_problem.setdefault(trace["tags"][0], []).extend(tree_answers(trace))
    with open(args.out, "w", encoding="utf-8") as out:
        for name, answers in by_problem.items():
            append(out, {"id": name, "answers": answers})
    counts = sorted(len(answers) for answers in by_problem.values())
    print(f"{len(counts)} problems with {counts[0]} to {counts[-1]} answers" if counts else "no trees", file=sys.stderr)


def named_reward(text):
    """The name and reward of "NAME={...}"."""
    name, _, reward = text.partition("=")
    try:
        return name, json.loads(reward)
    except json.JSONDecodeError:
        raise argparse.ArgumentTypeError(f'give NAME=JSON, as in vm=\'{{"kind": "value_model"}}\', not {text!r}')


def scores_of(server, problem, texts, reward):
    """One score for each text, by the text; what is the same is asked once."""
    unique = list(dict.fromkeys(texts))
    scores = []
    for start in range(0, len(unique), MAX_CANDIDATES):
        part = unique[start : start + MAX_CANDIDATES]
        data = server.score({"messages": problem["messages"], "candidates": part, "reward": reward})["data"]
        scores += [entry["score"] for entry in sorted(data, key=lambda entry: entry["index"])]
    return dict(zip(unique, scores, strict=True))


def write_scores(args):
    """Adds the rewards' scores to each problem's answers."""
    problems = {problem["id"]: problem for problem in read_problems(args.problems)}
    done = {row["id"] for row in read_lines(args.out)}
    left = [row for row in read_lines(args.answers) if row["id"] not in done]
    if unknown := [row["id"] for row in left if row["id"] not in problems]:
        sys.exit(f"the problems have no {unknown[0]}")
    server, progress = Server(args.url, args.timeout), Progress("scoring", len(left))
    try:
        with open_to_append(args.out) as out:
            for row in left:
                for name, reward in args.reward:
                    texts = [answer["text"] for answer in row["answers"]]
                    scores = scores_of(server, problems[row["id"]], texts, reward)
                    for answer in row["answers"]:
                        answer["scores"][name] = scores[answer["text"]]
                append(out, row)
                progress.step()
    except (Unreachable, RequestFailed) as error:
        sys.exit(f"{error}; the same command goes on from here")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    answers = commands.add_parser("answers", help="from graded trees")
    answers.add_argument("--trees", required=True, nargs="+", metavar="FILE")
    answers.set_defaults(run=write_answers)
    scores = commands.add_parser("scores", help="by a server's rewards")
    scores.add_argument("--answers", required=True, metavar="FILE")
    scores.add_argument("--problems", required=True, nargs="+", metavar="FILE", help="from problems.py")
    scores.add_argument("--url", required=True, help="of the server, with /v1")
    scores.add_argument("--reward", required=True, action="append", type=named_reward, metavar="NAME=JSON")
    scores.add_argument("--timeout", type=float, default=1800, metavar="S", help="of one request")
    scores.set_defaults(run=write_scores)
    for command in (answers, scores):
        command.add_argument("--out", required=True, metavar="FILE")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
