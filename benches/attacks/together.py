#!/usr/bin/env python3
"""All attacks over HTTP at once from two keys, while a third streams plain chats: what does it notice?

    python benches/attacks/together.py --binary target/release/ponder --seconds 60 [--with-search] [--json FILE]

First the third key's requests are measured on the idle server, then as many (and for `--seconds` at least) under attack. Each
attack is a process in a loop for each of the two keys (`loops.py`), at nice 19, because real clients are on other machines; the
server is not niced. `--with-search` measures once more beside searches that have nothing wrong in them. Times are as the client
sees them: to the first token, and from each to the next.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import loops
from harness import ATTACKER, MIB, NEIGHBOUR, SECOND_ATTACKER, Server, headers_of

HERE = Path(__file__).resolve().parent
QUESTIONS = ("What is a monad?", "Name three rivers.", "Why is the sky blue?", "Write a short poem.")
# One request of the third key is given up after this.
CHAT_TIMEOUT = 120
# The last measure of issue 20: p99 under attack over p99 idle.
RATIO_LIMIT = 2.0


def chat(port, number, max_tokens):
    """Streams one answer: seconds to its first token, seconds between tokens, and the status or error."""
    question = QUESTIONS[number % len(QUESTIONS)]
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens, "seed": number}
    body |= {"stream": True, "ignore_eos": True, "temperature": 0.7}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CHAT_TIMEOUT)
    started = last = time.monotonic()
    first, gaps = None, []
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers_of(NEIGHBOUR))
        answer = connection.getresponse()
        if answer.status != 200:
            return None, [], str(answer.status)
        for line in answer:
            if not line.startswith(b"data: {") or not has_text(line[6:]):
                continue
            now = time.monotonic()
            if first is None:
                first = now - started
            else:
                gaps.append(now - last)
            last = now
        return first, gaps, "200" if first is not None else "200 without text"
    except (OSError, http.client.HTTPException) as error:
        return first, gaps, type(error).__name__
    finally:
        connection.close()


def has_text(data):
    """Whether a chunk brings text: the first one only names the role."""
    choices = json.loads(data).get("choices") or [{}]
    return bool((choices[0].get("delta") or {}).get("content"))


def measure(server, num_requests, seconds, max_tokens):
    """Chats one after the other: at least so many, for at least so long; what they saw."""
    firsts, gaps, statuses = [], [], Counter()
    until, number = time.monotonic() + seconds, 0
    limit = time.monotonic() + 10 * max(seconds, 30)
    while server.is_alive() and (number < num_requests or time.monotonic() < until) and time.monotonic() < limit:
        first, between, status = chat(server.port, number, max_tokens)
        firsts += [] if first is None else [first]
        gaps += between
        statuses[status] += 1
        number += 1
        if status not in ("200", "200 without text"):
            time.sleep(0.2)
    return {"first": summary(firsts), "between": summary(gaps), "statuses": dict(statuses)}


def summary(values):
    """Percentiles in milliseconds."""
    if not values:
        return {"p50": None, "p99": None, "max": None, "count": 0}
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    told = {"p50": statistics.median(ordered), "p99": p99, "max": ordered[-1]}
    return {**{name: round(1000 * value, 1) for name, value in told.items()}, "count": len(ordered)}


def start_loops(server, names, pause_ms):
    """A process for each attack and each of the two keys."""
    started = []
    for name in names:
        for key in (ATTACKER, SECOND_ATTACKER):
            command = [sys.executable, str(HERE / "loops.py"), name, str(server.port), key, str(pause_ms)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            started.append((name, process))
    return started


def end_loops(started):
    """Answers by attack. A process that does not end is killed; what it counted is lost."""
    counts = {}
    for _, process in started:
        process.stdin.close()
        process.stdin = None
    until = time.monotonic() + 3 * loops.PATIENCE_SECONDS
    for name, process in started:
        try:
            text, _ = process.communicate(timeout=max(0.1, until - time.monotonic()))
            counts.setdefault(name, Counter()).update(json.loads(text or "{}"))
        except (subprocess.TimeoutExpired, ValueError):
            process.kill()
            process.communicate()
            counts.setdefault(name, Counter())["no report"] += 1
    return {name: dict(count) for name, count in counts.items()}


def under(server, names, args):
    """Measures beside these loops, on a server that has just run idle."""
    server.reset_peak()
    before = server.memory("VmRSS")
    started = start_loops(server, names, args.pause_ms)
    time.sleep(3)
    seen = measure(server, args.requests, args.seconds, args.tokens)
    seen["answers"] = end_loops(started)
    seen["ended"] = server.ending()
    seen["peak_mib"] = server.memory("VmHWM") // MIB
    seen["before_mib"] = before // MIB
    return seen


def ratio(seen, idle, name):
    over, under_it = seen[name]["p99"], idle[name]["p99"]
    return round(over / under_it, 2) if over and under_it else None


def table(idle, phases):
    """Markdown: one line for each measure and each phase."""
    lines = ["| measure | phase | p50 | p99 | max | count | p99 to idle |", "|---|---|---|---|---|---|---|"]
    for name, title in (("first", "time to first token"), ("between", "time between tokens")):
        for phase, seen in {"idle": idle, **phases}.items():
            values = seen[name]
            told = [f"{values[part]} ms" for part in ("p50", "p99", "max")] + [str(values["count"])]
            told.append("" if phase == "idle" else f"{ratio(seen, idle, name)}×")
            lines.append(f"| {title} | {phase} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def report(idle, phases):
    print(table(idle, phases))
    print(f"\nthird key, idle: {idle['statuses']}")
    for phase, seen in phases.items():
        print(f"\n{phase}: third key {seen['statuses']}; server {seen['before_mib']} MiB before, peak {seen['peak_mib']} MiB")
        print(f"server ended: {seen['ended'] or 'no'}")
        for name, counts in seen["answers"].items():
            print(f"  {name}: " + ", ".join(f"{answer} ×{number}" for answer, number in sorted(counts.items())))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=60, help="how long the attack lasts")
    parser.add_argument("--requests", type=int, default=100, help="chats that are measured on the idle server")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pause-ms", type=float, default=50, help="what each loop waits between two attacks")
    parser.add_argument("--without", nargs="+", default=[], choices=[loop.__name__ for loop in loops.ATTACKS])
    parser.add_argument("--only", nargs="+", choices=[loop.__name__ for loop in loops.ATTACKS])
    parser.add_argument("--with-search", action="store_true")
    parser.add_argument("--memory-gib", type=int, default=12, help="address space of the server")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    names = [loop.__name__ for loop in loops.ATTACKS if loop.__name__ not in args.without]
    names = args.only or names
    phases = {}
    flags = ["--allow-code-execution"]
    with Server(Path(args.binary).resolve(), args.model, flags, memory_gib=args.memory_gib) as server:
        measure(server, 3, 0, args.tokens)
        idle = measure(server, args.requests, 0, args.tokens)
        if args.with_search:
            phases["beside searches"] = under(server, [loop.__name__ for loop in loops.HEAVY], args)
        phases["under attack"] = under(server, names, args)
    report(idle, phases)
    attack = phases["under attack"]
    ratios = [ratio(attack, idle, name) for name in ("first", "between")]
    held = attack["ended"] is None and all(value and value <= RATIO_LIMIT for value in ratios)
    held = held and set(attack["statuses"]) == {"200"}
    print(f"\n{'held' if held else 'fell'}: p99 within {RATIO_LIMIT}× of idle under attack, every chat answered, server alive")
    if args.json:
        Path(args.json).write_text(json.dumps({"args": vars(args), "idle": idle, "phases": phases, "held": held}, indent=1))


if __name__ == "__main__":
    main()
