"""Prefill and decode behind long contexts that nobody computes: what `llama-bench -d` measures, in
seconds instead of the many minutes that a context takes.

Both engines compute a short piece and copy its keys and values until the context is full: Ponder by
`ponder bench context`, llama-server by a saved slot (`llama_state.py`). What a row costs does not
depend on the values that it reads. Flash attention is on in llama.cpp.
"""

import json
import tempfile
import urllib.request
from pathlib import Path

import llama_state
from long_context import prompt_ids
from peers import Failed, run, say
from servers import Server

DTYPES = ["f16", "q8_0"]
PIECE = 1024
# Tokens that are measured: prefilled, then decoded.
PREFILL = 256
OUTPUT = 32
# Room behind the deepest context.
ROOM = 1024


def measure_ponder(args, model, dtype):
    command = [args.ponder, "bench", "context", model, "--threads", args.threads, "--json"]
    command += ["--kv-cache-dtype", dtype, "--prefill", PREFILL, "--output-len", OUTPUT]
    command += ["--repeats", args.repeats, "--depths", ",".join(map(str, args.depths))]
    return json.loads(run(command, args.timeout))


class Llama:
    """A llama-server with one slot."""

    def __init__(self, server, timeout):
        self.server, self.timeout = server, timeout

    def post(self, path, body):
        request = urllib.request.Request(
            self.server.url + path,
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.load(answer)

    def complete(self, ids, num_tokens):
        body = {"prompt": ids, "n_predict": num_tokens, "cache_prompt": True, "temperature": 0}
        return self.post("/completion", body | {"ignore_eos": True})["timings"]

    def measure(self, ids, depth, repeat):
        """The rates of one repeat behind `depth` tokens, which the slot holds."""
        own = prompt_ids(PREFILL, max(ids) + 1000, seed=1 + repeat)
        timings = self.complete(ids[:depth] + own, OUTPUT)
        if timings["prompt_n"] != PREFILL and depth:
            raise Failed(f"llama.cpp computed {timings['prompt_n']} tokens, not {PREFILL}")
        return timings["prompt_per_second"], timings["predicted_per_second"]


def llama_command(folder, file, args, dtype, states):
    most = max(args.depths) + ROOM
    command = [folder / "llama-server", "-m", file, "-t", args.threads, "-np", 1, "-c", most]
    command += ["-fa", "on", "-ctk", dtype, "-ctv", dtype, "--slot-save-path", states]
    return [*command, "--no-webui", "--log-disable"]


def measure_llama_cpp(args, folder, file, vocab_size, dtype):
    ids = prompt_ids(max([PIECE, *args.depths]), vocab_size)
    depths = []
    with tempfile.TemporaryDirectory() as states:
        command = llama_command(folder, file, args, dtype, states)
        with Server("llama.cpp", command, args.timeout) as server:
            llama = Llama(server, args.timeout)
            llama.complete(ids[:PIECE], 1)
            llama.post("/slots/0?action=save", {"filename": "piece"})
            piece = (Path(states) / "piece").read_bytes()
            for depth in sorted(args.depths):
                if depth:
                    with open(Path(states) / "deep", "wb") as file:
                        file.writelines(llama_state.lengthen(piece, ids[:depth]))
                    llama.post("/slots/0?action=restore", {"filename": "deep"})
                repeats = range(args.repeats)
                rates = [llama.measure(ids, depth, repeat) for repeat in repeats]
                prefill, decode = (sorted(of)[len(of) // 2] for of in zip(*rates))
                depths.append({"tokens": depth, "prefill": prefill, "decode": decode})
    return {"depths": depths}


def measure(args, llama_bin, file, model, gguf):
    """Figures by engine and type of the cache."""
    vocab_size = gguf.metadata["tokenizer.ggml.tokens"]
    measures = {}
    if "Ponder" not in args.without:
        measures["Ponder"] = lambda dtype: measure_ponder(args, model, dtype)
    if llama_bin:
        measures["llama.cpp"] = lambda dtype: measure_llama_cpp(
            args, llama_bin, file, vocab_size, dtype
        )
    results = {"bytes_per_token": gguf.bytes_per_token()}
    for dtype in DTYPES:
        for name, measure_one in measures.items():
            say(f"{model}: contexts of {dtype}: {name}")
            try:
                results[f"{name}, {dtype}"] = measure_one(dtype)
            except (Failed, OSError, ValueError, LookupError) as failure:
                results[f"{name}, {dtype}"] = {"failed": str(failure)}
                say(f"{name}: {failure}")
    return results


def cells(result, of, bytes_per_token):
    if "read_gb_s" not in result:
        return ["-", f"{of['prefill']:.1f}", f"{of['decode']:.2f}", "-"]
    # Of what one token reads, by the rate at which this machine reads.
    share = (bytes_per_token + of["kv_bytes"]) * of["decode"] / 1e9 / result["read_gb_s"]
    kv_mib = f"{of['kv_bytes'] / 2**20:.0f}"
    return [kv_mib, f"{of['prefill']:.1f}", f"{of['decode']:.2f}", f"{share * 100:.0f} %"]


def table(results):
    lines = [
        f"| model, tokens before | engine | KV, MiB | prefill of {PREFILL}, tok/s "
        "| decode, tok/s | share of the roofline |",
        "|---|---|---|---|---|---|",
    ]
    for model, engines in results.items():
        measured = {name: of for name, of in engines.items() if name != "bytes_per_token"}
        for name, result in measured.items():
            if "failed" in result:
                lines.append(f"| {model} | {name} | failed: {result['failed']} | | | |")
        done = {name: of for name, of in measured.items() if "depths" in of}
        depths = sorted({of["tokens"] for result in done.values() for of in result["depths"]})
        for depth in depths:
            head = f"{model}, {depth:,}"
            for name, result in done.items():
                for of in result["depths"]:
                    if of["tokens"] == depth:
                        row = " | ".join(cells(result, of, engines["bytes_per_token"]))
                        lines.append(f"| {head} | {name} | {row} |")
                        head = ""
    return "\n".join(lines)
