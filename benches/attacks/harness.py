"""What the attacks share: a server that is started and watched, clients, and rows of the table. Linux only (`/proc`)."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

# Three tenants: two that attack and one that wants to be served.
KEYS = ("attacker-one", "attacker-two", "neighbour")
ATTACKER, SECOND_ATTACKER, NEIGHBOUR = KEYS
START_SECONDS = 90
PROBE_SECONDS = 0.05
# A probe that waits this long is counted with this latency.
PROBE_TIMEOUT = 120
MIB = 1 << 20
# The wrapper takes limits and makes the kernel end the server, and nobody else, when memory runs out.
WRAPPER = 'echo 1000 > /proc/self/oom_score_adj; ulimit -v "$1"; ulimit -n "$2" 2>/dev/null; shift 2; exec "$@"'


class CannotRun(Exception):
    """The attack could not be carried out here; its row says why."""


@dataclass
class Row:
    """One line of the table. `held` is None when the attack could not be carried out."""

    attack: str
    measured: str
    held: bool | None
    criterion: str
    details: dict = field(default_factory=dict)

    def verdict(self):
        return {True: "held", False: "fell", None: "not run"}[self.held]


@dataclass
class Reply:
    """An answer; status 0 means that none came and `error` says why."""

    status: int
    seconds: float
    body: bytes = b""
    error: str = ""

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            return {}

    def text(self):
        """One short line for a table."""
        return f"{self.status or self.error} in {self.seconds:.2f} s"


def encode(body):
    """A body as bytes; texts and bytes pass as they are."""
    if isinstance(body, str):
        return body.encode()
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def headers_of(key, extra=None):
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {**headers, **(extra or {})}


def call(port, method, path, body=None, key=ATTACKER, timeout=300, headers=None):
    """One request on a connection of its own."""
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    data = None if body is None else encode(body)
    try:
        try:
            connection.request(method, path, data, headers_of(key, headers))
        except (BrokenPipeError, ConnectionResetError):
            # A server may answer and close before it has read the whole body.
            pass
        answer = connection.getresponse()
        content = answer.read()
        return Reply(answer.status, time.monotonic() - started, content)
    except (OSError, http.client.HTTPException) as error:
        return Reply(0, time.monotonic() - started, error=type(error).__name__)
    finally:
        connection.close()


def raw_request(port, method, path, body, key, extra=""):
    """A connected socket that has sent a request and waits."""
    data = encode(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(head.encode() + data)
    return connection


def has_flag(binary, flag):
    """Whether `ponder serve` knows a flag."""
    said = subprocess.run([binary, "serve", "--help"], capture_output=True, text=True)
    return flag in said.stdout


class Server:
    """A server on a free port with a folder of its own, which is removed at the end. A context manager."""

    def __init__(self, binary, model, args=(), memory_gib=12, descriptors=20000, folder=None, kv="1G", traces=True):
        self.binary, self.model, self.kv = str(binary), str(model), kv
        self.args, self.traces = list(args), traces
        self.memory_kib = memory_gib << 20 if memory_gib else "unlimited"
        self.descriptors = descriptors
        self.owns_folder = folder is None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="ponder-attack-"))
        self.process, self.port, self.lines = None, None, []
        # Resident bytes while it started.
        self.start_peak = 0

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends it and removes its folder."""
        self.kill()
        if self.owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def trace_db(self):
        return self.folder / "traces.db"

    def command(self):
        command = [self.binary, "serve", self.model, "--port", "0", "--kv-cache-memory", self.kv]
        for key in KEYS:
            command += ["--api-key", key]
        command += ["--trace-db", str(self.trace_db)] if self.traces else ["--no-traces"]
        return command + self.args

    def start(self, must=True):
        """Starts it and waits until it serves. With `must` false, a server that ends is left as it is."""
        wrapped = ["bash", "-c", WRAPPER, "bash", str(self.memory_kib), str(self.descriptors)] + self.command()
        scratch = self.folder / "tmp"
        scratch.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PONDER_")}
        if "PONDER_HOME" in os.environ:
            environment["PONDER_HOME"] = os.environ["PONDER_HOME"]
        environment["TMPDIR"] = str(scratch)
        self.lines, self.port = [], None
        self.process = subprocess.Popen(
            wrapped, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        ready = threading.Event()
        threading.Thread(target=self._read_stderr, args=(self.process, ready), daemon=True).start()
        until = time.monotonic() + START_SECONDS
        while not ready.wait(0.02) and self.process.poll() is None and time.monotonic() < until:
            self.start_peak = max(self.start_peak, self.memory("VmHWM"))
        if self.port is None and must:
            self.kill()
            raise CannotRun("the server did not start: " + " ".join(self.lines[-3:])[:300])
        return self.port is not None

    def _read_stderr(self, process, ready):
        for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            self.lines.append(text)
            found = re.search(r"on http://[^ ]*:(\d+)", text)
            if found and self.port is None:
                self.port = int(found[1])
                ready.set()

    def kill(self):
        """SIGKILL, as a power switch."""
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait()

    def stop(self):
        """SIGTERM, and SIGKILL for one that does not go."""
        self.process.terminate()
        try:
            self.process.wait(45)
        except subprocess.TimeoutExpired:
            self.kill()

    def is_alive(self):
        return self.process.poll() is None

    def ends_within(self, seconds):
        """Whether the process is over, or soon."""
        try:
            self.process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            return False

    def ending(self):
        """How it ended, in words; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        # A shell that became the server reports a signal as a negative code to its parent.
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"

    def post(self, path, body, key=ATTACKER, timeout=300, headers=None):
        return call(self.port, "POST", path, body, key, timeout, headers)

    def get(self, path, key=ATTACKER, timeout=60):
        return call(self.port, "GET", path, None, key, timeout)

    def post_and_leave(self, path, body, seconds, key=ATTACKER):
        """Sends a request and closes the connection after so many seconds."""
        connection = raw_request(self.port, "POST", path, body, key)
        time.sleep(seconds)
        connection.close()

    def memory(self, name):
        """A size of `/proc/PID/status` in bytes, as VmRSS or VmHWM; 0 when the process is gone."""
        return status_number(self.process.pid, name) * 1024

    def reset_peak(self):
        """Lets VmHWM count from what is resident now."""
        try:
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        except OSError:
            pass

    def cpu_seconds(self):
        """User and system time of the server itself, without its children."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def bytes_read(self):
        """Bytes that it has read from anything so far."""
        try:
            return int(re.search(r"rchar: (\d+)", Path(f"/proc/{self.process.pid}/io").read_text())[1])
        except OSError:
            return 0

    def children(self):
        """Process ids of its children: verifications that run."""
        return [pid for pid in all_pids() if status_number(pid, "PPid") == self.process.pid and not is_zombie(pid)]


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def status_number(pid, name):
    """The first number of a line of `/proc/PID/status`, 0 when there is none."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def completion(port, max_tokens=16, key=NEIGHBOUR, timeout=PROBE_TIMEOUT):
    """The neighbour's plain request."""
    body = {"prompt": "The capital of France is", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return call(port, "POST", "/v1/completions", body, key, timeout)


class Watch:
    """Asks for `/health` every 50 ms, and as a neighbour for 16 tokens, while the block inside runs.

    `health` and `neighbour` are the longest latencies in seconds; what is still unanswered at the end is waited for.
    """

    def __init__(self, server, settle=0.5, with_neighbour=True):
        self.server, self.settle, self.with_neighbour = server, settle, with_neighbour
        self.health = self.neighbour = 0.0
        self.num_health = self.num_neighbour = self.failures = 0
        self.peak_before = 0
        self.done = threading.Event()

    def __enter__(self):
        self.server.reset_peak()
        self.rss_before = self.server.memory("VmRSS")
        loops = [self._ask_health] + [self._ask_completion] * self.with_neighbour
        self.threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        time.sleep(self.settle)
        self.done.set()
        for thread in self.threads:
            thread.join(PROBE_TIMEOUT + 5)
        self.rss_added = max(0, self.server.memory("VmHWM") - self.rss_before)

    def _ask_health(self):
        while not self.done.is_set():
            reply = call(self.server.port, "GET", "/health", None, None, PROBE_TIMEOUT)
            self.health = max(self.health, reply.seconds)
            self.num_health += 1
            self.failures += reply.status != 200
            self.done.wait(PROBE_SECONDS)

    def _ask_completion(self):
        while not self.done.is_set():
            reply = completion(self.server.port)
            self.neighbour = max(self.neighbour, reply.seconds)
            self.num_neighbour += 1
            self.failures += reply.status != 200
            self.done.wait(0.1)

    def text(self):
        told = f"/health at most {self.health:.2f} s"
        if self.with_neighbour:
            told += f", a neighbour's 16 tokens at most {self.neighbour:.2f} s"
        return told

    def numbers(self):
        """For the JSON: seconds, counts and MiB."""
        return {
            "health_max_s": round(self.health, 3),
            "neighbour_max_s": round(self.neighbour, 3),
            "num_health": self.num_health,
            "num_neighbour": self.num_neighbour,
            "failures": self.failures,
            "rss_added_mib": self.rss_added // MIB,
        }


def together(calls):
    """Runs functions at once, each in a thread, and returns what they returned, in order."""
    results = [None] * len(calls)

    def run(index, function):
        results[index] = function()

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def available_gib():
    """Memory that can be used now."""
    found = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
    return int(found[1]) / (1 << 20)
