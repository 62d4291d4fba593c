"""How long a server takes until it is ready, from exec, with its model in the page cache and
without; and the memory that it has then and after its first answer."""

import json
import statistics
import urllib.request
from pathlib import Path

from peers import Failed, say
from servers import WITHOUT_DRAFTS, Server, Setup, drop_cache, llama_command, ponder_command

# A small KV cache, the same for both, so that memory is that of weights and program.
SLOTS, KV_TOKENS = 1, 4096
PROMPT = "Write a function that adds two numbers."


def setup(args, model, file, info):
    kv_bytes = info.kv_bytes_per_token()
    return Setup(model, file, args.threads, SLOTS, KV_TOKENS, KV_TOKENS, kv_bytes)


def ask(server, model):
    """One answer of a few tokens."""
    body = {"model": model, "max_tokens": 16, "temperature": 0}
    body["messages"] = [{"role": "user", "content": PROMPT}]
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=server.timeout) as answer:
        json.load(answer)


def one_start(name, command, setup, args, is_cold):
    program = Path(command[0])
    # llama-server's own code lies in libraries beside it.
    files = [setup.file, program, *program.parent.glob("*.so*")]
    left = max(drop_cache(file) for file in files) if is_cold else None
    with Server(name, command, args.timeout) as server:
        loaded = server.memory()
        ask(server, setup.model)
        return {
            "ready_seconds": server.ready_seconds,
            "still_cached": left,
            "loaded": loaded,
            "answered": server.memory(),
        }


def summary(cold, warm, setup):
    """Medians, and memory as multiples of the file."""
    size = setup.file.stat().st_size
    kv_bytes = setup.kv_tokens * setup.kv_bytes_per_token

    def ratio(moment, field):
        return statistics.median(turn[moment][field] for turn in warm) / size

    return {
        "cold_seconds": statistics.median(turn["ready_seconds"] for turn in cold),
        "warm_seconds": statistics.median(turn["ready_seconds"] for turn in warm),
        "still_cached": max(turn["still_cached"] for turn in cold),
        "file_bytes": size,
        "kv_bytes": kv_bytes,
        "rss_loaded": ratio("loaded", "rss"),
        "pss_loaded": ratio("loaded", "pss"),
        "rss_answered": ratio("answered", "rss"),
        "pss_answered": ratio("answered", "pss"),
        "anonymous_answered": ratio("answered", "pss_anon"),
        "peak_rss": ratio("answered", "vmhwm"),
        "turns": {"cold": cold, "warm": warm},
    }


def measure(args, llama_bin, setup):
    """Both servers in turns; a server that fails is an error string."""
    commands = {}
    if "Ponder" not in args.without:
        commands["Ponder"] = ponder_command(args.ponder, setup, WITHOUT_DRAFTS)
    if llama_bin:
        commands["llama.cpp"] = llama_command(llama_bin, setup)
    turns = {name: {True: [], False: []} for name in commands}
    failed = {}
    for repeat in range(args.repeats):
        for name, command in commands.items():
            for is_cold in [True, False]:
                if name in failed:
                    continue
                say(f"{setup.model}: start {repeat + 1}/{args.repeats}: {name}, cold={is_cold}")
                try:
                    turns[name][is_cold].append(one_start(name, command, setup, args, is_cold))
                except (Failed, OSError, ValueError) as failure:
                    failed[name] = str(failure)
                    say(f"{name}: {failure}")
    return {
        name: {"failed": failed[name]} if name in failed else summary(of[True], of[False], setup)
        for name, of in turns.items()
    }


def table(results):
    """Rows of the report, a model and measure each: Ponder and llama.cpp."""
    rows = [
        ("seconds to ready, cold", "cold_seconds"),
        ("seconds to ready, warm", "warm_seconds"),
        ("PSS over the file, loaded", "pss_loaded"),
        ("PSS over the file, after an answer", "pss_answered"),
        ("RSS over the file, after an answer", "rss_answered"),
        ("peak RSS over the file", "peak_rss"),
    ]
    lines = ["| model | measure | Ponder | llama.cpp |", "|---|---|---|---|"]
    for model, engines in results.items():
        for index, (label, key) in enumerate(rows):
            figures = [engines.get(name, {}).get(key) for name in ["Ponder", "llama.cpp"]]
            cells = ["-" if figure is None else f"{figure:.2f}" for figure in figures]
            lines.append(f"| {model if index == 0 else ''} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)
