#!/usr/bin/env python3
"""Prefill and decode of a random model in transformers, as fast as it goes without another engine.

bf16, a static cache, SDPA, and the decode step in a CUDA graph. Shapes are those of `ponder bench engine --random`.
Prints one JSON object a measurement.

    python3 benches/gpu/transformers_decode.py --shape 8b --batch 1,64 --context 512 --prefill 2048
"""

import argparse
import json
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

SHAPES = {
    "0.5b": ("qwen2", dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                           num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True)),
    "1.5b": ("qwen2", dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                           num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True)),
    "8b": ("llama", dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False)),
}


def load(shape):
    model_type, sizes = SHAPES[shape]
    config = AutoConfig.for_model(model_type, max_position_embeddings=32768, **sizes)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.eval()


def median_seconds(run, repeats):
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@torch.inference_mode()
def prefill(model, length, repeats):
    ids = torch.randint(0, 10000, (1, length), device="cuda")
    run = lambda: model(ids, use_cache=True, logits_to_keep=1)
    run()
    return length / median_seconds(run, repeats)


@torch.inference_mode()
def decode(model, batch, context, steps, repeats):
    cache = StaticCache(config=model.config, max_cache_len=1024)
    ids = torch.randint(0, 10000, (batch, context), device="cuda")
    position = torch.arange(context, device="cuda")
    # A few rows at a time: logits of a whole prompt batch would not fit.
    model(ids, past_key_values=cache, cache_position=position, use_cache=True, logits_to_keep=1)
    token = torch.zeros((batch, 1), dtype=torch.long, device="cuda")
    at = torch.tensor([context], device="cuda")

    def step():
        logits = model(token, past_key_values=cache, cache_position=at, position_ids=at[None].expand(batch, 1), use_cache=True).logits
        token.copy_(logits[:, -1].argmax(-1, keepdim=True))
        at.add_(1)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def run():
        at.fill_(context)
        for _ in range(steps):
            graph.replay()

    run()
    return batch * steps / median_seconds(run, repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--batch", default="1,16,64")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prefill", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = load(args.shape)
    emit = lambda **fields: print(json.dumps(dict(engine="transformers", shape=args.shape, weights="bf16", **fields)), flush=True)
    if args.prefill:
        emit(prefill=args.prefill, tokens_per_second=prefill(model, args.prefill, args.repeats))
    for batch in [int(b) for b in args.batch.split(",") if b]:
        emit(batch=batch, context=args.context, tokens_per_second=decode(model, batch, args.context, args.steps, args.repeats))


if __name__ == "__main__":
    main()
