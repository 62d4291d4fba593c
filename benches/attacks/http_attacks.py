"""Attacks by requests alone: schemas, patterns, long texts, connections that say nothing."""

import re
import socket
import sys
import time

import bodies
from harness import (
    ATTACKER,
    MIB,
    NEIGHBOUR,
    CannotRun,
    Row,
    Server,
    Watch,
    available_gib,
    call,
    completion,
    encode,
    raw_request,
    together,
)

# What others may notice of an attack.
HEALTH_LIMIT = 1.0
# A second of budget, and the time to send, to be scheduled and to answer.
OWN_LIMIT = 1.5
# A neighbour shares two cores with whatever is allowed to run.
NEIGHBOUR_LIMIT = 2.0
# The same beside a search that fills the batch by right.
PLACES_LIMIT = 10.0
RSS_LIMIT = 200 * MIB
# The old server took 6.6 GB for the long prompt.
LONG_PROMPT_GIB = 9
# From the client's end to that of its work.
HANGUP_LIMIT = 1.0
SILENT_SECONDS = 90
NUM_SILENT = 1500


def undisturbed(watch):
    return watch.health <= HEALTH_LIMIT and watch.neighbour <= NEIGHBOUR_LIMIT and watch.failures == 0


def attack_by_scores(setup, name, body, limit_text):
    """Three requests that hang up after 2 s, then one that waits for its answer; a server of its own."""
    with Server(setup.binary, setup.model) as server:
        with Watch(server) as watch:
            together([lambda: server.post_and_leave("/v1/score", body, 2)] * 3)
            own = server.post("/v1/score", body)
        measured = f"own {own.text()}; {watch.text()}"
        held = server.is_alive() and own.status > 0 and own.seconds <= OWN_LIMIT and undisturbed(watch)
        return Row(name, measured, held, limit_text, {**watch.numbers(), "own_s": own.seconds, "status": own.status})


LIMITS = f"own answer within {OWN_LIMIT} s, /health {HEALTH_LIMIT} s, neighbour {NEIGHBOUR_LIMIT} s"


def schema_doubling(setup):
    """A schema of 2.3 KB that takes 2^31 steps to check."""
    return attack_by_scores(setup, "schema_doubling", bodies.schema_score(), LIMITS)


def regex_verifier(setup):
    """A pattern with thousands of states over three long answers."""
    return attack_by_scores(setup, "regex_verifier", bodies.regex_score(), LIMITS)


def watched_search(setup, body, seconds, args=()):
    """What others notice of a search that runs for so long, and the search's answer if it came before."""
    with Server(setup.binary, setup.model, args, kv="2G") as server:
        with Watch(server) as watch:
            own = server.post("/v1/completions", body, timeout=seconds)
        return watch, own


def step_regex(setup):
    """The pattern of a step is matched at every token of 64 branches; beside the same search with a plain delimiter.

    There are more places than branches, so that a neighbour waits for the engine's steps and not for a place; if a step
    of 4,000 tokens is refused, a shorter one is asked for.
    """
    seconds, places = 30, ["--max-num-seqs", "128"]
    for step_tokens in (4000, 1024, 256):
        slow, own = watched_search(setup, bodies.step_regex_beam(step_tokens), seconds, places)
        if own.status != 400:
            break
    plain, _ = watched_search(setup, bodies.plain_beam(step_tokens), seconds, places)
    bound = max(NEIGHBOUR_LIMIT, 2 * plain.neighbour)
    measured = f"steps of {step_tokens}: own {own.text()}; {slow.text()}"
    measured += f"; beside the same search without a pattern {plain.neighbour:.2f} s"
    held = slow.neighbour <= bound and slow.health <= HEALTH_LIMIT
    criterion = f"neighbour within {NEIGHBOUR_LIMIT} s or twice what it waits beside the same search without a pattern"
    details = {"slow": slow.numbers(), "plain": plain.numbers(), "step_tokens": step_tokens}
    return Row("step_regex", measured, held, criterion, details)


def all_places(setup):
    """A sibling: one search with as many branches as the server has places. When does a neighbour get one?"""
    for step_tokens in (4000, 1024, 256):
        watch, own = watched_search(setup, bodies.plain_beam(step_tokens), 60)
        if own.status != 400:
            break
    measured = f"64 branches of {step_tokens} tokens: own {own.text()}; {watch.text()}"
    held = watch.neighbour <= PLACES_LIMIT and watch.health <= HEALTH_LIMIT
    return Row("all_places", measured, held, f"neighbour within {PLACES_LIMIT} s", watch.numbers())


