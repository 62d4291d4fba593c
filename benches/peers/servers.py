"""Starts Ponder and llama-server alike, waits until they are ready, and says what memory they
have."""

import ctypes
import mmap
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from peers import Failed

POLL_SECONDS = 0.005
STOP_SECONDS = 20
SMAPS_FIELDS = ["Rss", "Pss", "Pss_Anon", "Pss_File"]


@dataclass
class Setup:
    """What both servers are told."""

    model: str
    file: Path
    threads: int
    # Sequences that are computed at once.
    slots: int
    # Tokens of Ponder's KV cache, which all sequences share, and how many one of them may have.
    kv_tokens: int
    max_len: int
    kv_bytes_per_token: int


# A drafter would find answers easy whose end is ignored: they repeat themselves.
WITHOUT_DRAFTS = ["--speculative", "off"]


def ponder_command(binary, setup, extra=()):
    kv_bytes = setup.kv_tokens * setup.kv_bytes_per_token
    command = [binary, "serve", setup.model, "--threads", setup.threads, "--no-traces"]
    command += ["--max-num-seqs", setup.slots, "--max-model-len", setup.max_len]
    command += ["--kv-cache-memory", kv_bytes, "--log-level", "error"]
    return [*command, *extra]


def llama_command(folder, setup):
    """Each slot has a cache of its own here, as long as a sequence may be: faster than one that all
    share (`-kvu`), whose every step reads over all sequences, and larger."""
    command = [folder / "llama-server", "-m", setup.file, "-t", setup.threads, "-np", setup.slots]
    command += ["-c", setup.slots * setup.max_len, "-no-kvu", "--no-webui", "--log-disable"]
    return command


class Server:
    """A process that serves, from its start to the end of the `with` block."""

    READY = {"Ponder": "/ready", "llama.cpp": "/health"}

    def __init__(self, name, command, timeout):
        self.name, self.timeout = name, timeout
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [str(part) for part in [*command, "--port", self.port]]
        self.process = self.ready_seconds = None
        self.log = tempfile.TemporaryFile()

    def __enter__(self):
        started = time.perf_counter()
        try:
            self.process = subprocess.Popen(
                self.command, stdout=subprocess.DEVNULL, stderr=self.log
            )
        except OSError as error:
            raise Failed(str(error)) from None
        try:
            self.wait_ready(started)
        except Failed:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def wait_ready(self, started):
        while not is_ok(self.url + self.READY[self.name]):
            if self.process.poll() is not None:
                raise Failed(f"{self.name}: the server ended: {self.last_line()}")
            if time.perf_counter() - started > self.timeout:
                raise Failed(f"{self.name}: not ready after {self.timeout} s")
            time.sleep(POLL_SECONDS)
        self.ready_seconds = time.perf_counter() - started

    def last_line(self):
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit {self.process.returncode}"

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def memory(self):
        """Bytes by the fields of smaps_rollup, and the peak of RSS. Linux only."""
        process = Path(f"/proc/{self.process.pid}")
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
            lines += (process / "status").read_text().splitlines()
        except OSError as error:
            raise Failed(str(error)) from None
        sizes = {}
        for line in lines:
            name, _, rest = line.partition(":")
            if name in SMAPS_FIELDS or name == "VmHWM":
                sizes[name.lower()] = int(rest.split()[0]) * 1024
        return sizes


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_ok(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def drop_cache(path):
    """Asks the system to forget the file's pages, and says which share of them is still there."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_share(path)


def resident_share(path):
    """The share of the file's pages that lie in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file:
        # A private writable map, since ctypes takes the address of writable memory only.
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as pages:
            num_pages = -(-len(pages) // mmap.PAGESIZE)
            states = (ctypes.c_ubyte * num_pages)()
            view = ctypes.c_char.from_buffer(pages)
            failed = libc.mincore(
                ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(len(pages)), states
            )
            del view
            if failed:
                raise OSError(ctypes.get_errno(), "mincore")
            return sum(state & 1 for state in states) / num_pages
