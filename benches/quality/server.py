"""The routes of an OpenAI-compatible server that the benchmark needs."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request

ATTEMPTS = 4
BUSY_WAITS = 120


class RequestFailed(Exception):
    """The server refused the request or gave up on it."""


class Unreachable(Exception):
    """No server answers."""


class Server:
    """A server by its URL, with /v1. PONDER_API_KEY holds the key of one that asks for a key."""

    def __init__(self, url, timeout_s):
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        key = os.environ.get("PONDER_API_KEY")
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def model(self):
        """The name of the first model."""
        return self.send("/models")[0]["data"][0]["id"]

    def chat(self, body):
        """The response, and the seconds that it took."""
        return self.send("/chat/completions", body)

    def score(self, body):
        """The scores of candidates."""
        return self.send("/score", body)[0]

    def send(self, route, body=None):
        """Tries again while the server is full or the connection breaks; the waits don't count as its time."""
        data = None if body is None else json.dumps(body).encode("utf-8")
        num_broken = num_busy = 0
        while True:
            request = urllib.request.Request(self.url + route, data, self.headers)
            start = time.perf_counter()
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return json.load(response), time.perf_counter() - start
            except urllib.error.HTTPError as error:
                num_busy += 1
                if error.code not in (429, 503) or num_busy > BUSY_WAITS:
                    raise RequestFailed(f"{error.code}: {error_message(error)}") from None
                time.sleep(retry_after(error))
            except TimeoutError:
                raise RequestFailed(f"no answer in {self.timeout_s} s") from None
            except (OSError, http.client.HTTPException) as error:
                num_broken += 1
                if num_broken >= ATTEMPTS:
                    raise Unreachable(f"{self.url}: {error}") from None
                time.sleep(num_broken)


def error_message(error):
    """What the body of an HTTP error says."""
    text = error.read().decode("utf-8", "replace")
    try:
        return json.loads(text)["error"]["message"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return text[:200]


def retry_after(error):
    """Seconds to wait before the next attempt."""
    try:
        return min(max(float(error.headers.get("Retry-After", 1)), 0.1), 30)
    except ValueError:
        return 1
