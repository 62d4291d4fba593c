"""Attacks around the runs of a verifier's programs: clients that leave, queues, deadlines, a server that is killed."""

import socket
import struct
import threading
import time

import bodies
from harness import ATTACKER, NEIGHBOUR, CannotRun, Row, Server, Watch, raw_request

CODE = ["--allow-code-execution"]
# From the client's end to the program's.
HANGUP_LIMIT = 1.0
SLOW_SECONDS = 5
NUM_SLOW = 50
# One program may be running in every place when the neighbour comes.
FAIR_LIMIT = SLOW_SECONDS + 2
DEADLINE_MS = 1500
# A search waits half a second longer for samples that its deadline cuts.
DEADLINE_LIMIT = 2.5
SLEEPING = "import time\ntime.sleep(30)\n"
# An answer of one line behind it is a comment, whatever it says.
SLEEPING_PREFIX = SLEEPING + "#"
ONE_LINE = {"prompt": "x =", "max_tokens": 4, "temperature": 1.0, "seed": 1, "stop": ["\n"]}


def sleeping_reward():
    return {"kind": "verifier", "type": "python", "tests": ["assert True"], "prefix": SLEEPING_PREFIX}


def python_search():
    """A search whose answers are verified by a program that sleeps."""
    search = {"strategy": "best_of_n", "n": 6, "reward": sleeping_reward(), "trace": False}
    return {**ONE_LINE, "search": search}


def open_answers(server):
    """A branch session with some whole answers: its path and their nodes."""
    opened = server.post("/v1/branches", ONE_LINE)
    session = "/v1/branches/" + str(opened.json().get("id"))
    made = server.post(session + "/generate", {"nodes": [0], "n": 6})
    nodes = [node["node"] for node in made.json().get("data") or []]
    if not nodes:
        raise CannotRun(f"no branches: {opened.text()}, {made.text()} {made.body[:200]!r}")
    return session, sorted(set(nodes))


def wait_for(condition, seconds):
    """The seconds until `condition()` holds, or None."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if condition():
            return time.monotonic() - started
        time.sleep(0.01)
    return None


def reset(connection):
    """Ends a connection by RST, as a process that dies with unread data does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def life_after_hangup(server, path, body, leave=socket.socket.close, more=b""):
    """How long programs run on after the client of so many of them has left; `more` is sent behind the request."""
    connection = raw_request(server.port, "POST", path, body, ATTACKER)
    connection.sendall(more)
    if wait_for(lambda: server.children(), 10) is None:
        connection.close()
        raise CannotRun(f"no program was started for {path}")
    time.sleep(0.5)
    leave(connection)
    return wait_for(lambda: not server.children(), 60) or 60.0


def sandbox_hangup(setup):
    """The client leaves while its programs run and wait: by closing, by a reset, from a search, from a session."""
    score = bodies.python_score(SLEEPING, num_candidates=6)
    lives = {}
    with Server(setup.binary, setup.model, CODE) as server:
        lives["score, closed"] = life_after_hangup(server, "/v1/score", score)
        lives["score, reset"] = life_after_hangup(server, "/v1/score", score, reset)
        lives["score, pipelined"] = life_after_hangup(server, "/v1/score", score, more=bodies.PIPELINED)
        lives["search"] = life_after_hangup(server, "/v1/completions", python_search())
        lives["streamed search"] = life_after_hangup(server, "/v1/completions", {**python_search(), "stream": True})
        session, nodes = open_answers(server)
        body = {"nodes": nodes, "reward": sleeping_reward()}
        lives["session"] = life_after_hangup(server, session + "/score", body)
    measured = "programs run on for " + ", ".join(f"{seconds:.2f} s ({name})" for name, seconds in lives.items())
    held = max(lives.values()) <= HANGUP_LIMIT
    return Row("sandbox_hangup", measured, held, f"at most {HANGUP_LIMIT} s", lives)


