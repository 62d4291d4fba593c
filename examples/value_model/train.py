"""Trains a value model: a LoRA adapter of the policy with a head of one value, for `ponder serve --value-adapter`.

    ponder traces export --format step_values --tag values --out rows.jsonl
    python train.py --base "$(ponder pull qwen2.5-coder-0.5b)" --rows rows.jsonl --out value-1

--base is the .gguf file that is served (its weights are dequantised), or a folder of a Hugging Face model. The loss is
the cross entropy of soft targets at each token whose target is known, and, between right and wrong answers to one prompt,
that of their order. Prompts are split into training and held-out ones; the adapter that does best on the held-out prompts
is kept, the head is calibrated on them, and report.json and reliability.png in --out say how good it is.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

import data
import metrics
from model import ValueModel, load_base


class Master:
    """AdamW on 32-bit copies of the parameters: a step would often be too small for 16 bits."""

    def __init__(self, parameters, learning_rate):
        self.parameters = parameters
        self.copies = [parameter.detach().float().clone() for parameter in parameters]
        self.optimiser = torch.optim.AdamW(self.copies, lr=learning_rate, weight_decay=0.01)

    def step(self):
        for copy, parameter in zip(self.copies, self.parameters):
            copy.grad = None if parameter.grad is None else parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(self.copies, 1.0)
        self.optimiser.step()
        for copy, parameter in zip(self.copies, self.parameters):
            parameter.data.copy_(copy)
            parameter.grad = None


def losses(model, group, answers, pairwise):
    """The loss of one prompt's answers, or None where nothing is known."""
    logits = model(group.prompt_token_ids, [answer.token_ids for answer in answers])
    total, num = 0.0, 0
    for of, answer in zip(logits, answers):
        known = [at for at, target in enumerate(answer.targets) if target is not None]
        if not known:
            continue
        targets = torch.tensor([answer.targets[at] for at in known])
        # A mean over the answer, so that long answers do not count more, and as much again for the
        # last token, where a whole answer's value is read.
        each = torch.nn.functional.binary_cross_entropy_with_logits(of[known], targets, reduction="none")
        total = total + (each.mean() + each[-1]) / 2
        num += 1
    if not num:
        return None
    loss = total / num
    right = [of[-1] for of, answer in zip(logits, answers) if answer.outcome == 1]
    wrong = [of[-1] for of, answer in zip(logits, answers) if answer.outcome == 0]
    if pairwise and right and wrong:
        gaps = torch.stack(right)[:, None] - torch.stack(wrong)[None, :]
        loss = loss + pairwise * torch.nn.functional.softplus(-gaps).mean()
    return loss


@torch.no_grad()
def measured(model, groups, most, name):
    """Logits and outcomes of whole answers, by prompt, and the mean loss."""
    model.eval()
    found, total, num = [], 0.0, 0
    for group in tqdm(groups, desc=name, leave=False):
        answers = group.answers[:most]
        logits = model(group.prompt_token_ids, [answer.token_ids for answer in answers])
        graded = [(float(of[-1]), answer) for of, answer in zip(logits, answers) if answer.outcome is not None]
        found.append((group, graded))
        for logit, answer in graded:
            total += float(torch.nn.functional.softplus(torch.tensor(logit if answer.outcome < 0.5 else -logit)))
            num += 1
    model.train()
    return found, total / max(num, 1)


def scores(found):
    """(logit, is right) lists of prompts with right and wrong answers."""
    return [[(logit, answer.outcome == 1) for logit, answer in graded] for group, graded in found if group.is_mixed()]


