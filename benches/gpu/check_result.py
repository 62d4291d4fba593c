#!/usr/bin/env python3
"""The parts of a GPU check as one JSON object: `check_result.py LOGS`."""

import json
import pathlib
import re
import sys


def json_lines(path):
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{")]


def tests(path):
    """Passed and failed tests of a log of Rust's test harness."""
    text = path.read_text() if path.exists() else ""
    found = re.findall(r"(\d+) passed; (\d+) failed", text)
    return {"passed": sum(int(p) for p, _ in found), "failed": sum(int(f) for _, f in found),
            "names": re.findall(r"^test (\S+) \.\.\. FAILED", text, re.M)}


def ponder_rows(logs):
    """`ponder bench engine --json`, as rows like those of the peers."""
    for path in sorted(logs.glob("ponder-*.log")):
        text = path.read_text()
        if "{" not in text:
            continue
        try:
            run = json.loads(text[text.index("{"):])
        except ValueError:
            continue
        name = path.stem.removeprefix("ponder-")
        shape, _, weights = name.partition("-")
        row = {"engine": "ponder", "shape": shape, "weights": weights or "bf16"}
        if run.get("prefill"):
            yield dict(row, prefill=run["prefill"]["tokens"], tokens_per_second=run["prefill"]["median"])
        for one in run["decode"]:
            yield dict(row, batch=one["batch"], context=512, tokens_per_second=one["median"])


def main():
    logs = pathlib.Path(sys.argv[1])
    rows = list(ponder_rows(logs))
    for path in sorted(logs.glob("transformers-*.log")):
        rows += json_lines(path)
    key = lambda row: tuple(row.get(field) for field in ("shape", "weights", "prefill", "batch"))
    ours = {key(row): row["tokens_per_second"] for row in rows if row["engine"] == "ponder"}
    for row in rows:
        if row["engine"] != "ponder" and key(row) in ours:
            row["ponder_ratio"] = ours[key(row)] / row["tokens_per_second"]
    exactness = logs / "exactness.json"
    print(json.dumps({
        "parts": json_lines(logs / "parts.jsonl"),
        "kernels": tests(logs / "kernels.log"),
        "warpgroups": tests(logs / "warpgroups.log"),
        "conformance": tests(logs / "conformance.log"),
        "exactness": json.loads(exactness.read_text()) if exactness.exists() else None,
        "device": (logs / "device.log").read_text().splitlines() if (logs / "device.log").exists() else [],
        "speed": rows,
    }, indent=1))


if __name__ == "__main__":
    main()
