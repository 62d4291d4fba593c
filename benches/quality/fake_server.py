"""What the tests share: problems, arms, and a server whose searches are right and whose greedy answers are wrong."""

import contextlib
import io
import json
import sys
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import quality
import records

ADD = {
    "id": "t/add",
    "kind": "code",
    "messages": [{"role": "user", "content": "add"}],
    "prompt": 'from typing import List\n\n\ndef add(xs: List[int]):\n    """Sum.\n    >>> add([1])\n    1\n    """\n',
    "entry_point": "add",
    "public_tests": ["assert add([1]) == 1"],
    "hidden_test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n\ncheck(add)\n",
}
TEXT = {
    "id": "t/text",
    "kind": "text",
    "messages": [{"role": "user", "content": "2 + 3"}],
    "answer": "5",
    "dataset": "chain_sum",
    "metadata": {},
}
RIGHT_CODE = "```python\ndef add(xs):\n    return sum(xs)\n```"


class FakeServer(ThreadingHTTPServer):
    """Greedy answers are wrong and 100 tokens long, searches are right."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.num_busy, self.is_broken = [], 1, False
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send(self, status, body, **headers):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.send(200, {"data": [{"id": "fake"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.is_broken:
            self.connection.close()
            return
        if self.server.num_busy:
            self.server.num_busy -= 1
            self.send(429, {"error": {"message": "full"}}, **{"Retry-After": "0"})
            return
        self.server.bodies.append(body)
        search = body.get("search")
        if search and search.get("reward", {}).get("tests") == []:
            self.send(400, {"error": {"message": "no tests"}})
            return
        text = "The answer is 5." if body["messages"] == TEXT["messages"] else RIGHT_CODE
        answer = {
            "choices": [{"message": {"content": text if search else "no"}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 400 if search else 100},
        }
        if search:
            answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 300}
            answer["search"] = {"strategy": search["strategy"], "scorer_tokens": 150}
        if search and search.get("return_tree"):
            nodes = [("", None, None), ("The answer", 0, None), (" is 5.", 1, "stop"), (" is 6.", 1, "length")]
            nodes = [{"text": text, "parent": parent, "end": end} for text, parent, end in nodes]
            answer["search"]["tree"] = {"nodes": nodes}
        self.send(200, answer)


GREEDY = {"name": "greedy", "body": {"temperature": 0}}
VERIFIED = {
    "name": "verified",
    "kinds": ["code"],
    "body": {
        "search": {
            "strategy": "best_of_n",
            "reward": {"tests": "$PUBLIC_TESTS", "prefix": "$PREFIX"},
            "budget": {"tokens": "$BUDGET:8"},
        }
    },
}
VOTE = {
    "name": "vote",
    "factors": [0.1, 4],
    "body": {"search": {"strategy": "self_consistency", "n": "$FACTOR", "budget": {"tokens": "$BUDGET:$FACTOR"}}},
}


class WithServer(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.server = FakeServer()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.out = self.folder / "results.jsonl"
        self.write([ADD, {**ADD, "id": "t/untested", "public_tests": []}, TEXT], [GREEDY, VERIFIED, VOTE])

    def write(self, rows, all_arms):
        (self.folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (self.folder / "arms.json").write_text(json.dumps(all_arms), encoding="utf-8")

    def call(self, *extra, report=False):
        if report:
            args = ["--report", str(self.out)]
        else:
            args = ["--url", self.server.url, "--arms", str(self.folder / "arms.json"), "--out", str(self.out)]
        args += ["--problems", str(self.folder / "problems.jsonl"), *extra]
        output = io.StringIO()
        with mock.patch.object(sys, "argv", ["quality.py", *args]), contextlib.redirect_stdout(output):
            with contextlib.redirect_stderr(io.StringIO()):
                quality.main()
        return output.getvalue()

    def rows(self):
        return records.latest(records.read_lines(self.out))

    def strategies(self):
        return [body.get("search", {}).get("strategy", "greedy") for body in self.server.bodies]
