"""Attacks by programs that the server runs for a verifier, from inside the sandbox."""

import os
import tempfile
import threading
from pathlib import Path

import bodies
from harness import MIB, Row, Server, Watch, status_number

CODE = ["--allow-code-execution"]
# The interpreter's own, and a few that a program may have a use for.
THREADS_LIMIT = 32
PIPES_LIMIT = 128
SERVER_CPU_LIMIT = 1.0
READ_LIMIT_MIB = 4

RAW_THREADS = """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
# CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM: a thread as the kernel sees it, each on 4 KB of its own.
flags, size, number = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000, 4096, 4000
stacks = ctypes.create_string_buffer(size * (number + 1))
first = (ctypes.addressof(stacks) + 4095) & ~4095
pause, clone = ctypes.cast(libc.pause, ctypes.c_void_p), libc.clone
clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
for index in range(number):
    if clone(pause, first + size * (index + 1) - 64, flags, None) < 0:
        break
time.sleep(4)
"""

MANY_PIPES = """
import ctypes, threading, time
libc = ctypes.CDLL(None, use_errno=True)
threading.stack_size(128 << 10)
def hold():
    # CLOSE_RANGE_UNSHARE: a table of descriptors of its own, to be filled again.
    libc.syscall(436, ctypes.c_uint(3), ctypes.c_uint(0xffffffff), ctypes.c_uint(2))
    pair = (ctypes.c_int * 2)()
    while libc.pipe2(pair, 0) == 0:
        pass
    time.sleep(4)
for _ in range(120):
    try:
        threading.Thread(target=hold, daemon=True).start()
    except RuntimeError:
        break
time.sleep(4)
"""


def pipes_of(pid):
    """Pipes that a process holds in all tables of descriptors of its threads."""
    found = set()
    for thread in safe_list(f"/proc/{pid}/task"):
        folder = f"/proc/{pid}/task/{thread}/fd"
        for name in safe_list(folder):
            try:
                target = os.readlink(f"{folder}/{name}")
            except OSError:
                continue
            if target.startswith("pipe:"):
                found.add(target)
    return len(found)


def safe_list(folder):
    try:
        return os.listdir(folder)
    except OSError:
        return []


def most_in_child(server, code, measure):
    """The largest value of `measure(pid)` over the server's children while a program runs."""
    done, most = threading.Event(), 0
    replies = []

    def ask():
        replies.append(server.post("/v1/score", bodies.python_score(code)))
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    while not done.wait(0.02):
        most = max([most] + [measure(pid) for pid in server.children()])
    return most, replies[0]


def sandbox_threads(setup):
    """Raw clones instead of the interpreter's threads, and a table of descriptors for each thread."""
    with Server(setup.binary, setup.model, CODE) as server:
        with Watch(server) as watch:
            threads, first = most_in_child(server, RAW_THREADS, lambda pid: status_number(pid, "Threads"))
            pipes, second = most_in_child(server, MANY_PIPES, pipes_of)
    measured = f"{threads} threads by raw clone ({first.text()}), {pipes} pipes ({second.text()}); {watch.text()}"
    held = threads <= THREADS_LIMIT and pipes <= PIPES_LIMIT
    criterion = f"at most {THREADS_LIMIT} threads and {PIPES_LIMIT} pipes"
    return Row("sandbox_threads", measured, held, criterion, {"threads": threads, "pipes": pipes, **watch.numbers()})


# What a program may try to learn a file's size. Each is an expression of `path`.
SIZE_CHANNELS = {
    "os.stat": "os.stat(path).st_size",
    "os.lstat": "os.lstat(path).st_size",
    "stat by folder": "os.stat(os.path.basename(path), dir_fd=os.open(os.path.dirname(path), os.O_PATH)).st_size",
    "O_PATH and fstat": "os.fstat(os.open(path, os.O_PATH)).st_size",
    "statx": "statx(path)",
    "st_blocks": "os.stat(path).st_blocks * 512",
    "read": "len(open(path, 'rb').read())",
    "seek": "os.lseek(os.open(path, os.O_RDONLY), 0, 2)",
}
# What a program may try to learn whether a file exists: true or false of `path`.
EXISTENCE_CHANNELS = {
    "access": "os.access(path, os.F_OK)",
    "faccessat2": "os.access(path, os.F_OK, effective_ids=True)",
    "O_PATH": "succeeds(os.open, path, os.O_PATH)",
    "stat": "succeeds(os.stat, path)",
    "error of open": "error_of(os.open, path, os.O_RDONLY) != 2",
    "error of chdir": "error_of(os.chdir, path) != 2",
    "error of readlink": "error_of(os.readlink, path) != 2",
    "error of execve": "error_of(os.execv, path, ['x']) != 2",
    "error of scandir": "error_of(os.scandir, path) != 2",
}
HELPERS = """
import ctypes, os, struct
def succeeds(function, *args):
    try:
        function(*args)
        return True
    except OSError:
        return False
def error_of(function, *args):
    try:
        function(*args)
        return 0
    except OSError as error:
        return error.errno
def statx(path):
    out = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None).syscall(332, -100, path.encode(), 0, 0x200, out) != 0:
        raise OSError
    return struct.unpack_from("Q", out, 40)[0]
"""


