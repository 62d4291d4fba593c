"""Makes the goldens of this folder with transformers (float32, eager attention, CPU) as the reference.

    python3 make.py                    # everything, about a minute
    python3 make.py olmoe slot         # only these folders

Needs torch, transformers (5.24), safetensors and gguf. Everything is seeded: two runs write the same files.

Each mixture-of-experts architecture gets a folder with a tiny random model and what it computes:

config.json         As transformers 5 saves it (rope_parameters, dtype, Qwen3-MoE's num_local_experts).
config-hub.json     The same in the spelling of released checkpoints (rope_theta, rope_scaling, torch_dtype, num_experts).
model.safetensors   bfloat16 under the names of released checkpoints, which transformers 5 converts to on saving: one
                    tensor per expert and projection. In memory it fuses them (`mlp.experts.gate_up_proj` [E, 2f, d],
                    gate first, and `mlp.experts.down_proj` [E, d, f]).
model.gguf          llama.cpp's names and metadata, laid out as by its convert_hf_to_gguf.py --outtype f16: matrices in F16;
                    norms, biases and routers in F32. `tokenizer.ggml.model` is "no_vocab".
model-kv_b.gguf     deepseek_v2 only: attn_kv_b whole, as files had it before llama.cpp split it into attn_k_b and attn_v_b.
model-alone.gguf    mixtral only: each expert's matrices as tensors of their own, as in the first GGUF files of Mixtral.
model-TYPE.gguf     Matrices but the routers' quantised to TYPE (q8_0; q4_0 of two models), attn_kv_b whole.
golden-TYPE.json    As golden.json, of the weights that model-TYPE.gguf holds, computed in float32.
golden.json         token_ids [24]; logits [24, vocab]; per mixture-of-experts layer its index, router_logits [24, E] before
                    softmax, and experts and gates [24, k] in descending order of gate. Gates are what experts' outputs are
                    multiplied by, after normalisation and scaling.
adaptation.json     Reference for adapting routers at test time. A vector delta of E values per mixture-of-experts layer,
                    shared by all positions, is added to the router's logits before softmax and top-k. Loss is the mean
                    cross-entropy of tokens 1..24 given those before. In float64:
                      loss, gradient    at delta = 0; a gradient has one list of E values per layer of `layers`
                      gradient_at       another delta, with its loss and gradient
                      adam, adam_last   5 steps of torch.optim.Adam(lr=0.05) from zero, on all layers' deltas or on only the
                                        last layer's: losses before each step and after the last; the final delta
                      minimum_margin    least distance of two router logits that decide a choice, over all of these

slot/ has a dense Qwen2 and the same for SLOT (arXiv 2505.12392): one vector added to the hidden states after the last norm.

Weights are exact in bfloat16 and in float16, so that all files of a folder hold the same model, and a float32 reader of any
of them computes what the goldens say. Seeds are the first ones where no choice of experts is near a tie and no entry of the
first gradient is near zero, where Adam's first step would depend on rounding.
"""

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

HERE = Path(__file__).parent
NUM_TOKENS = 24
NUM_STEPS = 5
MIN_MARGIN = 1e-3
MIN_GRADIENT = 2e-5
# These are also quantised to four bits.
COARSE = ["qwen2_moe", "deepseek_v2"]

SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
MLA = dict(
    SIZES,
    num_key_value_heads=4,
    intermediate_size=64,
    moe_intermediate_size=32,
    kv_lora_rank=32,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=16,
    n_shared_experts=2,
    first_k_dense_replace=1,
    norm_topk_prob=False,
    num_experts_per_tok=3,
)


