"""Three ways to learn from searches, on the same problems and as many generated tokens.

    python compare.py --ponder ponder --model qwen2.5-coder-0.5b --base "$(ponder pull qwen2.5-coder-0.5b)"

| method | searches | what the policy is trained on |
|---|---|---|
| rest_em | best of n | right answers (ReST^EM, arXiv 2312.06585) |
| self_rewarding | best of n | the answer that the policy judges best (arXiv 2401.10020, by SFT) |
| rest_mcts | half of the first round best of n, then mcts | right answers (ReST-MCTS*, arXiv 2406.03816) |

rest_mcts pays for its value model: the trees of its first half train the first one, and each round
trains it anew on all trees so far, with the values that ReST-MCTS* infers for their steps. Every
method starts a server of its own (--port), since value models are loaded when a server starts. What
is done is not done again: the same command goes on where it was interrupted.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from loop import command, load, step
from search import client

HERE = Path(__file__).resolve().parent
VALUE_TRAINER = HERE.parent / "value_model" / "train.py"
METHODS = ["rest_em", "self_rewarding", "rest_mcts"]
JUDGE = {"kind": "judge"}
VALUE = {"kind": "value_model"}
START_S = 120


@contextmanager
def served(args, work, value_model=None):
    """The URL of a server that ends with the block."""
    words = [args.ponder, "serve", args.model, "--port", args.port, "--trace-db", work / "traces.db"]
    words += ["--enable-lora", "--lora-root", work]
    if value_model:
        words += ["--value-adapter", value_model]
    with open(work / "server.log", "ab") as log:
        server = subprocess.Popen([str(word) for word in words], stdout=log, stderr=log)
    address, deadline = f"http://127.0.0.1:{args.port}", time.monotonic() + START_S
    try:
        while True:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start: see {work / 'server.log'}")
            try:
                urllib.request.urlopen(f"{address}/ready", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield f"{address}/v1"
    finally:
        server.terminate()
        server.wait()


class Method:
    """One method's files and steps."""

    def __init__(self, name, args):
        self.name, self.args = name, args
        self.work = args.work / name
        self.work.mkdir(parents=True, exist_ok=True)

    def policy(self, iteration):
        """The name of the model after an iteration; before the first it is the base."""
        return self.args.model if iteration == 0 else f"{self.name}-{iteration}"

    def adapter(self, iteration):
        return self.work / f"adapter-{iteration}"

    def load(self, url, iteration):
        if iteration:
            load(client(url), self.policy(iteration), self.adapter(iteration))

    def search(self, url, iteration, tag, first, num, **how):
        """Searches `num` problems of an iteration from `first` on, with the policy before it."""
        words = ["--url", url, "--model", self.policy(iteration - 1), "--run", tag, "--iteration", iteration]
        words += ["--first", first, "--num-problems", num, "--n", self.args.n]
        for name, value in how.items():
            words += [f"--{name}".replace("_", "-"), json.dumps(value) if name == "reward" else value]
        step("search.py", *words)

    def stream(self, url, kind, out, *tags, **options):
        """Rows of the traces that have all tags."""
        words = ["--url", url, "--format", kind, "--out", out]
        for tag in tags:
            words += ["--tag", tag]
        if options.get("ungraded"):
            words.append("--ungraded")
        step("stream.py", *words, "--max-per-prompt", options.get("max_per_prompt", 2))

    def value_model(self, url, number):
        """Trains value model `number` on all graded trees so far."""
        rows, out = self.work / f"values-{number}.jsonl", self.work / f"value-{number}"
        if not (out / "report.json").exists():
            rows.unlink(missing_ok=True)
            self.stream(url, "step_values", rows, "graded", max_per_prompt=16)
            command(
                sys.executable, VALUE_TRAINER, "--base", self.args.base, "--rows", rows, "--out", out,
                "--target", "values" if number > 1 else "outcome", "--dtype", self.args.dtype,
                "--first-layer", self.args.first_layer, "--rank", 8, "--epochs", self.args.value_epochs,
                "--prompts-per-step", 4, "--learning-rate", 4e-4,
            )  # fmt: skip
        return out

    def searched(self, iteration):
        """Searches of one iteration; returns the file of the policy's training rows."""
        args, rows = self.args, self.work / f"rows-{iteration}.jsonl"
        whole, half = args.num_problems, args.num_problems // 2
        if self.name == "rest_mcts":
            how = {"strategy": "mcts", "reward": VALUE, "budget_tokens": args.budget_tokens}
            if iteration == 1:
                with served(args, self.work) as url:
                    self.search(url, 1, "graded", 0, half)
                    value = self.value_model(url, 1)
                first, num = half, whole - half
            else:
                with served(args, self.work) as url:
                    value = self.value_model(url, iteration)
                first, num = 0, whole
            with served(args, self.work, value) as url:
                self.load(url, iteration - 1)
                self.search(url, iteration, "graded", first, num, **how)
                self.stream(url, "sft", rows, "graded", f"iteration-{iteration}")
            return rows
        own = self.name == "self_rewarding"
        with served(args, self.work) as url:
            self.load(url, iteration - 1)
            self.search(url, iteration, "graded", 0, whole, reward=JUDGE if own else {"kind": "likelihood"})
            if own:
                self.chosen(url, iteration, rows)
            else:
                self.stream(url, "sft", rows, "graded", f"iteration-{iteration}")
        return rows

    def chosen(self, url, iteration, rows):
        """The answers that the policy's own judgement chose, whatever is known of them."""
        trees = self.work / f"trees-{iteration}.ndjson"
        self.stream(url, "tree", trees, "graded", f"iteration-{iteration}", ungraded=True)
        with open(trees, encoding="utf-8") as lines, open(rows, "w", encoding="utf-8") as out:
            for trace in map(json.loads, lines):
                trace, text, node = trace.get("trace", trace), "", None
                node = trace["chosen"][0] if trace["chosen"] else None
                while node is not None:
                    text, node = trace["nodes"][node]["text"] + text, trace["nodes"][node]["parent"]
                messages = [*trace["request"]["messages"], {"role": "assistant", "content": text}]
                out.write(json.dumps({"messages": messages}) + "\n")

    def iterate(self, iteration):
        """One round: search, train, evaluate."""
        args, adapter = self.args, self.adapter(iteration)
        if not (adapter / "adapter_model.safetensors").exists():
            rows = self.searched(iteration)
            before = ["--adapter", self.adapter(iteration - 1)] if iteration > 1 else []
            step(
                "train.py", "--base", args.base, "--rows", rows, "--out", adapter, *before,
                "--max-rows", args.max_rows, "--epochs", args.epochs, "--dtype", args.dtype,
            )  # fmt: skip

    def evaluate(self, results):
        """All iterations' policies on the held-out problems."""
        with served(self.args, self.work) as url:
            names = [self.args.model]
            for iteration in range(1, self.args.iterations + 1):
                self.load(url, iteration)
                names.append(self.policy(iteration))
            words = ["--url", url, "--num-problems", self.args.num_held_out, "--out", results]
            step("evaluate.py", *words, "--models", *names)
            self.tokens(url)

    def tokens(self, url):
        """Prints what the method's searches generated, and what its value models read."""
        generated = scored = num = 0
        after = ""
        while True:
            page = client(url).get(f"/traces?order=asc&limit=1000{after}", cast_to=object)
            for trace in page["data"]:
                generated += trace["usage"]["completion_tokens"]
                scored += trace["usage"].get("scorer_tokens", 0)
                num += 1
            if not page["has_more"]:
                break
            after = f"&after={page['next']}"
        print(f"{self.name}: {num} searches, {generated} tokens generated, {scored} scored", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ponder", default="ponder", help="the binary")
    parser.add_argument("--port", type=int, default=8095)
    parser.add_argument("--model", required=True, help="catalogue name or file")
    parser.add_argument("--base", type=Path, required=True, help="the same model's .gguf file, for training")
    parser.add_argument("--work", type=Path, default=Path("compared"), help="folder of what the steps write")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--num-problems", type=int, default=160, help="training problems of one iteration")
    parser.add_argument("--num-held-out", type=int, default=300)
    parser.add_argument("--n", type=int, default=8, help="samples of a problem")
    parser.add_argument("--budget-tokens", type=int, default=400, help="of one mcts: what n samples generate")
    parser.add_argument("--max-rows", type=int, default=150)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--value-epochs", type=float, default=3)
    parser.add_argument("--first-layer", type=int, default=12, help="of the value model's LoRA")
    parser.add_argument("--dtype", default="float32", help="bfloat16 is faster on processors that have it")
    args = parser.parse_args()
    args.work = args.work.resolve()
    results = args.work / "results.json"
    for name in args.methods:
        method = Method(name, args)
        for iteration in range(1, args.iterations + 1):
            method.iterate(iteration)
        method.evaluate(results)


if __name__ == "__main__":
    main()
