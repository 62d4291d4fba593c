#!/usr/bin/env python3
"""Writes a GGUF file of a real shape with random Q4_K_M weights: `random_gguf.py SHAPE FILE`, with llama.cpp's gguf-py on the path."""

import sys

import gguf
import numpy as np

SHAPES = {
    "1.5b": ("qwen2", dict(hidden=1536, inner=8960, layers=28, heads=12, kv_heads=2, vocab=151936, tied=True)),
    "8b": ("llama", dict(hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, vocab=128256, tied=False)),
}
Q4_K, Q6_K = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K
BLOCK_BYTES = {Q4_K: 144, Q6_K: 210}
# Where the f16 scales lie in a block, and how large they make values.
SCALES = {Q4_K: [(0, 3e-5), (2, 2e-4)], Q6_K: [(208, 1e-5)]}


def blocks(kind, rows, width, rng):
    size = BLOCK_BYTES[kind]
    data = rng.integers(0, 256, (rows * width // 256, size), dtype=np.uint8)
    for at, scale in SCALES[kind]:
        data[:, at:at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return data.reshape(rows, width // 256 * size)


def main():
    architecture, s = SHAPES[sys.argv[1]]
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(sys.argv[2], architecture)
    writer.add_context_length(32768)
    writer.add_embedding_length(s["hidden"])
    writer.add_block_count(s["layers"])
    writer.add_feed_forward_length(s["inner"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(s["vocab"])
    writer.add_tokenizer_model("no_vocab")
    head_dim = s["hidden"] // s["heads"]
    kv = s["kv_heads"] * head_dim

    def matrix(name, kind, rows, width):
        writer.add_tensor(name, blocks(kind, rows, width, rng), raw_dtype=kind)

    matrix("token_embd.weight", Q6_K if s["tied"] else Q4_K, s["vocab"], s["hidden"])
    if not s["tied"]:
        matrix("output.weight", Q6_K, s["vocab"], s["hidden"])
    writer.add_tensor("output_norm.weight", np.ones(s["hidden"], np.float32))
    eighth = s["layers"] // 8
    for layer in range(s["layers"]):
        name = f"blk.{layer}."
        more = layer < eighth or layer >= 7 * s["layers"] // 8 or (layer - eighth) % 3 == 2
        wide = Q6_K if more else Q4_K
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(name + norm + ".weight", np.ones(s["hidden"], np.float32))
        matrix(name + "attn_q.weight", Q4_K, s["hidden"], s["hidden"])
        matrix(name + "attn_k.weight", Q4_K, kv, s["hidden"])
        matrix(name + "attn_v.weight", wide, kv, s["hidden"])
        if architecture == "qwen2":
            for part, width in (("q", s["hidden"]), ("k", kv), ("v", kv)):
                writer.add_tensor(f"{name}attn_{part}.bias", np.full(width, 0.01, np.float32))
        matrix(name + "attn_output.weight", Q4_K, s["hidden"], s["hidden"])
        matrix(name + "ffn_gate.weight", Q4_K, s["inner"], s["hidden"])
        matrix(name + "ffn_up.weight", Q4_K, s["inner"], s["hidden"])
        matrix(name + "ffn_down.weight", wide, s["hidden"], s["inner"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
