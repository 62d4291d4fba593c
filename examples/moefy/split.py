"""The split of every FFN into a shared expert and routed ones, from how the dense model's neurons act on some text.

Layer by layer, with the dense model's own inputs: pick the neurons that matter most for the shared expert, cluster the
rest into experts of one size, fit the router to the sizes of the experts' contributions, and measure the error.
"""

import time

import torch
import torch.nn.functional as F

from model import Dense
from weights import Experts

CONTEXT = 512
KMEANS_ROUNDS = 12
# Clustering compares the neurons' activity on this many tokens.
ACTIVITY_TOKENS = 2048
# The ridge, relative to the mean square of the inputs' features.
RIDGE = 0.3
# The sizes of contributions have a long tail: beyond this many standard deviations the router need not follow.
CLIPPED_AT = 2.0
# The standard deviation of the fitted router logits over a token's experts: small, so that the gates are even.
LOGIT_STD = 0.1
# The last part of the text measures; the rest calibrates.
HELD_OUT = 0.25


def balanced_assignment(similarity, size):
    """One cluster for each neuron, `size` neurons for each cluster: the best pairs first. similarity: [n, clusters]."""
    num, clusters = similarity.shape
    pairs = similarity.flatten().argsort(descending=True).tolist()
    chosen, room, left = [-1] * num, [size] * clusters, num
    for pair in pairs:
        neuron, cluster = divmod(pair, clusters)
        if chosen[neuron] < 0 and room[cluster]:
            chosen[neuron] = cluster
            room[cluster] -= 1
            left -= 1
            if not left:
                break
    return torch.tensor(chosen, device=similarity.device)


def balanced_kmeans(features, clusters, size):
    """k-means on the unit sphere with clusters of one size. features: [n, dims], unit rows. Returns [n]."""
    generator = torch.Generator().manual_seed(0)
    # Starts that lie far apart (k-means++).
    picked = [int(torch.randint(len(features), (1,), generator=generator))]
    nearest = features @ features[picked[0]]
    while len(picked) < clusters:
        weights = (1 - nearest).clamp(min=1e-6).cpu()
        picked.append(int(torch.multinomial(weights, 1, generator=generator)))
        nearest = torch.maximum(nearest, features @ features[picked[-1]])
    centres = features[picked]
    chosen = None
    for _ in range(KMEANS_ROUNDS):
        previous, chosen = chosen, balanced_assignment(features @ centres.T, size)
        if previous is not None and torch.equal(previous, chosen):
            break
        sums = torch.zeros_like(centres).index_add_(0, chosen, features)
        centres = F.normalize(sums, dim=-1)
    return chosen