def configs():
    """Folder name: (config, llama.cpp's architecture)."""
    t, arch = transformers, gguf.MODEL_ARCH
    return {
        "olmoe": (
            t.OlmoeConfig(**SIZES, num_hidden_layers=2, intermediate_size=32, num_experts=8, num_experts_per_tok=3),
            arch.OLMOE,
        ),
        # One layer is dense, and there is a shared expert with a sigmoid gate.
        "qwen2_moe": (
            t.Qwen2MoeConfig(
                **SIZES,
                num_hidden_layers=3,
                mlp_only_layers=[1],
                intermediate_size=64,
                moe_intermediate_size=32,
                shared_expert_intermediate_size=64,
                num_experts=8,
                num_experts_per_tok=3,
                norm_topk_prob=False,
            ),
            arch.QWEN2MOE,
        ),
        "qwen3_moe": (
            t.Qwen3MoeConfig(
                **SIZES,
                num_hidden_layers=2,
                head_dim=16,
                intermediate_size=96,
                moe_intermediate_size=32,
                num_experts=8,
                num_experts_per_tok=3,
                norm_topk_prob=True,
                rope_parameters=dict(rope_type="default", rope_theta=1e6),
            ),
            arch.QWEN3MOE,
        ),
        "mixtral": (
            t.MixtralConfig(
                **SIZES,
                num_hidden_layers=2,
                head_dim=16,
                intermediate_size=32,
                num_local_experts=8,
                num_experts_per_tok=2,
                sliding_window=None,
                rope_parameters=dict(rope_type="default", rope_theta=1e6),
            ),
            arch.LLAMA,
        ),
        "granitemoe": (
            t.GraniteMoeConfig(
                **SIZES,
                num_hidden_layers=2,
                intermediate_size=32,
                num_local_experts=8,
                num_experts_per_tok=3,
                embedding_multiplier=3.0,
                attention_multiplier=0.2,
                residual_multiplier=0.5,
                logits_scaling=2.0,
            ),
            arch.GRANITE_MOE,
        ),
        # V2-Lite: no query compression, no groups, YaRN.
        "deepseek_v2": (
            t.DeepseekV2Config(
                **(MLA | dict(max_position_embeddings=256)),
                num_hidden_layers=3,
                q_lora_rank=None,
                n_routed_experts=8,
                n_group=1,
                topk_group=1,
                topk_method="greedy",
                routed_scaling_factor=1.0,
                rope_parameters=dict(
                    rope_type="yarn",
                    rope_theta=10000.0,
                    factor=4.0,
                    beta_fast=32,
                    beta_slow=1,
                    mscale=0.707,
                    mscale_all_dim=0.707,
                    original_max_position_embeddings=64,
                ),
            ),
            arch.DEEPSEEK2,
        ),
        # V2: compressed queries, experts chosen among those of the best groups.
        "deepseek_v2_grouped": (
            t.DeepseekV2Config(
                **MLA,
                num_hidden_layers=2,
                q_lora_rank=32,
                n_routed_experts=16,
                n_group=4,
                topk_group=2,
                topk_method="group_limited_greedy",
                routed_scaling_factor=2.5,
            ),
            arch.DEEPSEEK2,
        ),
    }


# Models and their routers.


def standard_deviation(name, shape):
    """Such that a layer's output is of about its input's size, logits are spread, and routers are decisive."""
    fan_in = shape[-1]
    if name.endswith("bias"):
        return 0.5
    if "embed_tokens" in name:
        return 1.0
    for part, gain in [("lm_head", 2), ("gate.weight", 2), ("router", 2), ("down_proj", 2), ("o_proj", 1.5)]:
        if part in name:
            return gain / math.sqrt(fan_in)
    return 1 / math.sqrt(fan_in)


def build_model(config, seed, deviation=standard_deviation):
    generator = torch.Generator().manual_seed(seed)
    config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            values = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                values = 1 + 0.2 * values
            else:
                values *= deviation(name, weight.shape)
            values = values.bfloat16().float()
            values[values.abs() < 2.0**-17] = 0  # bfloat16 values below are not exact in float16
            weight.copy_(values)
    ids = torch.randint(3, config.vocab_size, (1, NUM_TOKENS), generator=generator)
    return model.eval().requires_grad_(False), ids


def routers(model):
    """[(layer, module)]"""
    found = []
    for index, layer in enumerate(model.model.layers):
        for module in layer.modules():
            if type(module).__name__.endswith("TopKRouter") or type(module).__name__.endswith("TopkRouter"):
                found.append((index, module))
    return found


class AddToLinear(TorchFunctionMode):
    """Adds a vector to the result of every `linear`; a router calls one."""

    def __init__(self, vector):
        super().__init__()
        self.vector = vector

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result + self.vector if func is F.linear else result


