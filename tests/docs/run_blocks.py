"""Runs the blocks of shell and Python in the README and the tutorials against a real server.

    python tests/docs/run_blocks.py --ponder target/debug/ponder [PAGE …]

Blocks of a page run in order, in an empty folder of the page's own. The words behind a fence's
language say how:

    sh, python           the block runs, and must succeed
    sh serve             the block starts a server, which the blocks behind it ask
    sh skip=SOME-REASON  the block does not run

The model and the address that pages name stand for those of the test: a small model, a free port.
Needs the standard library, and what the blocks themselves import.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/getting-started.md", "docs/search.md", "docs/self-training.md"]
PAGES_MODEL, PAGES_URL = "qwen2.5-coder-0.5b", "http://127.0.0.1:8000"
FENCE = re.compile(r"^(`{3,})\s*(.*)$")
START_S, BLOCK_S, STOP_S = 300, 300, 10


@dataclass(frozen=True)
class Block:
    """A fenced block with the number of its first line."""

    page: str
    line: int
    language: str
    words: tuple
    text: str

    def skipped(self):
        """Why the block is left out, or None."""
        reasons = [word.removeprefix("skip=") for word in self.words if word.startswith("skip=")]
        return reasons[0].replace("-", " ") if reasons else None

    def check(self):
        """Ends the run where the fence has a word that means nothing."""
        known = all(word == "serve" or re.fullmatch(r"skip=.+", word) for word in self.words)
        if not self.language or not known:
            sys.exit(f"{self.page}:{self.line}: a fence is LANGUAGE [serve | skip=REASON]")


def blocks(page, text):
    """The fenced blocks of a page, in order."""
    found, fence, info, start, lines = [], None, "", 0, []
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if fence is None:
            if match:
                fence, info, start, lines = match[1], match[2], number, []
        elif match and not match[2] and len(match[1]) >= len(fence):
            language, *words = info.split() or [""]
            found.append(Block(page, start + 1, language, tuple(words), "\n".join(lines) + "\n"))
            fence = None
        else:
            lines.append(line)
    if fence is not None:
        sys.exit(f"{page}:{start}: this fence is not closed")
    return found


class Server:
    """A server that a block has started."""

    def __init__(self, block, command, folder, environment):
        self.lines, self.url, self.is_up = [], None, threading.Event()
        self.process = subprocess.Popen(
            ["bash", "-ec", command], cwd=folder, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        threading.Thread(target=self.read, daemon=True).start()
        self.is_up.wait(START_S)
        if self.url is None:
            self.stop()
            sys.exit(f"{block.page}:{block.line}: no server came up\n{''.join(self.lines)}")

    def read(self):
        """Keeps what the server says. Its banner, once the model is loaded, has the address."""
        for line in self.process.stderr:
            self.lines.append(line)
            address = re.search(r"http://[\d.]+:\d+", line)
            if address and self.url is None:
                self.url = address[0]
                self.is_up.set()
        self.is_up.set()

    def stop(self):
        """Ends the server and what it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(STOP_S)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


class Runner:
    """Runs the blocks of one page."""

    def __init__(self, args, folder):
        self.args, self.folder, self.server = args, folder, None
        programs = folder / "programs"
        programs.mkdir()
        (programs / "ponder").symlink_to(args.ponder.resolve())
        path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join(path),
            "PONDER_MODEL": args.model,
            "PONDER_MAX_MODEL_LEN": "2048",
            "PONDER_KV_CACHE_MEMORY": "256M",
            "PONDER_PORT": "0",
            "PONDER_TRACE_DB": str(folder / "traces.db"),
        }
        self.work = folder / "work"
        self.work.mkdir()

    def substituted(self, text):
        """The block with the test's model and address."""
        text = text.replace(PAGES_MODEL, self.args.model)
        return text.replace(PAGES_URL, self.server.url) if self.server else text

    def stop(self):
        if self.server:
            self.server.stop()
        self.server = None

    def run(self, block):
        """Runs one block; ends the run where that fails."""
        text = self.substituted(block.text)
        if "serve" in block.words:
            self.stop()
            self.server = Server(block, "exec " + text, self.work, self.environment)
            return
        command = ["bash", "-eo", "pipefail", "-c", text] if block.language == "sh" else None
        command = command or [sys.executable, "-c", text]
        try:
            done = subprocess.run(
                command, cwd=self.work, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BLOCK_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            self.stop()
            sys.exit(f"{block.page}:{block.line}: not done after {BLOCK_S} s\n{error.stdout}")
        # `curl` without -f takes an error of the server for an answer.
        if done.returncode != 0 or done.stdout.lstrip().startswith('{"error":'):
            said = "".join(self.server.lines) if self.server else ""
            self.stop()
            sys.exit(f"{block.page}:{block.line}: status {done.returncode}\n{done.stdout}\n{said}")
        if self.args.verbose:
            print(done.stdout)


def run_page(page, args):
    """Runs a page's blocks, each after the other. Returns how many ran and how many did not."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [block for block in blocks(page, text) if block.language in ("sh", "python", "")]
    num_run = 0
    with tempfile.TemporaryDirectory(prefix="ponder-docs-") as folder:
        runner = Runner(args, Path(folder))
        try:
            for block in found:
                block.check()
                reason = block.skipped()
                if reason:
                    print(f"{page}:{block.line}: skipped: {reason}", flush=True)
                    continue
                started = time.monotonic()
                runner.run(block)
                num_run += 1
                seconds = time.monotonic() - started
                print(f"{page}:{block.line}: {block.language}, {seconds:.1f} s", flush=True)
        finally:
            runner.stop()
    return num_run, len(found) - num_run


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ponder", type=Path, required=True, help="the binary")
    parser.add_argument("--model", default="smollm2-135m", help="stands for the pages' model")
    parser.add_argument("--verbose", action="store_true", help="print what blocks print")
    parser.add_argument("pages", nargs="*", default=PAGES, help="paths in the repository")
    args = parser.parse_args()
    counts = [run_page(page, args) for page in args.pages]
    num_run, num_skipped = (sum(column) for column in zip(*counts))
    print(f"{num_run} blocks ran, {num_skipped} were skipped")
    if num_run == 0:
        sys.exit("no block ran: the pages have changed, or the pattern of fences")


if __name__ == "__main__":
    main()
