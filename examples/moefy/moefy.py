"""Turns the dense model qwen2.5-coder-0.5b into a mixture of experts. See README.md.

    python moefy.py data       --base dense.gguf --out data
    python moefy.py split      --base dense.gguf --data data --out split
    python moefy.py train      --base dense.gguf --data data --state split --out trained
    python moefy.py export     --base dense.gguf --data data --state trained --hf moe/hf --gguf moe/moe.gguf
    python moefy.py perplexity --base dense.gguf --data data --state trained
    python moefy.py check      --base dense.gguf --data data --state trained
"""

import argparse
import json
import sysconfig
from pathlib import Path

import numpy as np
import torch


def data_command(args):
    import data

    python_roots = args.python_roots or [sysconfig.get_paths()["stdlib"]]
    tokenizer = data.load_tokenizer(args.base)
    streams = data.build(tokenizer, python_roots, args.doc_roots, args.tokens, args.valid_tokens)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, tokens in streams.items():
        np.savez_compressed(args.out / f"{name}.npz", tokens=tokens)
        print(f"{name}: {len(tokens)} tokens")
    tokenizer.save_pretrained(args.out / "tokenizer")


def split_command(args):
    import split
    from data import load_tokens
    from weights import Experts, read_dense, save_state

    shape, weights = read_dense(args.base, args.device)
    tokens = load_tokens(args.data, "train", args.tokens)
    save_state(args.out, split.split(shape, weights, tokens, args.method, Experts(used=args.used)))


def train_command(args):
    import train

    train.run(args)


def export_command(args):
    import export
    from weights import load_state

    export.run(args.base, load_state(args.state), args.data / "tokenizer", args.hf, args.gguf, args.quant)


def perplexity_command(args):
    import measure
    from data import load_tokenizer, load_tokens
    from model import Dense, Student, reorder
    from weights import load_state, read_dense

    shape, weights = read_dense(args.base, args.device, getattr(torch, args.dtype))
    if args.text:
        tokenizer = load_tokenizer(args.base)
        tokens = torch.tensor(tokenizer(args.text.read_text(), add_special_tokens=False)["input_ids"])
    else:
        tokens = load_tokens(args.data, "valid")
    tokens = tokens[: args.limit]
    model, teacher = Dense(shape, weights), None
    if args.state:
        state = load_state(args.state, args.device)
        reorder(weights, state["order"])
        model, teacher = Student(shape, weights, state), model
    print(json.dumps(measure.perplexity(model, tokens, args.context, teacher)))


def check_command(args):
    import measure
    from weights import load_state

    print(json.dumps(measure.compare(args.base, load_state(args.state), args.data / "tokenizer")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name, function, help):
        sub = commands.add_parser(name, help=help)
        sub.set_defaults(function=function)
        sub.add_argument("--base", type=Path, required=True, help="the dense model's GGUF file")
        sub.add_argument("--data", type=Path, default=Path("data"), help="the folder that `data` wrote")
        sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        return sub

    sub = command("data", data_command, "gather and tokenise the training text")
    sub.add_argument("--out", type=Path, default=Path("data"))
    sub.add_argument("--python-roots", nargs="+", help="folders of Python source; the standard library if not given")
    sub.add_argument("--doc-roots", nargs="+", default=["/usr/share/doc"], help="folders of .md, .rst and .txt")
    sub.add_argument("--tokens", type=int, default=20_000_000)
    sub.add_argument("--valid-tokens", type=int, default=50_000)

    sub = command("split", split_command, "split the FFNs into experts")
    sub.add_argument("--out", type=Path, default=Path("split"))
    sub.add_argument("--tokens", type=int, default=16_384)
    sub.add_argument("--used", type=int, default=16, help="experts of a token, of 28")
    sub.add_argument("--method", choices=("activity", "directions"), default="activity")

    sub = command("train", train_command, "train the mixture to give the dense model's answers")
    sub.add_argument("--state", type=Path, default=Path("split"))
    sub.add_argument("--out", type=Path, default=Path("trained"))
    sub.add_argument("--seconds", type=float, default=400, help="how long to train")
    sub.add_argument("--rows", type=int, default=16, help="rows of a step; halved when the memory is too small")
    sub.add_argument("--length", type=int, default=1024, help="tokens of a row")
    sub.add_argument("--rate", type=float, default=6e-4, help="the adapters' highest learning rate")
    sub.add_argument("--seed", type=int, default=0, help="of the order of the rows")
    sub.add_argument("--valid-rows", type=int, default=48, help="validation rows before and after")
    sub.add_argument("--compile", action="store_true", help="fuse the element-wise kernels with torch.compile")

    sub = command("export", export_command, "write the mixture as safetensors and GGUF")
    sub.add_argument("--state", type=Path, default=Path("trained"))
    sub.add_argument("--hf", type=Path, help="the folder of the safetensors form")
    sub.add_argument("--gguf", type=Path, help="the GGUF file")
    sub.add_argument("--quant", choices=("q8_0", "q4_0"), default="q8_0")

    sub = command("perplexity", perplexity_command, "the perplexity of the dense model, or of the mixture with --state")
    sub.add_argument("--state", type=Path)
    sub.add_argument("--text", type=Path, help="a text file instead of the validation tokens")
    sub.add_argument("--context", type=int, default=512)
    sub.add_argument("--limit", type=int, help="at most this many tokens")
    sub.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")

    sub = command("check", check_command, "compare the exported form in transformers with the trained one")
    sub.add_argument("--state", type=Path, default=Path("trained"))

    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