class Float64(TorchFunctionMode):
    """Models cast to float32 in norms, softmax and RoPE; this makes those casts to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def widen(value):
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        kwargs = {key: widen(value) for key, value in (kwargs or {}).items()}
        return func(*[widen(value) for value in args], **kwargs)


class Routing:
    """Runs a model with vectors added to its router logits, and keeps what its routers returned."""

    def __init__(self, model):
        self.model = model
        self.layers = [index for index, _ in routers(model)]
        self.num_experts = routers(model)[0][1].num_experts
        self.outputs = {}
        self.deltas = None
        for at, (index, module) in enumerate(routers(model)):
            module.forward = self.patched(at, module.forward)
            module.register_forward_hook(lambda _, __, out, index=index: self.outputs.__setitem__(index, out))
            # What the experts get is what the router returned.
            layer = model.model.layers[index]
            block = getattr(layer, "mlp", None) or layer.block_sparse_moe
            block.experts.register_forward_pre_hook(lambda _, args, index=index: self.check(index, args))

    def patched(self, at, forward):
        def run(hidden_states):
            if self.deltas is None:
                return forward(hidden_states)
            with AddToLinear(self.deltas[at]):
                return forward(hidden_states)

        return run

    def check(self, index, args):
        _, weights, indices = self.outputs[index]
        assert torch.equal(args[1], indices) and torch.equal(args[2], weights)

    def logits(self, ids, deltas=None):
        self.deltas = deltas
        return self.model(ids, use_cache=False).logits[0]

    def loss(self, ids, deltas=None):
        return F.cross_entropy(self.logits(ids, deltas)[:-1], ids[0, 1:])

    def margin(self):
        """Least distance of a chosen expert's logit, or of a chosen group's, and the best that lost."""
        config, margins = self.model.config, []

        def gap(values, count):
            best = values.topk(count + 1).values
            return (best[:, count - 1] - best[:, count]).min().item()

        for logits, _, indices in self.outputs.values():
            logits = logits.detach().double()
            if getattr(config, "topk_method", "greedy") != "greedy":
                groups = logits.view(len(logits), config.n_group, -1)
                scores = groups.max(dim=-1).values
                margins.append(gap(scores, config.topk_group))
                lost = scores < scores.topk(config.topk_group).values[:, -1:]
                logits = groups.masked_fill(lost[:, :, None], -math.inf).flatten(1)
            margins.append(gap(logits, config.num_experts_per_tok))
            chosen = logits.topk(config.num_experts_per_tok).indices.sort().values
            assert torch.equal(chosen, indices.sort().values)
        return min(margins)


def golden(model, ids):
    routing = Routing(model)
    with torch.no_grad():
        logits = routing.logits(ids)
    layers = []
    for index in routing.layers:
        router_logits, gates, experts = routing.outputs[index]
        gates, order = gates.sort(dim=-1, descending=True)
        experts = experts.gather(-1, order)
        layers.append(
            {
                "layer": index,
                "router_logits": digits(router_logits, 6),
                "experts": experts.tolist(),
                "gates": digits(gates, 6),
            }
        )
    result = {"token_ids": ids[0].tolist(), "logits": digits(logits, 6), "moe_layers": layers}
    return result, routing.margin()


# Adaptation of routers.


def adaptation(config, seed):
    """None where a choice is near a tie, or an entry of the first gradient near zero."""
    model, ids = build_model(config, seed)
    routing = Routing(model.double())
    shape = (len(routing.layers), routing.num_experts)
    margins = []

    def evaluate(deltas):
        loss = routing.loss(ids, deltas)
        margins.append(routing.margin())
        return loss

    def gradient(values):
        deltas = values.clone().requires_grad_()
        loss = evaluate(deltas)
        loss.backward()
        return loss.item(), deltas.grad

    def adam(first):
        """Adapts layers `first..`."""
        fixed = torch.zeros(first, shape[1], dtype=torch.float64)
        adapted = torch.zeros(shape[0] - first, shape[1], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([adapted], lr=0.05, betas=(0.9, 0.999), eps=1e-8)
        losses = []
        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            loss = evaluate(torch.cat([fixed, adapted]))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            losses.append(evaluate(torch.cat([fixed, adapted])).item())
        return {"losses": digits(losses, 10), "delta": digits(adapted.detach(), 9)}

    with Float64():
        zeros = torch.zeros(shape, dtype=torch.float64)
        loss, first = gradient(zeros)
        size = first.abs()
        if margins[0] < MIN_MARGIN or ((size > 1e-15) & (size < MIN_GRADIENT)).any():
            return None
        generator = torch.Generator().manual_seed(seed)
        point = torch.tensor(digits(0.3 * torch.randn(shape, generator=generator).double(), 4)).double()
        point_loss, point_gradient = gradient(point)
        result = {
            "layers": routing.layers,
            "loss": digits(loss, 10),
            "gradient": digits(first, 9),
            "gradient_at": {
                "delta": digits(point, 4),
                "loss": digits(point_loss, 10),
                "gradient": digits(point_gradient, 9),
            },
            "adam": adam(0),
            "adam_last": adam(shape[0] - 1),
        }
        result["minimum_margin"] = digits(min(margins), 4)
        if min(margins) < MIN_MARGIN:
            return None
        check_gradient(routing, ids, point, point_gradient)
    return result


def check_gradient(routing, ids, point, gradient):
    """Against differences of the loss."""
    step = 1e-6
    with torch.no_grad():
        for at in np.ndindex(*point.shape):
            shift = torch.zeros_like(point)
            shift[at] = step
            slope = (routing.loss(ids, point + shift) - routing.loss(ids, point - shift)) / (2 * step)
            assert abs(slope - gradient[at]) < 1e-8, (at, slope, gradient[at])


# SLOT.


def slot():
    """SLOT's published code (maple-research-lab/SLOT, modeling_qwen2_slot.py): a vector of zeros, the same for all positions,
    is added to the hidden states before the LM head and fitted by AdamW(eps=1e-5, weight_decay=1e-8) with PyTorch's betas to
    the mean cross-entropy of the prompt. Defaults of steps and lr differ in it: 5 and 0.1 in README and run.sh, 1 and 0.1 in
    the model file; its vLLM port spells out another Adam (betas 0.9 and 0.95, eps 1e-6, weight decay 1e-5)."""
    folder = HERE / "slot"
    config = transformers.Qwen2Config(**(SIZES | dict(hidden_size=64)), num_hidden_layers=2, intermediate_size=64)
    model, ids = build_model(config, 1)
    save_safetensors(model, folder)

    with torch.no_grad():
        plain = model(ids, use_cache=False).logits[0]
    model = model.double()
    with Float64():
        with torch.no_grad():
            hidden = model.model(ids, use_cache=False).last_hidden_state[0]
        vector = torch.zeros(config.hidden_size, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([vector], lr=0.01, eps=1e-5, weight_decay=1e-8)
        losses, first = [], None

        def loss():
            return F.cross_entropy(model.lm_head(hidden + vector)[:-1], ids[0, 1:])

        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            first = vector.grad.clone() if first is None else first
            losses.append(value.item())
            optimizer.step()
        with torch.no_grad():
            losses.append(loss().item())
            last = model.lm_head(hidden[-1] + vector)
            unshifted = model.lm_head(hidden)
    assert (unshifted - plain).abs().max() < 1e-4
    write_json(
        folder / "golden.json",
        {
            "token_ids": ids[0].tolist(),
            "optimizer": {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-5, "weight_decay": 1e-8, "steps": NUM_STEPS},
            "losses": digits(losses, 10),
            "first_gradient": digits(first, 9),
            "vector": digits(vector.detach(), 9),
            "plain_last_logits": digits(plain[-1], 6),
            "last_logits": digits(last, 9),
        },
    )
    verify_safetensors(folder, plain, ids)
    print(f"slot: losses {losses}")


# Files.


def digits(values, count):
    """The values, nested as they are, rounded to so many significant digits."""
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    if isinstance(values, list):
        return [digits(value, count) for value in values]
    return float(f"{values:.{count}g}")


def write_json(path, value):
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")


def hub_config(path):
    """transformers 5's config.json in the spelling of released checkpoints."""
    config = json.loads(path.read_text())
    config.pop("transformers_version")
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else rope | {"type": kind}
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    if config["model_type"] == "deepseek_v2":
        del config["head_dim"], config["qk_head_dim"]
        config |= {"scoring_func": "softmax", "moe_layer_freq": 1}
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def save_safetensors(model, folder, hub=hub_config):
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = transformers.AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
        copy.load_state_dict(model.state_dict())
        copy.save_pretrained(scratch)
        for name in ["config.json", "model.safetensors"]:
            shutil.copyfile(Path(scratch) / name, folder / name)
    (folder / "config-hub.json").write_text(hub(folder / "config.json"))


