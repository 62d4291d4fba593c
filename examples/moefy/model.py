"""The dense model, and the same model with gated neurons: a mixture of experts in the form that trains well.

A mixture of experts is, neuron by neuron, the dense FFN with a factor on every neuron's activation: the gate of the
expert that the neuron belongs to, and 0 for the experts that a token does not use. In this form all matrix products
stay dense, and automatic differentiation gives the exact gradients of the gates that were used.

T tokens in a row, B rows, d the model's width, f the neurons of an FFN, E experts.
"""

import torch
import torch.nn.functional as F

from weights import Experts

FFN = ("ffn_gate", "ffn_up", "ffn_down")
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")


def gated_activation(gate, up, gates):
    """silu(gate) * up, times the gate of each neuron's group. gate, up: [B, T, f]; gates: [B, T, groups]."""
    active = F.silu(gate) * up
    grouped = active.unflatten(-1, (gates.shape[-1], -1))
    return (grouped * gates.unsqueeze(-1)).flatten(-2)


class Dense:
    """Qwen2 over weights by their GGUF names."""

    def __init__(self, shape, weights):
        self.shape, self.weights = shape, weights

    def linear(self, layer, name, x):
        weights = self.weights
        return F.linear(x, weights[f"blk.{layer}.{name}.weight"], weights.get(f"blk.{layer}.{name}.bias"))

    def norm(self, name, x):
        return F.rms_norm(x, (self.shape.width,), self.weights[f"{name}.weight"], self.shape.norm_eps)

    def ffn(self, layer, x):
        active = F.silu(self.linear(layer, "ffn_gate", x)) * self.linear(layer, "ffn_up", x)
        return self.linear(layer, "ffn_down", active)

    def rotations(self, length, device, dtype):
        """cos and sin of the rotary embedding: [T, head_dim / 2] each."""
        half = self.shape.head_dim // 2
        frequencies = self.shape.rope_base ** -(torch.arange(half, device=device, dtype=torch.float32) / half)
        angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def attention(self, layer, x, rotations):
        shape, (rows, length, _) = self.shape, x.shape
        cos, sin = rotations

        def heads(name, num):
            return self.linear(layer, name, x).view(rows, length, num, shape.head_dim).transpose(1, 2)

        def rotate(y):
            first, second = y.chunk(2, dim=-1)
            return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

        query = rotate(heads("attn_q", shape.heads))
        key, value = rotate(heads("attn_k", shape.kv_heads)), heads("attn_v", shape.kv_heads)
        repeats = shape.heads // shape.kv_heads
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.linear(layer, "attn_output", mixed.transpose(1, 2).flatten(-2))

    def embed(self, tokens):
        return F.embedding(tokens, self.weights["token_embd.weight"])

    def attend(self, layer, x, rotations):
        """The attention half of a layer: the residual stream after it, and the input of the FFN. [B, T, d] each."""
        x = x + self.attention(layer, self.norm(f"blk.{layer}.attn_norm", x), rotations)
        return x, self.norm(f"blk.{layer}.ffn_norm", x)

    def hidden(self, tokens):
        """The normalised output of the last layer, [B, T, d], for tokens [B, T]."""
        x = self.embed(tokens)
        rotations = self.rotations(tokens.shape[1], x.device, x.dtype)
        for layer in range(self.shape.layers):
            x, ffn_input = self.attend(layer, x, rotations)
            x = x + self.ffn(layer, ffn_input)
        return self.norm("output_norm", x)

    def logits(self, hidden):
        return F.linear(hidden, self.weights["output.weight"])


def reorder(weights, order):
    """Puts the neurons of every FFN into expert order, in place: the dense model stays the same function.

    order: [layers, f], the old index of each neuron in its new place.
    """
    for layer, indices in enumerate(order):
        indices = indices.to(weights["token_embd.weight"].device)
        for name in ("ffn_gate", "ffn_up"):
            weights[f"blk.{layer}.{name}.weight"] = weights[f"blk.{layer}.{name}.weight"][indices]
        weights[f"blk.{layer}.ffn_down.weight"] = weights[f"blk.{layer}.ffn_down.weight"][:, indices].contiguous()


class Student(Dense):
    """The mixture of experts. The weights must be in the state's expert order (`reorder`).

    The state holds, besides `order`:
      router [layers, E, d] and shared_gate [layers, d];
      used []: the experts of a token;
      expert_scale [layers]: the factor that goes into the experts' down projections, since the gates are probabilities;
      after training also, for each matrix, `blk.N.NAME.lora_a` [rank, inputs] and `blk.N.NAME.lora_b` [outputs, rank].
    """

    # sigmoid(0) is a half: the factor that goes into the shared expert's down projection.
    SHARED_SCALE = 2.0

    def __init__(self, shape, weights, state):
        super().__init__(shape, weights)
        self.state, self.experts = state, Experts.of(state)
        self.experts.check(shape)
        # Of the last forward pass: how the tokens spread over the experts, and the loss that evens it.
        self.loads, self.balance = [], []

    def linear(self, layer, name, x):
        y = super().linear(layer, name, x)
        lora_a = self.state.get(f"blk.{layer}.{name}.lora_a")
        if lora_a is None:
            return y
        lora_b = self.state[f"blk.{layer}.{name}.lora_b"]
        low = F.linear(x, lora_a.to(x.dtype)).flatten(0, -2)
        return torch.addmm(y.flatten(0, -2), low, lora_b.to(x.dtype).T).view_as(y)

    def gates(self, layer, x):
        """The factor of each group of neurons, [B, T, groups], 0 for unused experts. In f32, as the router decides.

        The balance loss is Switch's: E * sum over the experts of (share of the picks) * (mean probability), 1 at best.
        """
        x, experts = x.float(), self.experts
        probabilities = F.linear(x, self.state["router"][layer].float()).softmax(dim=-1)
        picks = torch.zeros_like(probabilities)
        picks.scatter_(-1, probabilities.topk(experts.used, dim=-1).indices, 1.0)
        load = picks.mean(dim=(0, 1)) / experts.used
        self.loads.append(load.detach())
        self.balance.append(experts.count * (load * probabilities.mean(dim=(0, 1))).sum())
        routed = probabilities * picks * self.state["expert_scale"][layer]
        shared = self.SHARED_SCALE * torch.sigmoid(x @ self.state["shared_gate"][layer].float()).unsqueeze(-1)
        return torch.cat((shared.expand(*shared.shape[:-1], experts.shared // experts.size), routed), dim=-1)

    def ffn(self, layer, x):
        gates = self.gates(layer, x).to(x.dtype)
        active = gated_activation(self.linear(layer, "ffn_gate", x), self.linear(layer, "ffn_up", x), gates)
        return self.linear(layer, "ffn_down", active)

    def hidden(self, tokens):
        self.loads, self.balance = [], []
        return super().hidden(tokens)