def passed_tests(server, code, tests):
    """How many tests passed, from the score; 0 when there is none."""
    reply = server.post("/v1/score", bodies.python_score(code, tests))
    scores = reply.json().get("data") or [{}]
    return round(float(scores[0].get("score") or 0) * len(tests))


def read_size(server, path, expression):
    """A size that a program says by the number of its passed tests, 8 bits a request; None when it cannot."""
    code = f"{HELPERS}\npath = {str(path)!r}\nsize = {expression}\n"
    if not passed_tests(server, code, ["assert size >= 0"]):
        return None
    digits = []
    for place in range(3):
        tests = [f"assert (size >> {8 * place}) % 256 > {value}" for value in range(255)]
        digits.append(passed_tests(server, code, tests))
    return digits[0] + (digits[1] << 8) + (digits[2] << 16)


def tells_existence(server, there, absent, expression):
    """Whether a program says something else of a file that exists than of one that does not."""
    said = []
    for path in (there, absent):
        code = f"{HELPERS}\npath = {str(path)!r}\nis_there = bool({expression})\n"
        said.append(passed_tests(server, code, ["assert True", "assert is_there"]))
    return said[0] != said[1] and 2 in said


def sandbox_stat(setup):
    """Sizes and existence of files that the sandbox may not read, told by passed tests."""
    with tempfile.TemporaryDirectory() as folder, Server(setup.binary, setup.model, CODE) as server:
        secret = Path(folder) / "secret"
        secret.write_bytes(b"x" * 54_321)
        shadow = Path("/etc/shadow")
        size = shadow.stat().st_size if shadow.exists() else None
        told = {name: read_size(server, secret, text) == 54_321 for name, text in SIZE_CHANNELS.items()}
        told_shadow = read_size(server, shadow, SIZE_CHANNELS["os.stat"])
        absent = Path(folder) / "absent"
        exists = {name: tells_existence(server, secret, absent, text) for name, text in EXISTENCE_CHANNELS.items()}
    sizes = [name for name, is_told in told.items() if is_told]
    ways = [name for name, is_told in exists.items() if is_told]
    measured = f"/etc/shadow has {size} bytes, the program said {told_shadow}; sizes by: {', '.join(sizes) or 'none'}"
    measured += f"; existence by: {', '.join(ways) or 'none'}"
    # What opening says by its error is how paths are looked up; the row names these.
    held = not sizes and not {"access", "O_PATH", "stat"} & set(ways)
    criterion = "no size; no existence by stat, access and O_PATH (what errors tell is listed)"
    return Row("sandbox_stat", measured, held, criterion, {"sizes": told, "existence": exists})


FLOOD = """
import os
def is_open(number):
    try:
        return os.fstat(number) is not None
    except OSError:
        return False
# The report goes through a copy of the first descriptor, which has the next free number.
report = next((number for number in range(3, 9) if is_open(number)), 1)
block, target = b"x" * SIZE, TARGET
while True:
    os.write(target, block)
"""
FLOODS = {"print": ("1", 65536), "report": ("report", 65536), "small writes": ("1", 16)}


def sandbox_flood(setup):
    """A program that writes without end: what reading it costs the server. Bytes count too: a busy machine hides the CPU."""
    costs, reads, seconds = {}, {}, 0.0
    with Server(setup.binary, setup.model, CODE) as server:
        for name, (target, size) in FLOODS.items():
            code = FLOOD.replace("SIZE", str(size)).replace("TARGET", target)
            cpu, read = server.cpu_seconds(), server.bytes_read()
            reply = server.post("/v1/score", bodies.python_score(code))
            costs[name] = round(server.cpu_seconds() - cpu, 2)
            reads[name] = (server.bytes_read() - read) // MIB
            seconds = max(seconds, reply.seconds)
    measured = ", ".join(f"{name}: {costs[name]} s of the server's CPU, {reads[name]} MiB read" for name in costs)
    held = max(costs.values()) <= SERVER_CPU_LIMIT and max(reads.values()) <= READ_LIMIT_MIB
    criterion = f"at most {SERVER_CPU_LIMIT} s and {READ_LIMIT_MIB} MiB"
    return Row("sandbox_flood", f"{measured}; runs up to {seconds:.1f} s", held, criterion, {"cpu_s": costs, "mib": reads})


ATTACKS = [sandbox_threads, sandbox_stat, sandbox_flood]
