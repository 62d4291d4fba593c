"""Prefill and decode speed of ik_llama.cpp (the wheel `ik-llama-cpp-python`, through its ctypes bindings) on one GGUF
file, as JSON. Token ids are random: speed does not depend on them. `self_kl` tells whether its answers can be trusted.

    python ik_bench.py MODEL.gguf --threads 2 --batch 1,16
"""

import argparse
import json
import math
import random
import statistics
import time
from pathlib import Path

from ik_llama_cpp import _ctypes_api as ik

PREFILL, PROMPT, OUTPUT = 512, 128, 48
LONG_OUTPUT = 32
CHECKED = 32  # Tokens of the prompt that self_kl reads in two ways.


def has_vnni():
    """The bindings warn that ik_llama.cpp's flash attention fails an assertion on processors without VNNI."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def open_context(args):
    ik.llama_backend_init()
    model_params = ik.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = ik.llama_model_load_from_file(args.model.encode(), model_params)
    if not model:
        raise SystemExit(f"ik_llama.cpp cannot load {args.model}")
    params = ik.llama_context_default_params()
    params.n_ctx = max(PREFILL, max(args.batch) * (PROMPT + OUTPUT), args.long + OUTPUT) + 256
    params.n_batch = params.n_ubatch = PREFILL
    params.n_seq_max = max(args.batch)
    params.n_threads = params.n_threads_batch = args.threads
    params.flash_attn = has_vnni()
    context = ik.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("ik_llama.cpp cannot make a context")
    vocab_size = ik.llama_vocab_n_tokens(ik.llama_model_get_vocab(model))
    return context, vocab_size


def decode(context, batch, rows):
    """One llama_decode over `rows` of (token, position, sequence, wants logits)."""
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, wants_logits) in enumerate(rows):
        batch.token[i] = token
        batch.pos[i] = position
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = sequence
        batch.logits[i] = wants_logits
    status = ik.llama_decode(context, batch)
    if status != 0:
        raise SystemExit(f"llama_decode returned {status}")
    # Reading the last row's logits waits for the graph, should it still be running.
    ik.llama_get_logits_ith(context, len(rows) - 1)


def prompt_rows(token, length, sequence):
    return [(token(), position, sequence, position == length - 1) for position in range(length)]


def prefill_speed(context, batch, token):
    ik.llama_kv_cache_clear(context)
    rows = prompt_rows(token, PREFILL, 0)
    started = time.perf_counter()
    decode(context, batch, rows)
    return PREFILL / (time.perf_counter() - started)


def decode_speed(context, batch, token, num_sequences):
    ik.llama_kv_cache_clear(context)
    for sequence in range(num_sequences):
        decode(context, batch, prompt_rows(token, PROMPT, sequence))
    started = time.perf_counter()
    for position in range(PROMPT, PROMPT + OUTPUT):
        decode(context, batch, [(token(), position, sequence, True) for sequence in range(num_sequences)])
    return num_sequences * OUTPUT / (time.perf_counter() - started)


def long_context(context, batch, token, num_tokens):
    """Speeds and memory at one long context, read in pieces of the batch."""
    started = time.perf_counter()
    for start in range(0, num_tokens, PREFILL):
        places = range(start, min(start + PREFILL, num_tokens))
        decode(context, batch, [(token(), at, 0, at == places[-1]) for at in places])
    read = time.perf_counter()
    for position in range(num_tokens, num_tokens + LONG_OUTPUT):
        decode(context, batch, [(token(), position, 0, True)])
    ended = time.perf_counter()
    status = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in status if line.startswith("Vm"))
    kilobytes = {name: int(sizes[name].split()[0]) for name in ["VmRSS", "VmHWM"]}
    return {
        "prefill": num_tokens / (read - started),
        "decode": LONG_OUTPUT / (ended - read),
        "rss": kilobytes["VmRSS"] * 1024,
        "peak_rss": kilobytes["VmHWM"] * 1024,
    }


def log_probs(context, row, vocab_size):
    logits = ik.llama_get_logits_ith(context, row)[:vocab_size]
    largest = max(logits)
    normalizer = largest + math.log(sum(math.exp(logit - largest) for logit in logits))
    return [logit - normalizer for logit in logits]


def self_kl(context, batch, token, vocab_size):
    """KL (nat) between the next tokens after a prompt read token by token and the same prompt read in one batch. Both are
    the same model, so a large one means that the batched kernels measured here compute something else."""
    rows = prompt_rows(token, CHECKED, 0)
    ik.llama_kv_cache_clear(context)
    for token_id, position, sequence, _ in rows:
        decode(context, batch, [(token_id, position, sequence, True)])
    single = log_probs(context, 0, vocab_size)
    ik.llama_kv_cache_clear(context)
    decode(context, batch, rows)
    batched = log_probs(context, CHECKED - 1, vocab_size)
    return sum(math.exp(p) * (p - q) for p, q in zip(single, batched))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    parser.add_argument("--long", type=int, default=0, help="measure one context of this length")
    args = parser.parse_args()

    context, vocab_size = open_context(args)
    batch = ik.llama_batch_init(PREFILL, 0, 1)
    dice = random.Random(0)

    def token():
        return dice.randrange(vocab_size)

    def median(measure, *arguments):
        return statistics.median(measure(context, batch, token, *arguments) for _ in range(args.repeats))

    if args.long:
        print(json.dumps(long_context(context, batch, token, args.long)))
        return
    prefill_speed(context, batch, token)  # A warm-up, as llama-bench has.
    result = {
        "prefill": median(prefill_speed),
        "decode": {str(n): median(decode_speed, n) for n in args.batch},
        "self_kl": self_kl(context, batch, token, vocab_size),
    }
    print(json.dumps(result))


main()
