"""Training: the mixture learns to give the dense model's next-token distributions.

The dense weights stay as they are (they are also the teacher). What is trained: LoRA adapters on every matrix of the
layers, the routers, and the shared experts' gates.
"""

import json
import math
import random
import time

import torch
import torch.nn.functional as F

import measure
import model as model_module
from data import load_tokens
from model import ATTENTION, FFN, Dense, Student, reorder
from weights import load_state, read_dense, save_state

FFN_RANK, ATTENTION_RANK = 64, 16
# The learning rate of the routers and shared gates, a share of that of the adapters: their inputs are large.
GATE_SHARE = 0.1
BETAS, CLIP = (0.9, 0.95), 1.0
# Shares of the time.
WARM_UP, LAST_RATE = 0.02, 0.03
CROSS_ENTROPY, BALANCE = 0.1, 0.01
# Logits of this many positions at a time, by device: the vocabulary is large, and a processor's caches are small.
POSITIONS_AT_ONCE = {"cuda": 2048, "cpu": 128}
CHECKPOINT_SECONDS, LOG_STEPS = 60, 10


def add_adapters(shape, weights, state):
    """LoRA matrices in f32 that change nothing at first: A is random, B is 0."""
    generator = torch.Generator().manual_seed(0)
    for layer in range(shape.layers):
        for name in FFN + ATTENTION:
            weight = weights[f"blk.{layer}.{name}.weight"]
            outputs, inputs = weight.shape
            rank = FFN_RANK if name in FFN else ATTENTION_RANK
            bound = 1 / math.sqrt(inputs)
            lora_a = (torch.rand(rank, inputs, generator=generator) * 2 - 1) * bound
            state[f"blk.{layer}.{name}.lora_a"] = lora_a.to(weight.device)
            state[f"blk.{layer}.{name}.lora_b"] = torch.zeros(outputs, rank, device=weight.device)


def divergence_and_gradient(student_logits, teacher_logits, targets, scale):
    """Sums of KL(teacher, student) and of the cross-entropy over the positions, and the gradient by student_logits.

    Logits [n, vocabulary]; targets [n]. The gradient is that of scale * (KL + CROSS_ENTROPY * cross-entropy): with
    probabilities s and t it is s - t, and s - one_hot, so no graph over the logits is needed.
    """
    student_log = F.log_softmax(student_logits.float(), dim=-1)
    teacher_log = F.log_softmax(teacher_logits.float(), dim=-1)
    teacher = teacher_log.exp()
    divergence = (teacher * (teacher_log - student_log)).sum()
    cross_entropy = -student_log.gather(-1, targets[:, None]).sum()
    gradient = (1 + CROSS_ENTROPY) * student_log.exp() - teacher
    correct = torch.full_like(targets[:, None], -CROSS_ENTROPY, dtype=gradient.dtype)
    gradient = gradient.scatter_add(-1, targets[:, None], correct)
    return divergence, cross_entropy, (gradient * scale).to(student_logits.dtype)


def step(student, teacher, rows):
    """One forward and backward pass over rows [B, T]: the mean KL, cross-entropy and balance loss, as tensors."""
    targets = rows[:, 1:].flatten()
    with torch.no_grad():
        teacher_hidden = teacher.hidden(rows)[:, :-1].flatten(0, 1)
    output = student.hidden(rows)
    student_hidden = output[:, :-1].detach().flatten(0, 1)
    gradient = torch.empty_like(student_hidden)
    divergence, cross_entropy, num = 0.0, 0.0, len(targets)
    at_once = POSITIONS_AT_ONCE[rows.device.type]
    with torch.no_grad():
        for start in range(0, num, at_once):
            part = slice(start, start + at_once)
            kl, ce, by_logits = divergence_and_gradient(
                student.logits(student_hidden[part]), teacher.logits(teacher_hidden[part]), targets[part], 1 / num
            )
            gradient[part] = by_logits @ student.weights["output.weight"]
            divergence, cross_entropy = divergence + kl, cross_entropy + ce
    balance = torch.stack(student.balance).mean()
    # The last position of a row predicts nothing.
    gradient = F.pad(gradient.view(len(rows), -1, gradient.shape[-1]), (0, 0, 0, 1))
    torch.autograd.backward([output, BALANCE * balance], [gradient, None])
    return divergence / num, cross_entropy / num, balance.detach()


def batches(tokens, length, seed=0):
    """Rows of tokens [length] without end, shuffled anew each time round."""
    rows = tokens[: len(tokens) // length * length].view(-1, length)
    order, rng = list(range(len(rows))), random.Random(seed)
    while True:
        rng.shuffle(order)
        for i in order:
            yield rows[i]


def rate(share):
    """The learning rate's factor at a share of the time: a short rise, then a cosine."""
    if share < WARM_UP:
        return share / WARM_UP + 0.01
    share = min(1.0, (share - WARM_UP) / (1 - WARM_UP))
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * share)) / 2