def reference_model(config, tensors):
    """What transformers makes, in float32, of a configuration and tensors."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(config, Path(scratch) / "config.json")
        save_file(tensors, Path(scratch) / "model.safetensors", metadata={"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(
            scratch, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )
    return model.eval()


def verify_safetensors(folder, expected, ids):
    """Loads what was saved, with either config, and compares."""
    for config in ["config.json", "config-hub.json"]:
        model = reference_model(folder / config, load_file(folder / "model.safetensors"))
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0]
        assert torch.equal(logits, expected), (folder, config, (logits - expected).abs().max())


def permute(weight, num_heads):
    """Rows of q and k for llama.cpp's RoPE of adjacent pairs, where transformers pairs the halves of a head."""
    per_head = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return per_head.swapaxes(1, 2).reshape(weight.shape)


def permute_heads(name, tensor, config):
    """The same of weights and biases of q and k; others stay."""
    for part, num_heads in [(".q_proj.", config.num_attention_heads), (".k_proj.", config.num_key_value_heads)]:
        if part in name:
            return permute(tensor, num_heads)
    return tensor


def gguf_tensors(tensors, config, arch, splits_kv_b):
    """llama.cpp's name: tensor, of tensors by the names of released checkpoints."""
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    permuted = arch in (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.GRANITE_MOE)
    result, experts = {}, {}

    def add(name, tensor):
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            # llama.cpp has no dense layers in qwen2moe; named as in its other architectures.
            assert config.model_type == "qwen2_moe"
            layer, part = name.removeprefix("model.layers.").removesuffix("_proj.weight").split(".mlp.")
            mapped = f"blk.{layer}.ffn_{part}.weight"
        result[mapped] = tensor

    for name, tensor in tensors.items():
        tensor = tensor.float()
        if ".experts." in name:
            before, after = name.split(".experts.")
            expert, part, _ = after.split(".")
            before = before.replace("block_sparse_moe", "mlp")
            part = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.get(part, part)
            experts.setdefault(f"{before}.experts.{part}.weight", {})[int(expert)] = tensor
        elif name.endswith("block_sparse_moe.input_linear.weight"):
            gate, up = tensor.chunk(2, dim=1)
            layer = name.split(".")[2]
            result[f"blk.{layer}.ffn_gate_exps.weight"] = gate
            result[f"blk.{layer}.ffn_up_exps.weight"] = up
        elif name.endswith("kv_b_proj.weight") and splits_kv_b:
            per_head = tensor.view(config.num_attention_heads, -1, config.kv_lora_rank)
            k_b, v_b = per_head.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
            add(name.replace("kv_b_proj", "k_b_proj"), k_b.transpose(1, 2))
            add(name.replace("kv_b_proj", "v_b_proj"), v_b)
        else:
            add(name, permute_heads(name, tensor, config) if permuted else tensor)
    for name, parts in experts.items():
        name = name.replace("model.layers", "layers") if arch == gguf.MODEL_ARCH.LLAMA else name
        if arch == gguf.MODEL_ARCH.LLAMA:
            layer, part = name.split(".")[1], name.split(".")[-2]
            name = f"layers.{layer}.feed_forward.experts." + {"gate": "w1", "down": "w2", "up": "w3"}[part[:-5]] + ".weight"
        add(name, torch.stack([parts[expert] for expert in range(len(parts))]))
    return result


