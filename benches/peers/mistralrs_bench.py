"""Prefill and decode speed of mistral.rs (the wheel `mistralrs`) on one GGUF file, as JSON. One request at a time: the
wheel's runner refuses calls from several threads.

    RAYON_NUM_THREADS=2 python mistralrs_bench.py MODEL.gguf
"""

import json
import sys
import time
from pathlib import Path

from mistralrs import CompletionRequest, Runner, Which

PREFILL, PROMPT, OUTPUT = 512, 128, 48
WORDS = "river stone light seven copper quiet engine garden north paper signal window market bridge silver winter".split()


def prompt(num_words, seed):
    """About one token a word; the answer's usage says how many it really were."""
    return " ".join(WORDS[(i * 7 + seed * 5 + i // 16) % 16] for i in range(num_words))


def ask(runner, text, max_tokens):
    request = CompletionRequest(prompt=text, model="default", max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    started = time.perf_counter()
    usage = runner.send_completion_request(request).usage
    return usage, time.perf_counter() - started


def main():
    path = Path(sys.argv[1])
    runner = Runner(which=Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name), prefix_cache_n=0)
    ask(runner, prompt(8, 99), 4)
    usage, seconds = ask(runner, prompt(PREFILL, 1), 1)
    decode = ask(runner, prompt(PROMPT, 2), OUTPUT)[0].avg_compl_tok_per_sec
    print(json.dumps({"prefill": usage.prompt_tokens / seconds, "decode": {"1": decode}}))


main()
