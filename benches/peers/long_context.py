"""Long contexts: the rate at which prompts of 8k, 32k, ... tokens are read, the rate of decoding
behind them, and the memory that the server has then.

Both servers get the same token ids over `/v1/completions`. A longer prompt begins with the shorter
one, which is cached by then, so that each size costs its own part alone: `prefill` is the rate over
the whole prompt (all parts' tokens by all parts' time), `prefill_tail` that of the last part.
"""

import json
import random
import time
import urllib.request

from peers import Failed, last_json, run, say
from servers import WITHOUT_DRAFTS, Server, Setup, llama_command, ponder_command

OUTPUT = 64
# The first token of a part is decoded once more: it is not cached, and whole blocks are.
MARGIN = 128


def prompt_ids(num_tokens, vocab_size, seed=0):
    dice = random.Random(seed)
    # Ids below are bytes and words of all vocabularies; control tokens lie at the ends.
    return [dice.randrange(1000, vocab_size - 1000) for _ in range(num_tokens)]


def stream(url, model, ids, timeout):
    """Seconds to the first token, and tokens a second behind it. Not every token is a chunk: one
    that ends within a character waits for the next."""
    body = {"model": model, "prompt": ids, "max_tokens": OUTPUT, "temperature": 0}
    body |= {"ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    sent = time.perf_counter()
    first = ended = None
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise Failed(str(chunk["error"])[:200])
            for choice in chunk["choices"]:
                first = first or time.perf_counter()
                if choice.get("finish_reason") == "length":
                    ended = time.perf_counter()
    if not first or not ended or ended <= first:
        raise Failed("the answer is not whole")
    return first - sent, (OUTPUT - 1) / (ended - first)


def measure_server(name, command, setup, sizes, vocab_size, timeout):
    """Figures by size; `failed` in place of those that did not work."""
    ids = prompt_ids(max(sizes), vocab_size)
    results = {}
    with Server(name, command, timeout) as server:
        before, seconds = 0, 0.0
        idle = server.memory()["rss"]
        for size in sorted(sizes):
            say(f"{setup.model}: {size} tokens: {name}")
            try:
                first, decode = stream(server.url, setup.model, ids[:size], timeout)
            except (OSError, ValueError, LookupError, Failed) as failure:
                results[str(size)] = {"failed": str(failure)}
                say(f"{name}: {failure}")
                break
            seconds += first
            memory = server.memory()
            results[str(size)] = {
                "prefill": size / seconds,
                "prefill_tail": (size - before) / first,
                "decode": decode,
                "rss": memory["rss"],
                "rss_idle": idle,
                "peak_rss": memory["vmhwm"],
            }
            before = size
    return results


def measure_ik(args, python, script, file):
    """ik_llama.cpp through its bindings, in a process of its own a size."""
    results = {}
    for size in sorted(args.contexts):
        say(f"{size} tokens: ik_llama.cpp")
        command = [python, script, file, "--threads", args.threads, "--long", size]
        try:
            results[str(size)] = last_json(run(command, args.timeout))
        except (Failed, ValueError) as failure:
            results[str(size)] = {"failed": str(failure)}
            say(f"ik_llama.cpp: {failure}")
            break
    return results


def measure(args, llama_bin, file, model, gguf):
    """All servers that are there, one after the other."""
    sizes = args.contexts
    most = max(sizes) + OUTPUT + MARGIN
    kv_tokens = -(-most // 256) * 256
    setup = Setup(model, file, args.threads, 1, kv_tokens, kv_tokens, gguf.kv_bytes_per_token())
    trained = gguf.own("context_length")
    extra = ["--allow-long-max-model-len"] if kv_tokens > trained else []
    commands = {}
    if "Ponder" not in args.without:
        commands["Ponder"] = ponder_command(args.ponder, setup, [*WITHOUT_DRAFTS, *extra])
    if llama_bin:
        commands["llama.cpp"] = llama_command(llama_bin, setup)
    vocab_size = gguf.metadata["tokenizer.ggml.tokens"]
    results = {}
    for name, command in commands.items():
        try:
            results[name] = measure_server(name, command, setup, sizes, vocab_size, args.timeout)
        except (Failed, OSError) as failure:
            results[name] = {str(size): {"failed": str(failure)} for size in sizes}
            say(f"{name}: {failure}")
    return results


def table(results):
    lines = [
        "| model, tokens | engine | prefill, tok/s | its last part | decode, tok/s | RSS, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for model, engines in results.items():
        sizes = {size for by_size in engines.values() for size in by_size}
        for size in sorted(sizes, key=int):
            for index, (name, by_size) in enumerate(engines.items()):
                of = by_size.get(size)
                head = f"{model}, {int(size):,}" if index == 0 else ""
                if of is None or "failed" in of:
                    why = "-" if of is None else f"failed: {of['failed']}"
                    lines.append(f"| {head} | {name} | {why} | | | |")
                    continue
                tail = of.get("prefill_tail")
                cells = [f"{of['prefill']:.0f}", "-" if tail is None else f"{tail:.0f}"]
                cells += [f"{of['decode']:.1f}", f"{of['rss'] / 2**20:.0f}"]
                lines.append(f"| {head} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