def one_long_prompt(setup, path, data):
    """What one long text costs a fresh server, and whether that is within the limits."""
    with Server(setup.binary, setup.model, memory_gib=LONG_PROMPT_GIB + 2) as server:
        with Watch(server) as watch:
            own = server.post(path, data)
        held = server.is_alive() and own.status > 0 and own.seconds <= OWN_LIMIT
        held = held and watch.health <= HEALTH_LIMIT and watch.rss_added <= RSS_LIMIT
        details = {"status": own.status, "own_s": round(own.seconds, 2), **watch.numbers()}
        return {**details, "ended": server.ending(), "held": held}


def long_prompt(setup):
    """A chat of 15 MB of digits, and a shorter text on every other route that tokenises; a fresh server each."""
    if available_gib() < LONG_PROMPT_GIB:
        raise CannotRun(f"{available_gib():.1f} GiB are available, {LONG_PROMPT_GIB} are needed")
    details = {}
    for name, path, body in bodies.long_prompts():
        details[name] = one_long_prompt(setup, path, encode(body))
        print(f"    {name}: {details[name]}", file=sys.stderr, flush=True)
        if setup.is_quick:
            break
    first = details["chat"]
    worst = max(details, key=lambda name: details[name]["own_s"] * (name != "chat"))
    failed = [name for name, seen in details.items() if not seen["held"]]
    measured = f"chat {first['status']} in {first['own_s']} s, +{first['rss_added_mib']} MiB"
    measured += f"; slowest sibling: {worst} {details[worst]['own_s']} s, +{details[worst]['rss_added_mib']} MiB"
    measured += f"; over a limit: {', '.join(failed) or 'none'} (of {len(details)})"
    criterion = f"every route: own answer within {OWN_LIMIT} s, +{RSS_LIMIT // MIB} MiB, /health {HEALTH_LIMIT} s"
    return Row("long_prompt", measured, not failed, criterion, details)


def open_session(server, key=ATTACKER):
    reply = server.post("/v1/branches", {"prompt": "hi"}, key)
    if "id" not in reply.json():
        raise CannotRun(f"no branch session: {reply.text()} {reply.body[:200]!r}")
    return "/v1/branches/" + reply.json()["id"]


def longest_fork(server, session):
    """Forks the root with 1 MB, or with the longest of some shorter texts that is not refused."""
    for num_bytes in (bodies.FORK_BYTES, 64 << 10, 30_000, 8_000, 2_000):
        fork = server.post(session + "/fork", {"node": 0, "text": bodies.digits(num_bytes)})
        if fork.status == 200:
            return num_bytes, fork.json()["node"]
    raise CannotRun(f"no fork is taken: {fork.text()}")


def fork_text(setup):
    """A fork of 1 MB, then scores of the same node 1,500 times and of 1,500 nodes below it."""
    exact = {"kind": "verifier", "type": "exact", "answer": "1"}
    with Server(setup.binary, setup.model) as server, Watch(server) as watch:
        session = open_session(server)
        num_bytes, node = longest_fork(server, session)
        same = server.post(session + "/score", {"nodes": [node] * bodies.FORK_SCORES, "reward": exact})
        children = []
        for number in range(bodies.FORK_SCORES):
            child = server.post(session + "/fork", {"node": node, "text": f" {number}"})
            children += [child.json()["node"]] if child.status == 200 else []
        below = server.post(session + "/score", {"nodes": children, "reward": exact})
    measured = f"fork of {num_bytes} bytes; the same node {bodies.FORK_SCORES} times: {same.text()}"
    measured += f"; {len(children)} nodes below it: {below.text()}; +{watch.rss_added // MIB} MiB; {watch.text()}"
    held = watch.rss_added <= RSS_LIMIT and watch.health <= HEALTH_LIMIT
    return Row("fork_text", measured, held, f"+{RSS_LIMIT // MIB} MiB, /health {HEALTH_LIMIT} s", watch.numbers())


def running(server):
    """Sequences that the engine runs or has waiting, by its metrics."""
    text = server.get("/metrics").body.decode(errors="replace")
    found = re.findall(r"^ponder_num_requests_(?:running|waiting)\{[^}]*\} (\d+)", text, re.MULTILINE)
    return sum(map(int, found))


def generation_after_hangup(server, body, more):
    """How long the engine works on after the client of a long answer has left."""
    connection = raw_request(server.port, "POST", "/v1/completions", body, ATTACKER)
    connection.sendall(more)
    time.sleep(1)
    connection.close()
    left = time.monotonic()
    while running(server) and time.monotonic() - left < 20:
        time.sleep(0.05)
    return time.monotonic() - left


