"""Every attack over HTTP as a loop of one process: `python loops.py NAME PORT KEY PAUSE_MS`.

Runs until its stdin ends, then prints a JSON object, how often each answer came: a status, `left` (the attack hangs up by
itself), or what went wrong. It runs at nice 19, since real clients are on other machines.
"""

import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter

import bodies
from harness import call, encode, raw_request

# A request that is not answered by then is left.
PATIENCE_SECONDS = 20
NUM_SILENT = 150
NUM_READERS = 40
FLOOD = "while True: print('x' * 65536)"
SLEEP = "import time\ntime.sleep(5)"
THREADS = "import threading, time\nfor _ in range(500): threading.Thread(target=time.sleep, args=(5,)).start()"


class Client:
    """One attacker: where it goes, who it is, and what it has counted."""

    def __init__(self, port, key):
        self.port, self.key, self.counts = port, key, Counter()
        self.held = []

    def post(self, path, body, headers=None):
        """One request to its end."""
        reply = call(self.port, "POST", path, body, self.key, PATIENCE_SECONDS, headers)
        self.counts[str(reply.status or reply.error)] += 1
        return reply

    def leave(self, path, body, seconds, more=b""):
        """One request whose client hangs up after a while."""
        connection = raw_request(self.port, "POST", path, body, self.key)
        with connection:
            connection.sendall(more)
            connection.settimeout(seconds)
            try:
                head = connection.recv(64)
                self.counts[head[9:12].decode(errors="replace") or "closed"] += 1
            except TimeoutError:
                self.counts["left"] += 1

    def hold(self, number, text):
        """Keeps so many connections open that have sent `text`, and opens those again that were closed."""
        kept = [connection for connection in self.held if is_open(connection)]
        self.counts["closed by the server"] += len(self.held) - len(kept)
        while len(kept) < number:
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
            kept.append(connection)
            self.held = kept
            connection.sendall(text.encode())
            connection.setblocking(False)
            self.counts["opened"] += 1
        time.sleep(0.5)


def is_open(connection):
    try:
        while connection.recv(65536):
            pass
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def schema(client):
    client.leave("/v1/score", bodies.schema_score(31), 2)


def schema_waiting(client):
    client.post("/v1/score", bodies.schema_score(27))


def regex(client):
    client.post("/v1/score", bodies.regex_score())


def step_regex(client):
    client.leave("/v1/completions", bodies.step_regex_beam(random.choice((256, 1024, 4000))), 10)


LONG = {}


def long_prompt(client):
    """The texts are written once: a loop of an attacker costs it nothing."""
    if not LONG:
        for name, path, body in bodies.long_prompts():
            LONG[name] = (path, encode(body))
    client.post(*random.choice(list(LONG.values())))


def fork(client):
    """A session with a long fork and nodes below it; given up where a call gets no answer."""
    session = "/v1/branches/" + str(client.post("/v1/branches", {"prompt": "hi", "lease_seconds": 30}).json().get("id"))
    forked = client.post(session + "/fork", {"node": 0, "text": bodies.digits(bodies.FORK_BYTES)})
    node, children = forked.json().get("node", 0), []
    exact = {"kind": "verifier", "type": "exact", "answer": "1"}
    client.post(session + "/score", {"nodes": [node] * bodies.FORK_SCORES, "reward": exact})
    while len(children) < 200:
        child = client.post(session + "/fork", {"node": node, "text": f" {len(children)}"})
        if child.status != 200:
            break
        children.append(child.json()["node"])
    client.post(session + "/score", {"nodes": sorted(set(children)), "reward": exact})
    call(client.port, "DELETE", session, None, client.key, PATIENCE_SECONDS)


def flood(client):
    client.post("/v1/score", bodies.python_score(FLOOD))


def many_threads(client):
    client.post("/v1/score", bodies.python_score(THREADS))


def many_verifications(client):
    client.post("/v1/score", bodies.python_score(SLEEP, num_candidates=50))


def verification_hangup(client):
    client.leave("/v1/score", bodies.python_score(SLEEP, num_candidates=4), 1, bodies.PIPELINED)


def deadline(client):
    body = bodies.python_score(SLEEP, num_candidates=4)
    client.post("/v1/score", body, {"Request-Timeout-Ms": "1500"})


def silent(client):
    client.hold(NUM_SILENT, "")


def half_heads(client):
    client.hold(NUM_SILENT, "POST /v1/completions HTTP/1.1\r\nHost: x\r\n")


def no_bodies(client):
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\nContent-Length: 99\r\n\r\n"
    client.hold(NUM_SILENT, head)


def stream_seats(client):
    head = f"GET /v1/traces/stream?follow=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n\r\n"
    client.hold(NUM_READERS, head)


def beam(client):
    """Not an attack: a wide search with nothing wrong in it."""
    client.post("/v1/completions", bodies.beam({"delimiter": "\n", "max_tokens": 64}, 256, n=16, seed=random.randrange(999)))


def best_of_n(client):
    """Not an attack either."""
    search = {"strategy": "best_of_n", "n": 16, "trace": False}
    client.post("/v1/completions", {"prompt": "Once", "max_tokens": 128, "temperature": 1.0, "search": search})


ATTACKS = [schema, schema_waiting, regex, step_regex, long_prompt, fork, flood, many_threads, many_verifications]
ATTACKS += [verification_hangup, deadline, silent, half_heads, no_bodies, stream_seats]
HEAVY = [beam, best_of_n]
LOOPS = {loop.__name__: loop for loop in ATTACKS + HEAVY}


def main():
    name, port, key, pause_ms = sys.argv[1:]
    os.nice(19)
    client, done = Client(int(port), key), threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    while not done.is_set():
        try:
            LOOPS[name](client)
        except OSError as error:
            client.counts[type(error).__name__] += 1
        done.wait(float(pause_ms) / 1000)
    print(json.dumps(client.counts), flush=True)
    # The thread that waits for stdin must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
