"""Measures how often a server's answers are right, and at what cost, for several ways to ask ("arms").

    python quality.py --url http://127.0.0.1:8000/v1 --problems mix.jsonl gsm.jsonl --arms arms.json \\
        --seeds 1,2,3 --out results.jsonl
    python quality.py --report results.jsonl --problems mix.jsonl gsm.jsonl --plot budgets.png
    python quality.py --outcomes traces.ndjson --problems humaneval.jsonl --out graded.ndjson

arms.py says what an arms file has, asking.py how the arms are interleaved, report.py what the
tables mean. Asking needs Python alone; reports need numpy, and matplotlib for the plot.

A run that was cut off goes on where it stopped: what is in the --out file is not asked again,
unless it failed and --retry-errors is given. A server that cannot be reached ends the run.
PONDER_API_KEY holds the key of a server that asks for one. Answers are graded after the run, with
--report, so that grading does not compete with the server.
"""

import argparse

from arms import GREEDY
from asking import run
from grading import write_outcomes


def seed_list(text):
    """The seeds of "1,2,3"."""
    seeds = [int(part) for part in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError("a seed is named twice")
    return seeds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", required=True, nargs="+", metavar="FILE", help="from problems.py")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems of each file")
    parser.add_argument("--only-tested", action="store_true", help="only problems with public tests")
    asking = parser.add_argument_group("asking")
    asking.add_argument("--url", help="of the server, with /v1")
    asking.add_argument("--arms", metavar="FILE")
    asking.add_argument("--only", nargs="+", metavar="PATTERN", help='only arms with such names, as in "mcts*"')
    asking.add_argument("--seeds", type=seed_list, default=[0], metavar="S,S", help="of the requests; 0 by default")
    asking.add_argument("--out", metavar="FILE", help="results, appended")
    asking.add_argument("--traces", metavar="FILE", help='keep the trees of arms with "return_tree": true')
    asking.add_argument("--greedy", metavar="FILE", help="results that have the greedy arm; --out by default")
    asking.add_argument("--model", help="the server's first by default")
    asking.add_argument("--concurrency", type=int, default=1, metavar="K", help="requests at once; seconds overlap")
    asking.add_argument("--timeout", type=float, default=1800, metavar="S", help="of one request")
    asking.add_argument("--retry-errors", action="store_true", help="ask again what failed")
    asking.add_argument("--outcomes", metavar="TRACES", help="only grade the answers of kept trees into --out")
    asking.add_argument("--only-mixed", action="store_true", help="only trees with right and wrong answers")
    reporting = parser.add_argument_group("reporting")
    reporting.add_argument("--report", metavar="RESULTS")
    reporting.add_argument("--reference", default=GREEDY, metavar="ARM", help="compared with, by default greedy")
    reporting.add_argument("--families", action="store_true", help="also a table of the families")
    reporting.add_argument("--plot", metavar="PNG", help="accuracy over tokens; arms NAME@4x, NAME@8x make a line")
    reporting.add_argument("--resample-seed", type=int, default=0, help="of the intervals")
    args = parser.parse_args()
    if args.report:
        # numpy is needed for this alone.
        from report import report

        report(args)
    elif args.outcomes and args.out:
        write_outcomes(args)
    elif args.url and args.arms and args.out:
        run(args)
    else:
        parser.error("give --url, --arms and --out, or --report, or --outcomes and --out")


if __name__ == "__main__":
    main()
