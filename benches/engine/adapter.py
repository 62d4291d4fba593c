"""Writes a random LoRA adapter of every matrix of every layer, to measure what one costs. Standard
library only.

python benches/engine/adapter.py smollm2-135m --rank 8 --out adapter
ponder bench engine smollm2-135m --batch 1,16 --prefill 256 --lora adapter
"""

import argparse
import array
import json
import random
import struct
from pathlib import Path

# Layers, hidden size, inner size, width of queries, width of keys and values.
SHAPES = {
    "smollm2-135m": (30, 576, 1536, 576, 192),
    "qwen2.5-coder-0.5b": (24, 896, 4864, 896, 128),
    "qwen2.5-coder-1.5b": (28, 1536, 8960, 1536, 256),
}


def matrices(hidden, inner, q, kv):
    """Name, outputs and inputs of a layer's matrices."""
    attention = [
        ("q_proj", q, hidden),
        ("k_proj", kv, hidden),
        ("v_proj", kv, hidden),
        ("o_proj", hidden, q),
    ]
    mlp = [("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)]
    return [(f"self_attn.{n}", o, i) for n, o, i in attention] + [
        (f"mlp.{n}", o, i) for n, o, i in mlp
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    layers, *sizes = SHAPES[args.model]
    generator = random.Random(1)
    pool = array.array("f", (generator.uniform(-0.02, 0.02) for _ in range(1 << 16)))
    header, parts, at = {}, [], 0
    for layer in range(layers):
        for name, outputs, inputs in matrices(*sizes):
            for half, shape in (("A", (args.rank, inputs)), ("B", (outputs, args.rank))):
                count = shape[0] * shape[1]
                first = generator.randrange(1 << 16)
                values = (pool[first:] + pool * (count // len(pool) + 1))[:count].tobytes()
                key = f"base_model.model.model.layers.{layer}.{name}.lora_{half}.weight"
                header[key] = {
                    "dtype": "F32",
                    "shape": shape,
                    "data_offsets": (at, at + len(values)),
                }
                parts.append(values)
                at += len(values)
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header).encode()
    (args.out / "adapter_model.safetensors").write_bytes(
        b"".join([struct.pack("<Q", len(text)), text, *parts])
    )
    config = {"peft_type": "LORA", "r": args.rank, "lora_alpha": 2 * args.rank, "bias": "none"}
    (args.out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