def hangup_generation(setup):
    """A sibling: the client of a long answer leaves, with and without a second request behind the first."""
    plain = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True}
    search = {**plain, "temperature": 1.0, "search": {"strategy": "best_of_n", "n": 8, "trace": False}}
    lives = {}
    for name, body, more in (
        ("closed", plain, b""),
        ("pipelined", plain, bodies.PIPELINED),
        ("pipelined stream", {**plain, "stream": True}, bodies.PIPELINED),
        ("pipelined search", search, bodies.PIPELINED),
    ):
        with Server(setup.binary, setup.model) as server:
            lives[name] = round(generation_after_hangup(server, body, more), 2)
    measured = "the engine works on for " + ", ".join(f"{seconds} s ({name})" for name, seconds in lives.items())
    held = max(lives.values()) <= HANGUP_LIMIT
    return Row("hangup_generation", measured, held, f"at most {HANGUP_LIMIT} s", lives)


SILENT = {
    "nothing sent": "",
    "half a head": "GET /health HTTP/1.1\r\nHost: x\r\n",
    "no body": f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ATTACKER}\r\nContent-Length: 99\r\n\r\n",
    "idle after an answer": "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
}


def connect_silent(port, number):
    """So many connections, a quarter of each kind; those that are refused count as closed."""
    kinds = list(SILENT.items())
    opened = []
    for index in range(number):
        name, text = kinds[index % len(kinds)]
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=5)
            connection.sendall(text.encode())
            connection.setblocking(False)
        except OSError:
            opened.append((name, None))
            continue
        opened.append((name, connection))
    return opened


def still_open(opened):
    """How many of each kind are open."""
    counts = dict.fromkeys(SILENT, 0)
    for name, connection in opened:
        if connection is not None and not is_closed(connection):
            counts[name] += 1
    return counts


def is_closed(connection):
    """Whether the other side has ended it; what it said before is read and dropped."""
    try:
        while data := connection.recv(65536):
            del data
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def silent_many(setup):
    """1,500 silent connections: others at once, and how many are open after a while."""
    with Server(setup.binary, setup.model) as server:
        opened = connect_silent(server.port, NUM_SILENT)
        with Watch(server, settle=1) as watch:
            seconds = 0
            while sum(still_open(opened).values()) and seconds < SILENT_SECONDS:
                time.sleep(5)
                seconds += 5
        left = still_open(opened)
        for _, connection in opened:
            if connection:
                connection.close()
    return left, seconds, watch


def silent_few_descriptors(setup):
    """300 idle connections where the server has 256 descriptors: what another client gets meanwhile."""
    with Server(setup.binary, setup.model, descriptors=256) as server:
        opened = connect_silent(server.port, 300)
        time.sleep(1)
        health = call(server.port, "GET", "/health", None, None, timeout=10)
        keyed = completion(server.port, timeout=10)
        for _, connection in opened:
            if connection:
                connection.close()
    return health, keyed


def stream_seats(setup):
    """One key follows the trace stream a hundred times; then another wants to."""
    with Server(setup.binary, setup.model) as server:
        readers = []
        for _ in range(100):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            head = "GET /v1/traces/stream?follow=true HTTP/1.1\r\nHost: x\r\n"
            connection.sendall(f"{head}Authorization: Bearer {ATTACKER}\r\n\r\n".encode())
            readers.append(connection)
        time.sleep(1)
        other = server.get("/v1/traces/stream", NEIGHBOUR, timeout=10)
        for connection in readers:
            connection.close()
    return other


def silent_connections(setup):
    """Connections that say nothing: many of them, more than there are descriptors, and all seats of the stream."""
    health, keyed = silent_few_descriptors(setup)
    seats = stream_seats(setup)
    left, seconds, watch = silent_many(setup)
    open_now = sum(left.values())
    measured = f"{open_now} of {NUM_SILENT} open after {seconds} s; with 256 descriptors: /health {health.text()},"
    measured += f" keyed {keyed.text()}; stream of another key {seats.text()}"
    others = health.status == 200 and keyed.status == 200 and seats.status == 200
    held = open_now == 0 and others and watch.health <= HEALTH_LIMIT
    criterion = f"all closed within {SILENT_SECONDS} s; another client gets /health, a completion and a stream"
    return Row("silent_connections", measured, held, criterion, {"open": left, "seconds": seconds, **watch.numbers()})


ATTACKS = [schema_doubling, regex_verifier, step_regex, all_places, long_prompt, fork_text, hangup_generation, silent_connections]
