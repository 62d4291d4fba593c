"""Files of JSON lines that grow while a run goes on, and the line that says how far it is."""

import json
import sys
import time
from pathlib import Path


def read_lines(path):
    """The objects of a file of JSON lines; a last line that was cut off does not count."""
    rows = []
    if not Path(path).is_file():
        return rows
    for line in Path(path).read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def open_to_append(path):
    """The file, at the start of a line."""
    path = Path(path)
    is_torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    file = open(path, "a", encoding="utf-8")
    if is_torn:
        file.write("\n")
    return file


def append(file, row):
    """Writes a line so that a crash right after keeps it."""
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


def latest(rows):
    """The newest result of each arm, problem and seed."""
    return {(row["arm"], row["id"], row["seed"]): row for row in rows}


def read_problems(paths, limit=None, only_tested=False):
    """The problems of the files that a run or report is about, the first `limit` of each file."""
    problems = []
    for path in paths:
        if not Path(path).is_file():
            sys.exit(f"there is no file {path}; problems.py makes it")
        rows = [row for row in read_lines(path) if not only_tested or row.get("public_tests")]
        problems += rows[:limit]
    names = {problem["id"] for problem in problems}
    if len(names) < len(problems):
        sys.exit(f"a problem is more than once in {', '.join(map(str, paths))}")
    return problems


class Progress:
    """A line on stderr that says how far the work is."""

    def __init__(self, name, total):
        self.name, self.total = name, total
        self.num_done = self.num_errors = 0
        self.start = time.monotonic()

    def step(self, is_error=False):
        self.num_done += 1
        self.num_errors += is_error
        pace = (time.monotonic() - self.start) / self.num_done
        left = pace * (self.total - self.num_done)
        done = f"{self.num_done}/{self.total}, {self.num_errors} errors"
        text = f"{self.name}: {done}, {pace:.1f} s each, {left:.0f} s left"
        is_last = self.num_done == self.total
        if sys.stderr.isatty():
            print(f"\r{text}\033[K", end="\n" if is_last else "", file=sys.stderr, flush=True)
        elif is_last or self.num_done % 10 == 0:
            print(text, file=sys.stderr, flush=True)
