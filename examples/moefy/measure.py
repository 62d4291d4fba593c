"""Perplexity, and how the tokens spread over the experts."""

import math
import tempfile
from pathlib import Path

import torch

import export
from model import Student, reorder
from weights import Experts, read_dense

# Logits of this many positions at a time: the vocabulary is large.
POSITIONS_AT_ONCE = 256
CHECKED_TEXT = "def fibonacci(n):\n    \"\"\"The first n numbers.\"\"\"\n    a, b = 0, 1\n    for _ in range(n):\n" * 4


@torch.no_grad()
def perplexity(model, tokens, context, teacher=None, rows_at_once=4):
    """The perplexity over whole windows of `context` tokens, each position from those before it in its window.

    With a teacher also the mean KL divergence from it, and of a mixture the loads of its experts.
    """
    device = model.weights["token_embd.weight"].device
    rows = tokens[: len(tokens) // context * context].view(-1, context).to(device)
    cross_entropy, divergence, loads, num = 0.0, 0.0, [], 0
    for part in rows.split(rows_at_once):
        hidden = model.hidden(part)[:, :-1].flatten(0, 1)
        teacher_hidden = teacher.hidden(part)[:, :-1].flatten(0, 1) if teacher else hidden
        targets = part[:, 1:].flatten()
        for start in range(0, len(targets), POSITIONS_AT_ONCE):
            some = slice(start, start + POSITIONS_AT_ONCE)
            log = model.logits(hidden[some]).float().log_softmax(dim=-1)
            cross_entropy -= float(log.gather(-1, targets[some, None]).sum())
            if teacher:
                wanted = teacher.logits(teacher_hidden[some]).float().log_softmax(dim=-1)
                divergence += float((wanted.exp() * (wanted - log)).sum())
        num += len(targets)
        if getattr(model, "loads", None):
            loads.append(torch.stack(model.loads) * len(part))
    measured = {"tokens": rows.numel(), "perplexity": math.exp(cross_entropy / num)}
    if teacher:
        measured["divergence"] = divergence / num
    return measured | (load_summary(sum(loads) / len(rows)) if loads else {})


def load_summary(loads):
    """Of the picks of all experts, [layers, E], each layer's adding up to 1: how even they are.

    A load of 1 is an even share. `effective_experts` is the exponential of the entropy, a mean over the layers.
    """
    relative = loads * loads.shape[1]
    entropy = -(loads * loads.clamp(min=1e-9).log()).sum(dim=1)
    return {
        "smallest_load": round(float(relative.min()), 3),
        "largest_load": round(float(relative.max()), 3),
        "effective_experts": round(float(entropy.exp().mean()), 2),
        "unused_experts": int((loads == 0).sum()),
    }



@torch.no_grad()
def compare(base, state, tokenizer_folder):
    """How far the logits of transformers' Qwen2MoeForCausalLM, over the exported weights, are from the student's.

    Both in f32: in bf16 near ties of the routers fall differently, and hide mistakes.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    tokens = torch.tensor([AutoTokenizer.from_pretrained(tokenizer_folder)(CHECKED_TEXT)["input_ids"]])
    shape, weights = read_dense(base, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "hf"
        merged = export.merge(shape, weights, state)
        export.write_hf(folder, shape, Experts.of(state), merged, tokenizer_folder, export.special_tokens(base), torch.float32)
        del merged, weights
        exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits[0]
    shape, weights = read_dense(base, dtype=torch.float32)
    reorder(weights, state["order"])
    student = Student(shape, weights, state)
    wanted = student.logits(student.hidden(tokens))[0]
    return {
        "tokens": len(wanted),
        "largest_difference": float((exported - wanted).abs().max()),
        "largest_logit": float(wanted.abs().max()),
        "same_first_choice": float((exported.argmax(-1) == wanted.argmax(-1)).float().mean()),
    }
