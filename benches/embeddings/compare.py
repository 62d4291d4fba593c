"""Measures embeddings by Ponder, sentence-transformers and fastembed in one run, and prints a Markdown table.

    python benches/embeddings/compare.py --threads 2 --repeats 5

Needs sentence-transformers, fastembed, onnx and torch in the Python that runs it, and Ponder's release binary. All three
make the vectors of all-MiniLM-L6-v2 in float32 from the same weights: Ponder over HTTP, one request a set as OpenAI's SDK
sends it (base64); sentence-transformers on torch, with its own batches sorted by length; fastembed on onnxruntime, from a
graph that torch exports here. Their tokenizers are part of the time, and so is Ponder's HTTP.

Engines take turns inside each repeat. Figures are tokens a second, special tokens included: the median over the repeats,
and the best one, which says more where other work shares the machine. The last line is the time of one short text alone.
"""

import argparse
import base64
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = "all-minilm-l6-v2"
# Words of the texts of each set, at least and at most, and how many texts.
SETS = {"short": (6, 20, 256), "mixed": (6, 180, 192), "long": (150, 190, 96)}


def texts(words, low, high, count, seed):
    choose = random.Random(seed)
    starts = [choose.randrange(len(words) - high) for _ in range(count)]
    return [" ".join(words[start : start + choose.randint(low, high)]) for start in starts]


class Ponder:
    name = "Ponder"

    def __init__(self, binary, threads):
        command = [binary, "serve", MODEL, "--port", "0", "--threads", str(threads), "--no-traces"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while "serves" not in (line := self.process.stderr.readline()):
            if not line:
                sys.exit("Ponder did not start")
        self.url = line.split(" on ")[1].split(" ")[0]

    def post(self, body):
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/embeddings", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def encode(self, texts):
        import numpy

        answer = self.post({"input": texts, "encoding_format": "base64", "truncate_prompt_tokens": -1})
        self.num_tokens = answer["usage"]["prompt_tokens"]
        return numpy.array([numpy.frombuffer(base64.b64decode(it["embedding"]), "<f4") for it in answer["data"]])

    def stop(self):
        self.process.terminate()
        self.process.wait()


class SentenceTransformers:
    name = "sentence-transformers"

    def __init__(self, folder, threads):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(str(folder), device="cpu")

    def encode(self, texts):
        return self.model.encode(texts, batch_size=32, show_progress_bar=False)

    def stop(self):
        pass


class FastEmbed:
    name = "fastembed"

    def __init__(self, folder, work, threads, transformer):
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        export(folder, work, transformer)
        TextEmbedding.add_custom_model(
            model="local/minilm",
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf="local/minilm"),
            dim=384,
            model_file="model.onnx",
        )
        self.model = TextEmbedding("local/minilm", specific_model_path=str(work), threads=threads)

    def encode(self, texts):
        import numpy

        # Sorted by length, as the caller of a library that pads would do it.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = [None] * len(texts)
        for index, vector in zip(order, self.model.embed([texts[index] for index in order], batch_size=32)):
            vectors[index] = vector
        return numpy.array(vectors)

    def stop(self):
        pass


def export(folder, work, transformer):
    import torch

    work.mkdir(parents=True, exist_ok=True)
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]:
        source = folder / name
        (work / name).write_text(source.read_text() if source.exists() else "{}")
    # Its own truncation is shorter than the model's.
    tokenizer = json.loads((work / "tokenizer_config.json").read_text())
    tokenizer["model_max_length"] = tokenizer["max_length"] = 256
    (work / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if (work / "model.onnx").exists():
        return

    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = transformer

        def forward(self, ids, mask, types):
            return self.transformer(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    ones = torch.ones(2, 8, dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "tokens"} for name in [*names, "last_hidden_state"]}
    torch.onnx.export(
        States().eval(),
        (ones, ones, torch.zeros_like(ones)),
        str(work / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes=axes,
        dynamo=False,
        opset_version=17,
    )


def check(engines, inputs):
    """The least cosine of an engine's vectors with sentence-transformers'."""
    import numpy

    wanted = engines[1].encode(inputs)
    for engine in engines:
        made = engine.encode(inputs)
        cosines = (made * wanted).sum(1) / numpy.linalg.norm(made, axis=1) / numpy.linalg.norm(wanted, axis=1)
        print(f"{engine.name}: least cosine with sentence-transformers {cosines.min():.7f}", file=sys.stderr)


def measure(engines, sets, repeats):
    rates = {name: {engine.name: [] for engine in engines} for name in sets}
    for repeat in range(repeats):
        for name, inputs in sets.items():
            for engine in engines[repeat % len(engines) :] + engines[: repeat % len(engines)]:
                time.sleep(0.3)
                started = time.perf_counter()
                engine.encode(inputs)
                rates[name][engine.name].append(time.perf_counter() - started)
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target/release/ponder"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/tmp/ponder-embeddings"))
    args = parser.parse_args()
    os.environ.update(CUDA_VISIBLE_DEVICES="", RAYON_NUM_THREADS=str(args.threads), TOKENIZERS_PARALLELISM="true")
    pulled = subprocess.run([args.binary, "pull", MODEL], capture_output=True, text=True, check=True)
    folder = Path(pulled.stdout.strip())
    peer = SentenceTransformers(folder, args.threads)
    fast = FastEmbed(folder, args.work, args.threads, peer.model[0].auto_model.eval())
    ponder = Ponder(args.binary, args.threads)
    engines = [ponder, peer, fast]
    try:
        words = (ROOT / "tests/goldens/text.txt").read_text().split()
        sets = {name: texts(words, *shape, seed) for seed, (name, shape) in enumerate(SETS.items())}
        check(engines, sets["mixed"])
        counts = {}
        for name, inputs in sets.items():
            ponder.encode(inputs)
            counts[name] = ponder.num_tokens
        sets["one"] = sets["short"][:1]
        seconds = measure(engines, sets, args.repeats)
    finally:
        ponder.stop()
    print(f"| {args.threads} threads | " + " | ".join(engine.name for engine in engines) + " |")
    print("|---" * (1 + len(engines)) + "|")
    for name, count in counts.items():
        cells = []
        for engine in engines:
            times = seconds[name][engine.name]
            cells.append(f"{count / statistics.median(times):,.0f} ({count / min(times):,.0f})")
        print(f"| {name}: {len(sets[name])} texts, {count:,} tokens, tok/s (best) | " + " | ".join(cells) + " |")
    times = [1000 * statistics.median(seconds["one"][engine.name]) for engine in engines]
    print("| one short text, ms | " + " | ".join(f"{it:.1f}" for it in times) + " |")


if __name__ == "__main__":
    main()
