"""The requests that attack over HTTP, as data: `attacks.py` sends each alone, `together.py` all at once."""

# Three answers of this length wait for the slow pattern.
REGEX_ANSWER_BYTES = 150_000
SLOW_PATTERN = "(?:[ -~]?){5000}X"
SLOW_STEP = "(?:[ -~\\n]?){5000}[\\x00\\x01]"
LONG_PROMPT_BYTES = 15 * 1000 * 1000
# Of the routes beside the reported one: long enough to be seen.
SIBLING_BYTES = 4 * 1000 * 1000
FORK_BYTES = 1 << 20
FORK_SCORES = 1500
# Sent behind a request by a client that then leaves: a server that reads only when it has answered never sees the end.
PIPELINED = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def doubling_schema(depth):
    """A JSON schema of about 70 bytes a level: each level asks for the one below twice, so checking takes 2^depth steps."""
    definitions = {"s0": {"type": "object"}}
    for level in range(1, depth + 1):
        below = {"$ref": f"#/$defs/s{level - 1}"}
        definitions[f"s{level}"] = {"allOf": [below, below]}
    return {"$ref": f"#/$defs/s{depth}", "$defs": definitions}


def schema_score(depth=31):
    reward = {"kind": "verifier", "type": "json_schema", "schema": doubling_schema(depth)}
    return {"candidates": ["{}"], "reward": reward}


def regex_score(num_candidates=3):
    reward = {"kind": "verifier", "type": "regex", "pattern": SLOW_PATTERN}
    return {"candidates": ["a" * REGEX_ANSWER_BYTES] * num_candidates, "reward": reward}


def python_score(code, tests=("assert True",), num_candidates=1, prefix=None):
    """A verification of a program. `prefix` runs in front of it, as a client's own imports do."""
    reward = {"kind": "verifier", "type": "python", "tests": list(tests)}
    if prefix:
        reward["prefix"] = prefix
    return {"candidates": [f"```python\n{code}\n```"] * num_candidates, "reward": reward}


def beam(step, max_tokens=4000, n=64, seed=1):
    """A wide beam search whose step has the given rule."""
    search = {"strategy": "beam", "n": n, "branch": 4, "max_depth": 4, "step": step, "trace": False}
    return {
        "prompt": "Once upon a time",
        "max_tokens": max_tokens,
        "temperature": 1.0,
        "seed": seed,
        "ignore_eos": True,
        "search": search,
    }


def step_regex_beam(max_tokens=4000):
    return beam({"regex": SLOW_STEP, "max_tokens": max_tokens}, max_tokens)


def plain_beam(max_tokens=4000):
    """The same search with the rule that nobody complains about."""
    return beam({"delimiter": "\x00\x01", "max_tokens": min(max_tokens, 1024)}, max_tokens)


def digits(num_bytes):
    return ("0123456789" * (num_bytes // 10 + 1))[:num_bytes]


def long_prompts(num_bytes=LONG_PROMPT_BYTES, sibling_bytes=SIBLING_BYTES):
    """Name, path and body of everything that tokenises a client's text. What is not the first entry is a sibling."""
    text = digits(sibling_bytes)
    reported = [{"role": "user", "content": digits(num_bytes)}]
    chat = [{"role": "user", "content": text}]
    short = [{"role": "user", "content": "hi"}]
    likelihood, judge = {"kind": "likelihood"}, {"kind": "judge"}
    many = [text[:100_000]] * (sibling_bytes // 100_000)
    said = {"type": "content", "content": text}
    long_judge = {"kind": "judge", "instruction": text}
    return [
        ("chat", "/v1/chat/completions", {"messages": reported, "max_tokens": 1}),
        ("completion", "/v1/completions", {"prompt": text, "max_tokens": 1}),
        ("completion of many prompts", "/v1/completions", {"prompt": many, "max_tokens": 1}),
        ("tokenize", "/tokenize", {"prompt": text}),
        ("tokenize a chat", "/tokenize", {"messages": chat}),
        ("score, messages", "/v1/score", {"messages": chat, "candidates": ["hi"], "reward": likelihood}),
        ("score, candidate", "/v1/score", {"messages": short, "candidates": [text], "reward": likelihood}),
        ("score, judge", "/v1/score", {"messages": short, "candidates": [text], "reward": judge}),
        ("score, instruction", "/v1/score", {"messages": short, "candidates": ["hi"], "reward": long_judge}),
        ("branches", "/v1/branches", {"prompt": text}),
        ("prediction", "/v1/chat/completions", {"messages": short, "max_tokens": 1, "prediction": said}),
        ("stop strings", "/v1/completions", {"prompt": "hi", "max_tokens": 1, "stop": [text]}),
    ]