def sandbox_kill(setup):
    """SIGKILL while programs run: do they end, and are their folders gone after the next start?"""
    with Server(setup.binary, setup.model, CODE) as server:
        body = bodies.python_score(SLEEPING, num_candidates=2)
        connection = raw_request(server.port, "POST", "/v1/score", body, ATTACKER)
        # One key of several has as few as one place.
        if wait_for(lambda: server.children(), 10) is None:
            raise CannotRun("no program was started")
        time.sleep(0.3)
        programs = server.children()
        server.kill()
        connection.close()
        is_gone = lambda: not any(is_program(pid) for pid in programs)
        life = wait_for(is_gone, 30) or 30.0
        before = len(folders(server))
        server.start()
        wait_for(lambda: not folders(server), 5)
        after = folders(server)
    measured = f"programs run on for {life:.2f} s; folders: {before} after SIGKILL, {len(after)} after the next start"
    held = not after and life <= HANGUP_LIMIT
    return Row("sandbox_kill", measured, held, f"no folder left, programs end within {HANGUP_LIMIT} s", {"life_s": life})


def folders(server):
    """Names of what programs left in the server's own temporary folder."""
    return sorted(path.name for path in (server.folder / "tmp").glob("ponder-sandbox-*"))


def is_program(pid):
    """Whether a process still runs and is an interpreter of the sandbox: its id may have become another's."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"-S" in file.read().split(b"\0")
    except OSError:
        return False


def verification_fairness(setup):
    """One key asks for 50 slow verifications, then another for a trivial one."""
    slow = bodies.python_score(f"import time\ntime.sleep({SLOW_SECONDS})")
    with Server(setup.binary, setup.model, CODE) as server:
        replies = []
        asking = lambda: replies.append(server.post("/v1/score", slow))
        threads = [threading.Thread(target=asking, daemon=True) for _ in range(NUM_SLOW)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        refused = sum(reply.status == 429 for reply in replies)
        with Watch(server) as watch:
            # The attacker's are all in one request, as well as many.
            trivial = server.post("/v1/score", bodies.python_score("x = 1"), NEIGHBOUR)
        batch = fairness_of_one_request(setup)
    measured = f"the neighbour's verification {trivial.text()} beside {NUM_SLOW} requests ({refused} refused at once)"
    measured += f", {batch.text()} beside one request of {NUM_SLOW}; {watch.text()}"
    worst = max(trivial.seconds, batch.seconds)
    held = trivial.status == 200 and batch.status == 200 and worst <= FAIR_LIMIT
    return Row("verification_fairness", measured, held, f"within {FAIR_LIMIT} s", {"refused": refused, **watch.numbers()})


def fairness_of_one_request(setup):
    """The neighbour's verification beside one request of 50 answers."""
    slow = bodies.python_score(f"import time\ntime.sleep({SLOW_SECONDS})", num_candidates=NUM_SLOW)
    with Server(setup.binary, setup.model, CODE) as server:
        connection = raw_request(server.port, "POST", "/v1/score", slow, ATTACKER)
        time.sleep(1)
        reply = server.post("/v1/score", bodies.python_score("x = 1"), NEIGHBOUR)
        connection.close()
        return reply


def deadline_scoring(setup):
    """`Request-Timeout-Ms: 1500` with a verifier that sleeps: in a search, in `/v1/score`, in a session."""
    headers = {"Request-Timeout-Ms": str(DEADLINE_MS)}
    replies = {}
    with Server(setup.binary, setup.model, CODE) as server:
        ask = lambda path, body: server.post(path, body, headers=headers)
        replies["search"] = ask("/v1/completions", python_search())
        stream = {**python_search(), "stream": True}
        replies["streamed search"] = ask("/v1/completions", stream)
        replies["score"] = ask("/v1/score", bodies.python_score(SLEEPING, num_candidates=4))
        session, nodes = open_answers(server)
        replies["session"] = ask(session + "/score", {"nodes": nodes, "reward": sleeping_reward()})
        schema = bodies.schema_score(29)
        replies["score by a schema"] = ask("/v1/score", schema)
        replies["two rewards"] = ask("/v1/score", two_rewards())
        left_over = len(server.children())
    measured = ", ".join(f"{name} {reply.text()}" for name, reply in replies.items())
    measured += f"; programs left at once {left_over}"
    held = max(reply.seconds for reply in replies.values()) <= DEADLINE_LIMIT
    return Row("deadline_scoring", measured, held, f"each within {DEADLINE_LIMIT} s of a deadline of {DEADLINE_MS} ms")


def two_rewards():
    """A slow pattern and a sleeping program at once."""
    body = bodies.regex_score(1)
    body["candidates"] = ["a" * 100_000]
    return {**body, "reward": [body["reward"], sleeping_reward()]}


ATTACKS = [sandbox_hangup, sandbox_kill, verification_fairness, deadline_scoring]