def add_sizes(writer, config):
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_gguf(path, folder, config, arch, splits_kv_b=True, quant=None, splits_experts=False):
    """`quant` is the type of the matrices that `is_quantised` names; the others are F16."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(folder.name)
    add_sizes(writer, config)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_expert_count(routers_experts(config))
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quant.name if quant else 'F16'}"])

    if config.model_type == "deepseek_v2":
        rope_dim = config.qk_rope_head_dim
        head = config.qk_nope_head_dim + rope_dim
        if splits_kv_b:
            # Attention over compressed keys and values: one KV head as wide as they are.
            writer.add_head_count_kv(1)
            writer.add_key_length(config.kv_lora_rank + rope_dim)
            writer.add_value_length(config.kv_lora_rank)
            writer.add_key_length_mla(head)
            writer.add_value_length_mla(config.v_head_dim)
        else:
            writer.add_head_count_kv(config.num_attention_heads)
            writer.add_key_length(head)
            writer.add_value_length(config.v_head_dim)
        if config.q_lora_rank is not None:
            writer.add_q_lora_rank(config.q_lora_rank)
        writer.add_kv_lora_rank(config.kv_lora_rank)
        writer.add_rope_dimension_count(rope_dim)
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        # llama.cpp's converter leaves it out where it is false.
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        head_dim = getattr(config, "head_dim", None)
        if head_dim is not None:
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)
        if arch in (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.GRANITE_MOE):
            writer.add_rope_dimension_count(head_dim or config.hidden_size // config.num_attention_heads)
        if hasattr(config, "moe_intermediate_size"):
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if hasattr(config, "shared_expert_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
        if config.model_type == "granitemoe":
            writer.add_attention_scale(config.attention_multiplier)
            writer.add_embedding_scale(config.embedding_multiplier)
            writer.add_residual_scale(config.residual_multiplier)
            writer.add_logit_scale(config.logits_scaling)

    tensors = load_file(folder / "model.safetensors")
    for name, tensor in gguf_tensors(tensors, config, arch, splits_kv_b).items():
        values = np.ascontiguousarray(tensor.numpy())
        if splits_experts and "_exps." in name:
            for expert, matrix in enumerate(values):
                writer.add_tensor(name.replace("_exps.", f".{expert}."), matrix.astype(np.float16))
            continue
        if quant and is_quantised(name, tensor):
            writer.add_tensor(name, gguf.quantize(values, quant), raw_dtype=quant)
            continue
        if tensor.dim() > 1 and "ffn_gate_inp" not in name:
            half = values.astype(np.float16)
            assert (half.astype(np.float32) == values).all(), name
            values = half
        writer.add_tensor(name, values)
    finish(writer)


def is_quantised(name, tensor):
    """By either kind of name. Routers stay as they are, and so do rows that are not whole blocks."""
    is_router = any(part in name for part in ["ffn_gate_inp", "mlp.gate.", "shared_expert_gate", ".router."])
    is_router = is_router or name.endswith("block_sparse_moe.gate.weight")
    return tensor.dim() > 1 and tensor.shape[-1] % 32 == 0 and not is_router


def quantised(folder, config, arch, ids, quant):
    """Writes the quantised model, and what transformers computes with its weights."""
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    for name, tensor in tensors.items():
        if is_quantised(name, tensor):
            blocks = gguf.quantize(np.ascontiguousarray(tensor.numpy()), quant)
            tensors[name] = torch.tensor(gguf.dequantize(blocks, quant)).contiguous()
    path = folder / f"model-{quant.name.lower()}.gguf"
    save_gguf(path, folder, config, arch, splits_kv_b=False, quant=quant)
    wanted = gguf_tensors(tensors, config, arch, splits_kv_b=False)
    for tensor in gguf.GGUFReader(path).tensors:
        stored = torch.tensor(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
        assert torch.equal(stored.reshape(wanted[tensor.name].shape), wanted[tensor.name]), tensor.name
    outputs, _ = golden(reference_model(folder / "config.json", tensors), ids)
    write_json(folder / f"golden-{quant.name.lower()}.json", outputs)


def routers_experts(config):
    return getattr(config, "n_routed_experts", None) or getattr(config, "num_local_experts", None) or config.num_experts


def make(name, config, arch):
    folder = HERE / name
    for seed in range(1, 200):
        model, ids = build_model(config, seed)
        outputs, margin = golden(model, ids)
        if margin < MIN_MARGIN:
            continue
        adapted = adaptation(config, seed)
        if adapted is not None:
            break
    else:
        raise RuntimeError(f"{name}: no seed")
    save_safetensors(model, folder)
    write_json(folder / "golden.json", outputs)
    write_json(folder / "adaptation.json", {"seed": seed} | adapted)
    save_gguf(folder / "model.gguf", folder, config, arch)
    if name == "deepseek_v2":
        save_gguf(folder / "model-kv_b.gguf", folder, config, arch, splits_kv_b=False)
    if name == "mixtral":
        save_gguf(folder / "model-alone.gguf", folder, config, arch, splits_experts=True)
    for quant in ["Q8_0", "Q4_0"] if name in COARSE else ["Q8_0"]:
        quantised(folder, config, arch, ids, gguf.GGMLQuantizationType[quant])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    verify_safetensors(folder, logits, ids)
    spread = logits.std(dim=-1).mean().item()
    print(f"{name}: seed {seed}, margin {adapted['minimum_margin']}, logits' spread {spread:.2f}, loss {adapted['loss']}")
    print(f"  adam {adapted['adam']['losses']}\n  last {adapted['adam_last']['losses']}")


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    chosen = sys.argv[1:] or [*configs(), "slot"]
    for name, (config, arch) in configs().items():
        if name in chosen:
            make(name, config, arch)
    if "slot" in chosen:
        slot()


if __name__ == "__main__":
    main()
