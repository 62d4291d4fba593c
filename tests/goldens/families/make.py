"""Makes the goldens of this folder with transformers (float32, eager attention, CPU) as the
reference.

    python3 make.py                    # everything, about a minute
    python3 make.py smollm3 phi3       # only these folders

Needs torch, transformers (5.24), safetensors and gguf. Everything is seeded: two runs write the
same files. The common parts are those of ../moe/make.py, which also says what the files of a folder are;
here they are

config.json, config-hub.json, model.safetensors, model.gguf
golden.json         token_ids [24], logits [24, vocab]; of models with experts also moe_layers as in
                    ../moe.
golden-long.json    phi4_mini only: token_ids [48], longer than the original context, so that the
                    long factors count.
model-mxfp4.gguf    gpt_oss only: experts in MXFP4, everything else in F32, as llama.cpp converts
                    the released checkpoint.
mxfp4/              gpt_oss only: config.json and model.safetensors with the same experts as blocks
                    and scales, as released.
golden-mxfp4.json   gpt_oss only: what transformers computes with those experts' values in float32.

Folders are named by model_type, but

phi3                As Phi-3-mini-4k: no scaling of positions, a sliding window (of 10 tokens) in
                    every layer.
phi4_mini           phi3 as Phi-4-mini: long-rope, three quarters of a head rotate, tied embeddings,
                    no window.
glm4_plain          glm4 as the 32B model: no biases.
"""

import importlib.util
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("moe", HERE.parent / "moe" / "make.py")
moe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(moe)

NUM_TOKENS = 24
NUM_LONG_TOKENS = 48
ORIGINAL_CONTEXT = 32
SIZES = moe.SIZES | dict(hidden_size=64, intermediate_size=64, max_position_embeddings=256)
PHI3 = SIZES | dict(num_hidden_layers=3, pad_token_id=0, rms_norm_eps=1e-5)
HEAD_DIM = SIZES["hidden_size"] // SIZES["num_attention_heads"]


def long_rope():
    """Twelve elements of a head's sixteen rotate."""
    half = HEAD_DIM * 3 // 8
    return dict(
        rope_type="longrope",
        rope_theta=10000.0,
        partial_rotary_factor=0.75,
        original_max_position_embeddings=ORIGINAL_CONTEXT,
        short_factor=[1.0 + 0.125 * i for i in range(half)],
        long_factor=[1.0 + 1.5 * i for i in range(half)],
    )


def configs():
    """Folder name: (config, llama.cpp's architecture)."""
    t, arch = transformers, gguf.MODEL_ARCH
    glm4 = SIZES | dict(num_hidden_layers=3, head_dim=32, pad_token_id=0, eos_token_id=2)
    return {
        # Layers 3 and 7 do not rotate.
        "smollm3": (
            t.SmolLM3Config(
                **(SIZES | dict(tie_word_embeddings=True, pad_token_id=0)), num_hidden_layers=5
            ),
            arch.SMOLLM3,
        ),
        "phi3": (t.Phi3Config(**PHI3, sliding_window=10), arch.PHI3),
        "phi4_mini": (
            t.Phi3Config(
                **(PHI3 | dict(tie_word_embeddings=True)),
                original_max_position_embeddings=ORIGINAL_CONTEXT,
                rope_parameters=long_rope(),
            ),
            arch.PHI3,
        ),
        "glm4": (t.Glm4Config(**glm4), arch.GLM4),
        "glm4_plain": (
            t.Glm4Config(**(glm4 | dict(num_hidden_layers=1)), attention_bias=False),
            arch.GLM4,
        ),
        # A layer with a window, and one without.
        "gpt_oss": (
            t.GptOssConfig(
                **SIZES,
                num_hidden_layers=2,
                head_dim=16,
                num_local_experts=4,
                num_experts_per_tok=2,
                sliding_window=7,
                rope_parameters=dict(
                    rope_type="yarn",
                    rope_theta=150000.0,
                    factor=8.0,
                    beta_fast=32.0,
                    beta_slow=1.0,
                    truncate=False,
                    original_max_position_embeddings=ORIGINAL_CONTEXT,
                ),
            ),
            arch.GPT_OSS,
        ),
    }