def train(model, groups, held_out, args):
    """Returns the best held-out AUC; the best adapter is in --out."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    master = Master(parameters, args.learning_rate)
    num_steps = max(1, math.ceil(args.epochs * len(groups) / args.prompts_per_step))
    warmup = max(1, num_steps // 20)

    def rate(step):
        return min((step + 1) / warmup, max(0.05, (num_steps - step) / max(1, num_steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(master.optimiser, rate)
    best, num_worse, step, started = -1.0, 0, 0, time.monotonic()
    every = max(1, num_steps // args.evaluations)
    bar = tqdm(total=num_steps, desc="training", unit="step")
    for number in range(math.ceil(args.epochs)):
        examples = data.epoch(groups, args.answers_per_prompt, args.seed + number)
        for at in range(0, len(examples), args.prompts_per_step):
            batch, running = examples[at : at + args.prompts_per_step], 0.0
            for group, answers in batch:
                loss = losses(model, group, answers, args.pairwise)
                if loss is not None:
                    (loss / len(batch)).backward()
                    running += float(loss) / len(batch)
            master.step()
            schedule.step()
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{running:.3f}")
            is_out_of_time = args.minutes and time.monotonic() - started > 60 * args.minutes
            if step % every == 0 or step == num_steps or is_out_of_time:
                found, loss = measured(model, held_out, args.held_out_answers, "held out")
                auc, num = metrics.within_prompt_auc(scores(found))
                tqdm.write(f"step {step}: held-out loss {loss:.4f}, AUC within a prompt {auc:.3f} ({num} prompts)")
                num_worse = 0 if auc > best else num_worse + 1
                if auc > best:
                    best = auc
                    model.save(args.out)
                if num_worse >= args.patience or is_out_of_time:
                    bar.close()
                    return best
            if step == num_steps:
                bar.close()
                return best
    return best


def report(model, held_out, args):
    """Calibrates the head on the held-out prompts and writes what they say."""
    found, _ = measured(model, held_out, args.held_out_answers, "report")
    whole = [(logit, answer.outcome) for _, graded in found for logit, answer in graded]
    # Folded into the head: the calibrated value is a sigmoid of a linear function again. Half of the prompts calibrate,
    # the other half say how well that did.
    half = [(logit, answer.outcome) for group, graded in found if int(group.key[8:16], 16) % 2 for logit, answer in graded]
    rest = [(logit, answer.outcome) for group, graded in found if not int(group.key[8:16], 16) % 2 for logit, answer in graded]
    before = metrics.reliability([(sigmoid(logit), outcome == 1) for logit, outcome in rest])[1] if rest else float("nan")
    scale, shift = metrics.platt(*zip(*half)) if half else (1.0, 0.0)
    rows, error = metrics.reliability([(sigmoid(scale * logit + shift), outcome == 1) for logit, outcome in rest or whole])
    with torch.no_grad():
        model.score.weight.mul_(scale)
        model.score.bias.mul_(scale).add_(shift)
    model.save(args.out)
    mixed = scores(found)
    auc, num = metrics.within_prompt_auc(mixed)
    choice = metrics.chosen_right(mixed)
    likely = [[(a.mean_logprob, a.outcome == 1) for _, a in graded if a.mean_logprob is not None] for g, graded in found if g.is_mixed()]
    likely = [group for group in likely if group]
    result = {
        "held_out_prompts": len(held_out),
        "mixed_prompts": num,
        "answers": len(whole),
        "auc_within_prompt": auc,
        "likelihood_auc_within_prompt": metrics.within_prompt_auc(likely)[0],
        "chosen_right": float(numpy.mean(choice)) if choice else None,
        "chosen_right_95": metrics.interval(choice) if choice else None,
        "chance": float(numpy.mean([numpy.mean([right for _, right in group]) for group in mixed])) if mixed else None,
        "ece_before_calibration": before,
        "ece": error,
        "scale": scale,
        "shift": shift,
        "reliability": rows,
        "settings": {key: str(value) for key, value in vars(args).items()},
    }
    (args.out / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    metrics.picture(args.out / "reliability.png", rows, error, f"{args.out.name}, held-out prompts")
    return result


def sigmoid(x):
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, x))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="value adapter to go on from")
    parser.add_argument("--target", choices=["outcome", "values"], default="outcome", help="see data.targets_of")
    parser.add_argument("--pairwise", type=float, default=0.5, help="weight of the order of right and wrong answers")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--first-layer", type=int, default=0, help="the LoRA's first layer: later ones train faster")
    parser.add_argument("--prompts-per-step", type=int, default=4)
    parser.add_argument("--answers-per-prompt", type=int, default=6)
    parser.add_argument("--held-out-answers", type=int, default=8)
    parser.add_argument("--max-held-out", type=int, default=150, help="prompts")
    parser.add_argument("--evaluations", type=int, default=6, help="on the held-out prompts, over all epochs")
    parser.add_argument("--patience", type=int, default=3, help="evaluations without a better one before the end")
    parser.add_argument("--minutes", type=float, help="of training at most")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base's weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    random.seed(args.seed)
    base, tokenizer = load_base(args.base, getattr(torch, args.dtype))
    groups = data.read_groups(args.rows, tokenizer, args.target)
    training, held_out = data.split(groups)
    held_out = sorted(held_out, key=lambda group: group.key)[: args.max_held_out]
    if not training or not any(group.is_mixed() for group in held_out):
        raise SystemExit("too few prompts with right and wrong answers: none is held out")
    model = ValueModel(base, args.rank, args.first_layer, args.adapter)
    num_answers = sum(len(group.answers) for group in training)
    print(f"{len(training)} prompts with {num_answers} answers; {len(held_out)} prompts held out", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    train(model, training, held_out, args)
    base, _ = load_base(args.base, getattr(torch, args.dtype))
    best = ValueModel(base, args.rank, args.first_layer, args.out)
    result = report(best, held_out, args)
    print(json.dumps({key: value for key, value in result.items() if key not in ("settings", "reliability")}, indent=2))


if __name__ == "__main__":
    main()