def features_of(method, gate_weight, activity):
    """Unit vectors of the neurons, [n, dims].

    `directions`: the rows of the gate projection. `activity`: the sizes of the neurons' contributions, token by token,
    less their mean, so that the similarity of two neurons is their correlation.
    """
    if method == "directions":
        return F.normalize(gate_weight.float(), dim=-1)
    stride = max(1, len(activity) // ACTIVITY_TOKENS)
    sizes = activity[::stride].T.float()
    return F.normalize(sizes - sizes.mean(dim=-1, keepdim=True), dim=-1)


def fit_router(x, norms):
    """Router rows [E, d] whose logits follow the logarithm of each expert's contribution, by ridge regression.

    x: [n, d]; norms: [n, E], the sizes of the contributions. Their logarithms are standardised for each token: what
    all experts share does not matter to a softmax, and every token's choice matters alike.
    """
    target = norms.clamp(min=1e-6).log()
    target = target - target.mean(dim=-1, keepdim=True)
    target = (target / target.std(dim=-1, keepdim=True)).clamp(-CLIPPED_AT, CLIPPED_AT)
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal().mean()
    router = torch.linalg.solve(gram + ridge * torch.eye(len(gram), device=x.device), x.T @ target).T
    logits = x @ router.T
    return router * (LOGIT_STD / logits.std(dim=-1).mean())


def mixture(x, parts, router, experts):
    """The sum of the picked experts' contributions times their probabilities: [n, d]. parts: [E, n, d]."""
    probabilities = (x @ router.T).softmax(dim=-1)
    top = probabilities.topk(experts.used, dim=-1)
    gates = torch.zeros_like(probabilities).scatter(-1, top.indices, top.values)
    return torch.einsum("ne,end->nd", gates, parts.float())


def split_layer(x, active, gate_weight, down_weight, method, experts):
    """The split of one layer.

    x: [n, d], the FFN's inputs; active: [n, f], silu(gate) * up; gate_weight: [f, d]; down_weight: [d, f].
    Returns order [f], router [E, d], expert_scale [], and the relative squared error of the held-out outputs, a mean
    over the tokens: a few of them have outputs a hundred times as large as the others'.
    """
    activity = active.abs() * down_weight.norm(dim=0)
    importance = activity.float().mean(dim=0)
    ranked = importance.argsort(descending=True)
    shared, rest = ranked[: experts.shared], ranked[experts.shared :]
    chosen = balanced_kmeans(features_of(method, gate_weight[rest], activity[:, rest]), experts.count, experts.size)
    routed = rest[chosen.argsort(stable=True)]
    parts = torch.stack(
        [active[:, indices] @ down_weight[:, indices].T for indices in routed.view(experts.count, experts.size)]
    )
    x, exact = x.float(), (active @ down_weight.T).float()
    num = int(len(x) * (1 - HELD_OUT))
    router = fit_router(x[:num], parts[:, :num].float().norm(dim=-1).T)
    weight = 1 / exact.square().sum(dim=-1, keepdim=True).clamp(min=1e-9)
    # The factor that turns probabilities into gates: about E at even probabilities, and the best single one.
    wanted = exact - (active[:, shared] @ down_weight[:, shared].T).float()
    mixed = mixture(x, parts, router, experts)
    scale = (mixed * wanted * weight)[:num].sum() / (mixed.square() * weight)[:num].sum()
    missed = ((wanted - scale * mixed).square() * weight)[num:].sum(dim=-1).mean()
    return torch.cat((shared, routed)), router, scale, float(missed)


@torch.no_grad()
def split(shape, weights, tokens, method="activity", experts=Experts(), rows_at_once=8):
    """The state of an untrained mixture (see `Student`), calibrated on tokens [n]."""
    experts.check(shape)
    model, device = Dense(shape, weights), weights["token_embd.weight"].device
    rows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT).to(device)
    x = model.embed(rows)
    rotations = model.rotations(CONTEXT, device, x.dtype)
    orders, routers, scales, errors = [], [], [], []
    started = time.monotonic()
    for layer in range(shape.layers):
        inputs, actives, outputs = [], [], []
        for part in x.split(rows_at_once):
            part, ffn_input = model.attend(layer, part, rotations)
            active = F.silu(model.linear(layer, "ffn_gate", ffn_input)) * model.linear(layer, "ffn_up", ffn_input)
            inputs.append(ffn_input)
            actives.append(active)
            outputs.append(part + model.linear(layer, "ffn_down", active))
        x = torch.cat(outputs)
        order, router, scale, error = split_layer(
            torch.cat(inputs).flatten(0, 1),
            torch.cat(actives).flatten(0, 1),
            weights[f"blk.{layer}.ffn_gate.weight"],
            weights[f"blk.{layer}.ffn_down.weight"],
            method,
            experts,
        )
        orders.append(order)
        routers.append(router)
        scales.append(scale)
        errors.append(error)
        print(
            f"layer {layer}: relative squared error {error:.4f}, scale {float(scale):.1f}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    print(f"{method}: mean relative squared error {sum(errors) / len(errors):.4f}", flush=True)
    return {
        "used": torch.tensor(experts.used),
        "order": torch.stack(orders),
        "router": torch.stack(routers),
        "expert_scale": torch.stack(scales),
        "shared_gate": torch.zeros(shape.layers, shape.width, device=device),
    }