def standard_deviation(name, shape):
    """gpt-oss' gates are wide enough to be clamped; its experts are [experts, inputs, outputs]."""
    if name.endswith("experts.gate_up_proj"):
        return 6 / shape[1] ** 0.5
    if name.endswith("experts.down_proj"):
        return 0.25 / shape[1] ** 0.5
    if name.endswith("sinks"):
        return 1.0
    return moe.standard_deviation(name, shape)


def hub_config(path):
    """transformers 5's config.json in the spelling of released checkpoints."""
    config = json.loads(path.read_text())
    config.pop("transformers_version")
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if kind == "longrope":
        rope.pop("original_max_position_embeddings")
    config["rope_scaling"] = None if kind == "default" else rope | {"type": kind}
    if kind == "yarn":
        config["rope_scaling"] = rope | {"rope_type": kind}
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def expert_tensors(name, tensor):
    """llama.cpp's name: tensor, of a tensor of all of gpt-oss' experts. Gate and up take turns."""
    _, _, layer, _, _, part = name.split(".")
    kind = "bias" if part.endswith("_bias") else "weight"
    if kind == "weight":
        tensor = tensor.transpose(1, 2)
    if part.startswith("down"):
        return {f"blk.{layer}.ffn_down_exps.{kind}": tensor}
    return {
        f"blk.{layer}.ffn_gate_exps.{kind}": tensor[:, ::2],
        f"blk.{layer}.ffn_up_exps.{kind}": tensor[:, 1::2],
    }


def gguf_tensors(tensors, config, arch):
    """llama.cpp's name: tensor."""
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    permuted = arch == gguf.MODEL_ARCH.SMOLLM3
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.float()
        if ".experts." in name:
            result |= expert_tensors(name, tensor)
            continue
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, name
        if name.endswith("sinks"):
            mapped += ".weight"
        result[mapped] = moe.permute_heads(name, tensor, config) if permuted else tensor
    return result


