"""The whole loop: search, stream, train, load the adapter, evaluate, and again with the adapter.

    ponder serve qwen2.5-coder-0.5b --enable-lora --lora-root .
    python loop.py --model qwen2.5-coder-0.5b --base "$(ponder pull qwen2.5-coder-0.5b)" --iterations 2

Each step is a command that can be run alone; the loop prints it. What is done is not done again: an interrupted loop goes
on where it stopped when it is started with the same --work folder and --run name.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import openai

from search import client

HERE = Path(__file__).resolve().parent


def command(*words):
    """Runs a command; a failure ends the loop."""
    words = [str(word) for word in words]
    print("\n$ " + " ".join(words).replace(str(HERE), "."), flush=True)
    started = time.monotonic()
    if subprocess.run(words).returncode != 0:
        sys.exit("that failed; the same command goes on from here once it is mended")
    print(f"({time.monotonic() - started:.0f} s)", flush=True)


def step(script, *words):
    command(sys.executable, HERE / script, *words)


def unload(server, name):
    """Forgets an adapter of this name, if there is one. The first call shows whether the server takes adapters."""
    try:
        server.post("/unload_lora_adapter", body={"lora_name": name}, cast_to=object)
    except openai.PermissionDeniedError as error:
        sys.exit(f"{server.base_url}: the server loads no adapters: start it with --enable-lora --lora-root DIR ({message(error)})")
    except openai.NotFoundError:
        pass


def load(server, name, folder):
    """Makes an adapter a model of the server."""
    unload(server, name)
    try:
        # The server reads the folder itself.
        body = {"lora_name": name, "lora_path": str(folder.resolve())}
        server.post("/load_lora_adapter", body=body, cast_to=object)
    except openai.APIStatusError as error:
        sys.exit(
            f"the server did not load {folder.resolve()} as {name}: {message(error)}\n"
            "It must run on this machine (or see the same folder), with --enable-lora and a --lora-root above it, "
            "and serve the model of --base."
        )
    print(f"\nloaded {folder} as {name}", flush=True)


def message(error):
    """What the server says of a refused request."""
    body = error.body if isinstance(error.body, dict) else {}
    return body.get("message") or str(error)


def train_value_head(args):
    """A head for `ponder serve --value-head`, from the trees that the base model sampled."""
    trees, head = args.work / "trees-1.ndjson", args.work / "head.safetensors"
    step("stream.py", "--url", args.url, "--format", "tree", "--tag", args.run, "--tag", "iteration-1", "--out", trees)
    if not head.exists():
        command(args.ponder, "train", "value-head", args.base, "--traces", trees, "--out", head)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True, help="the served model's name")
    parser.add_argument("--base", type=Path, required=True, help="the same model's .gguf file or folder, for training")
    parser.add_argument("--name", default="sums", help="adapters are NAME-1, NAME-2, …")
    parser.add_argument("--run", default="self-training", help="tag of all traces of the run")
    parser.add_argument("--work", type=Path, default=Path("run"), help="folder of what the steps write")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--num-problems", type=int, default=200, help="training problems of one iteration")
    parser.add_argument("--num-held-out", type=int, default=200)
    parser.add_argument("--n", type=int, default=8, help="samples of a problem")
    parser.add_argument("--max-rows", type=int, default=150)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--max-steps", type=int, default=-1, help="of training, instead of epochs")
    parser.add_argument("--dtype", default="float32", help="bfloat16 is faster on processors that have it")
    parser.add_argument("--value-head", action="store_true", help="also train a value head on the trees")
    parser.add_argument("--ponder", default="ponder", help="the binary, for --value-head")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    server, started = client(args.url), time.monotonic()
    models, adapter = [args.model], None
    unload(server, f"{args.name}-1")
    evaluation = ["--url", args.url, "--num-problems", args.num_held_out, "--out", args.work / "results.json"]
    step("evaluate.py", *evaluation, "--models", *models)
    for iteration in range(1, args.iterations + 1):
        tags = ["--run", args.run, "--iteration", iteration]
        step(
            "search.py", "--url", args.url, "--model", models[-1], *tags,
            "--num-problems", args.num_problems, "--n", args.n,
        )  # fmt: skip
        rows = args.work / f"rows-{iteration}.jsonl"
        step("stream.py", "--url", args.url, "--tag", args.run, "--tag", f"iteration-{iteration}", "--out", rows)
        before, adapter = adapter, args.work / f"adapter-{iteration}"
        if not (adapter / "adapter_model.safetensors").exists():
            step(
                "train.py", "--base", args.base, "--rows", rows, "--out", adapter, *(["--adapter", before] if before else []),
                "--max-rows", args.max_rows, "--epochs", args.epochs, "--learning-rate", args.learning_rate,
                "--max-steps", args.max_steps, "--dtype", args.dtype,
            )  # fmt: skip
        models.append(f"{args.name}-{iteration}")
        load(server, models[-1], adapter)
        step("evaluate.py", *evaluation, "--models", *models)
    if args.value_head:
        train_value_head(args)
    print(f"\n{(time.monotonic() - started) / 60:.0f} minutes; numbers in {args.work / 'results.json'}")


if __name__ == "__main__":
    main()