def compiled_kernels(device):
    """Fuses the element-wise kernels, if torch.compile works on this machine."""
    global divergence_and_gradient
    plain = model_module.gated_activation, divergence_and_gradient
    try:
        model_module.gated_activation = torch.compile(plain[0], dynamic=False)
        divergence_and_gradient = torch.compile(plain[1], dynamic=True)
        x = torch.randn(2, 8, 256, device=device, dtype=torch.bfloat16, requires_grad=True)
        model_module.gated_activation(x, x, torch.ones(2, 8, 2, device=device, dtype=x.dtype)).sum().backward()
        logits = torch.randn(64, 1000, device=device, dtype=x.dtype)
        divergence_and_gradient(logits, logits, torch.zeros(64, device=device, dtype=torch.long), 1.0)
    except Exception as error:  # Whatever the compiler lacks, the plain kernels do the same.
        print(f"no compiled kernels: {error!r}", flush=True)
        model_module.gated_activation, divergence_and_gradient = plain


class Log:
    """Lines of JSON, on the screen and in a file."""

    def __init__(self, path):
        self.file = open(path, "a")

    def __call__(self, **values):
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
        line = json.dumps(rounded)
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def trainable(shape, weights, state):
    """The adapters and the gates of a state, ready to be trained: new adapters, or those of an earlier run."""
    if any("lora" in name for name in state):
        state.update({name: tensor.float() for name, tensor in state.items() if "lora" in name})
    else:
        add_adapters(shape, weights, state)
    adapters = [tensor for name, tensor in state.items() if "lora" in name]
    gates = [state["router"], state["shared_gate"]]
    for tensor in adapters + gates:
        tensor.requires_grad_(True)
    return adapters, gates


def save(folder, state):
    """Adapters in bf16, the rest as it is."""
    saved = {name: tensor.to(torch.bfloat16) if "lora" in name else tensor for name, tensor in state.items()}
    save_state(folder, saved)


def fit(student, teacher, tokens, args, report):
    """Trains for args.seconds. The rates follow the clock, so that any machine goes through the whole schedule."""
    state, device = student.state, student.weights["token_embd.weight"].device
    adapters, gates = trainable(student.shape, student.weights, state)
    groups = [{"params": adapters, "lr": args.rate}, {"params": gates, "lr": args.rate * GATE_SHARE}]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)
    rates = [group["lr"] for group in groups]
    source, num_rows = batches(tokens, args.length, args.seed), args.rows
    started = saved = time.monotonic()
    steps = seen = skipped = 0
    recent = []
    while (elapsed := time.monotonic() - started) < args.seconds:
        for group, highest in zip(optimizer.param_groups, rates):
            group["lr"] = highest * rate(elapsed / args.seconds)
        rows = torch.stack([next(source) for _ in range(num_rows)]).to(device)
        optimizer.zero_grad()
        try:
            losses = step(student, teacher, rows)
        except torch.OutOfMemoryError:
            if num_rows == 1:
                raise
            num_rows //= 2
            optimizer.zero_grad()
            torch.cuda.empty_cache()
            print(f"out of memory: {num_rows} rows a step from now on", flush=True)
            continue
        norm = torch.nn.utils.clip_grad_norm_(adapters + gates, CLIP)
        if torch.isfinite(norm):
            optimizer.step()
        else:
            skipped += 1
        steps, seen = steps + 1, seen + rows.numel()
        recent.append(torch.stack(losses).float())
        if steps % LOG_STEPS == 0 or steps == 1:
            kl, cross_entropy, balance = torch.stack(recent).mean(dim=0).tolist()
            recent.clear()
            seconds = time.monotonic() - started
            report(
                step=steps, tokens=seen, seconds=seconds, kl=kl, cross_entropy=cross_entropy, balance=balance,
                gradient=float(norm), skipped=skipped,
            )  # fmt: skip
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save(args.out, state)
            saved = time.monotonic()
    save(args.out, state)
    seconds = time.monotonic() - started
    report(steps=steps, tokens=seen, seconds=seconds, tokens_per_second=seen / seconds, rows=num_rows)


def run(args):
    shape, weights = read_dense(args.base, args.device)
    state = load_state(args.state, args.device)
    reorder(weights, state["order"])
    teacher, student = Dense(shape, weights), Student(shape, weights, state)
    valid, tokens = load_tokens(args.data, "valid"), load_tokens(args.data, "train")
    valid = valid[: args.valid_rows * args.length]
    args.out.mkdir(parents=True, exist_ok=True)
    report = Log(args.out / "log.jsonl")

    def validate(name, model):
        report(model=name, **measure.perplexity(model, valid, args.length, teacher))

    validate("dense", teacher)
    validate("before", student)
    if args.compile:
        compiled_kernels(args.device)
    fit(student, teacher, tokens, args, report)
    validate("after", student)