def add_metadata(writer, config, arch):
    """As llama.cpp's convert_hf_to_gguf.py writes it."""
    writer.add_type(gguf.GGUFType.MODEL)
    moe.add_sizes(writer, config)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    if arch in (gguf.MODEL_ARCH.SMOLLM3, gguf.MODEL_ARCH.PHI3, gguf.MODEL_ARCH.GLM4):
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if arch == gguf.MODEL_ARCH.PHI3:
        writer.add_sliding_window(config.sliding_window or 0)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if arch == gguf.MODEL_ARCH.GPT_OSS:
        writer.add_sliding_window(config.sliding_window)
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        scale = config.max_position_embeddings / config.original_max_position_embeddings
        factor = np.sqrt(1 + np.log(scale) / np.log(config.original_max_position_embeddings))
        writer.add_rope_scaling_attn_factors(float(factor))
        for kind in ["long", "short"]:
            values = np.array(rope[f"{kind}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", values)


def save_gguf(path, folder, config, arch, quant=None):
    """Matrices in F16 and routers in F32; with a `quant`, experts in that and all else in F32."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(folder.name)
    add_metadata(writer, config, arch)
    writer.add_file_type(gguf.LlamaFileType["MOSTLY_MXFP4_MOE" if quant else "MOSTLY_F16"])
    for name, tensor in gguf_tensors(load_file(folder / "model.safetensors"), config, arch).items():
        values = np.ascontiguousarray(tensor.numpy())
        is_matrix = name.endswith("weight") and tensor.dim() > 1 and "ffn_gate_inp" not in name
        if quant and is_matrix and "_exps" in name:
            writer.add_tensor(name, gguf.quantize(values, quant), raw_dtype=quant)
            continue
        if is_matrix and not quant:
            half = values.astype(np.float16)
            assert (half.astype(np.float32) == values).all(), name
            values = half
        writer.add_tensor(name, values)
    moe.finish(writer)


def released_blocks(blocks):
    """GGUF's blocks of MXFP4, [..., 17 a block], as released checkpoints hold them: the scales'
    exponents, and the codes of elements 2 i and 2 i + 1 in byte i, where GGUF has i and i + 16."""
    blocks = blocks.reshape(*blocks.shape[:-1], -1, 17)
    codes = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
    return codes[..., ::2] | codes[..., 1::2] << 4, blocks[..., 0]


def save_mxfp4(folder, config, arch, ids):
    """The experts in MXFP4 in both kinds of files, and what transformers computes with them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    quant = gguf.GGMLQuantizationType.MXFP4
    tensors = load_file(folder / "model.safetensors")
    released, plain = {}, {}
    for name, tensor in tensors.items():
        if ".experts." not in name or name.endswith("bias"):
            released[name] = tensor
            plain[name] = tensor.float()
            continue
        blocks = gguf.quantize(np.ascontiguousarray(tensor.float().transpose(1, 2).numpy()), quant)
        values = torch.tensor(gguf.dequantize(blocks, quant)).transpose(1, 2).contiguous()
        codes, scales = [torch.tensor(part).contiguous() for part in released_blocks(blocks)]
        assert torch.equal(convert_moe_packed_tensors(codes, scales, dtype=torch.float32), values)
        released[f"{name}_blocks"], released[f"{name}_scales"] = codes, scales
        plain[name] = values
    (folder / "mxfp4").mkdir(exist_ok=True)
    save_file(released, folder / "mxfp4" / "model.safetensors", metadata={"format": "pt"})
    json_config = json.loads((folder / "config-hub.json").read_text())
    json_config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "mxfp4" / "config.json").write_text(json.dumps(json_config, indent=2) + "\n")
    save_gguf(folder / "model-mxfp4.gguf", folder, config, arch, quant)
    outputs, margin = moe.golden(moe.reference_model(folder / "config.json", plain), ids)
    moe.write_json(folder / "golden-mxfp4.json", outputs)
    return margin


def write_golden(path, model, ids):
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    moe.write_json(path, {"token_ids": ids[0].tolist(), "logits": moe.digits(logits, 6)})


def make(name, config, arch):
    folder = HERE / name
    if name == "gpt_oss":
        return make_experts(name, config, arch)
    model, ids = moe.build_model(config, 1, standard_deviation)
    moe.save_safetensors(model, folder, hub_config)
    write_golden(folder / "golden.json", model, ids)
    if name == "phi4_mini":
        generator = torch.Generator().manual_seed(2)
        long_ids = torch.randint(3, config.vocab_size, (1, NUM_LONG_TOKENS), generator=generator)
        write_golden(folder / "golden-long.json", model, long_ids)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    moe.verify_safetensors(folder, logits, ids)
    save_gguf(folder / "model.gguf", folder, config, arch)
    print(f"{name}: logits' spread {logits.std(dim=-1).mean().item():.2f}")


def make_experts(name, config, arch):
    folder = HERE / name
    for seed in range(1, 200):
        model, ids = moe.build_model(config, seed, standard_deviation)
        outputs, margin = moe.golden(model, ids)
        if margin < moe.MIN_MARGIN:
            continue
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0]
        moe.save_safetensors(model, folder, hub_config)
        if save_mxfp4(folder, config, arch, ids) >= moe.MIN_MARGIN:
            break
    else:
        raise RuntimeError(f"{name}: no seed")
    moe.write_json(folder / "golden.json", outputs)
    moe.verify_safetensors(folder, logits, ids)
    save_gguf(folder / "model.gguf", folder, config, arch)
    spread = logits.std(dim=-1).mean().item()
    print(f"{name}: seed {seed}, margin {margin}, logits' spread {spread:.2f}")


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    chosen = sys.argv[1:] or configs()
    for name, (config, arch) in configs().items():
        if name in chosen:
            make(name, config, arch)


if __name__ == "__main__":
    main()
