#!/usr/bin/env python3
"""Attacks a `ponder` binary as a hostile client would, one row at a time, and prints what was measured.

    python benches/attacks/attacks.py --binary target/release/ponder
    python benches/attacks/attacks.py --binary target/release/ponder --only schema_doubling store_bit_flips

Each attack starts a server of its own (port 0, three keys, a folder under the temporary one) and ends it. Linux, Python 3.11
and the model in the cache are all it needs. Nothing is written outside the temporary folder. A server that would take too
much memory is bounded by `ulimit -v` and is the first that the kernel ends.
"""

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import CannotRun, Row

ROOMS = ("http_attacks", "sandbox_attacks", "verification_attacks", "store_attacks", "model_attacks")


@dataclass
class Setup:
    """What every attack is told."""

    binary: str
    model: str
    is_quick: bool


def all_attacks():
    """Every attack by its name, in the order of the table."""
    found = {}
    for room in ROOMS:
        for attack in importlib.import_module(room).ATTACKS:
            found[attack.__name__] = attack
    return found


def run(attack, setup):
    """The row of one attack. A fault of the attack itself is a row that says so."""
    started = time.monotonic()
    try:
        row = attack(setup)
    except CannotRun as reason:
        row = Row(attack.__name__, str(reason), None, "")
    except Exception as error:
        traceback.print_exc()
        row = Row(attack.__name__, f"the attack failed: {error!r}", None, "")
    row.details["attack_seconds"] = round(time.monotonic() - started, 1)
    return row


def table(rows):
    """Markdown, as it goes into a note."""
    lines = ["| attack | measured | held if | verdict |", "|---|---|---|---|"]
    for row in rows:
        cells = [row.attack, row.measured, row.criterion, f"**{row.verdict()}**"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def main():
    attacks = all_attacks()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(attacks), help=", ".join(attacks))
    parser.add_argument("--skip", nargs="+", metavar="NAME", choices=list(attacks), default=[])
    parser.add_argument("--quick", action="store_true", help="leave the siblings out that take minutes")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    setup = Setup(str(Path(args.binary).resolve()), args.model, args.quick)
    rows = []
    for name in args.only or attacks:
        if name in args.skip:
            continue
        rows.append(run(attacks[name], setup))
        row = rows[-1]
        print(f"{row.verdict():8} {name}: {row.measured} ({row.details['attack_seconds']} s)", file=sys.stderr, flush=True)
        if args.json:
            written = [{**asdict(row), "verdict": row.verdict()} for row in rows]
            Path(args.json).write_text(json.dumps({"binary": args.binary, "cores": os.cpu_count(), "rows": written}, indent=1))
    print(table(rows))
    fallen = sum(row.held is False for row in rows)
    print(f"\n{sum(row.held is True for row in rows)} held, {fallen} fell, {sum(row.held is None for row in rows)} not run")
    sys.exit(1 if fallen else 0)


if __name__ == "__main__":
    main()
