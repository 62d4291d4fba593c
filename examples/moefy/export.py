"""The mixture as files that servers load: safetensors in the layout of Qwen2MoeForCausalLM, and GGUF (`qwen2moe`)."""

import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from model import ATTENTION, FFN, Student, reorder
from weights import Experts, read_dense

HF_ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
HF_FFN = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
QUANTS = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def merge(shape, weights, state):
    """The mixture's weights by GGUF names, from dense ones (changed in place) in f32.

    Of each layer: ffn_{gate,up}_exps [E, size, d], ffn_down_exps [E, d, size], ffn_{gate,up}_shexp [shared, d],
    ffn_down_shexp [d, shared], ffn_gate_inp [E, d], ffn_gate_inp_shexp [d], and the attention.
    """
    experts = Experts.of(state)
    experts.check(shape)
    reorder(weights, state["order"])
    merged = {name: tensor for name, tensor in weights.items() if ".ffn_" not in name or "norm" in name}
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        for name in FFN + ATTENTION:
            if f"{prefix}{name}.lora_a" in state:
                update = state[f"{prefix}{name}.lora_b"].float() @ state[f"{prefix}{name}.lora_a"].float()
                weights[f"{prefix}{name}.weight"] += update
        for name in FFN:
            # Neurons first, so that an expert is a slice.
            weight = weights[f"{prefix}{name}.weight"]
            neurons = weight.T if name == "ffn_down" else weight
            shared, routed = neurons[: experts.shared], neurons[experts.shared :]
            routed = routed.unflatten(0, (experts.count, experts.size))
            if name == "ffn_down":
                shared = shared.T * Student.SHARED_SCALE
                routed = routed.transpose(1, 2) * state["expert_scale"][layer]
            merged[f"{prefix}{name}_shexp.weight"] = shared.contiguous()
            merged[f"{prefix}{name}_exps.weight"] = routed.contiguous()
        merged[f"{prefix}ffn_gate_inp.weight"] = state["router"][layer].float()
        merged[f"{prefix}ffn_gate_inp_shexp.weight"] = state["shared_gate"][layer].float()
    return merged


def hf_tensors(shape, merged, dtype=torch.bfloat16):
    """The same by Hugging Face's names."""
    tensors = {
        "model.embed_tokens.weight": merged["token_embd.weight"],
        "model.norm.weight": merged["output_norm.weight"],
        "lm_head.weight": merged["output.weight"],
    }
    for layer in range(shape.layers):
        source, target = f"blk.{layer}.", f"model.layers.{layer}."
        tensors[target + "input_layernorm.weight"] = merged[source + "attn_norm.weight"]
        tensors[target + "post_attention_layernorm.weight"] = merged[source + "ffn_norm.weight"]
        for name, hf_name in HF_ATTENTION.items():
            for part in ("weight", "bias"):
                if f"{source}{name}.{part}" in merged:
                    tensors[f"{target}self_attn.{hf_name}.{part}"] = merged[f"{source}{name}.{part}"]
        tensors[target + "mlp.gate.weight"] = merged[source + "ffn_gate_inp.weight"]
        tensors[target + "mlp.shared_expert_gate.weight"] = merged[source + "ffn_gate_inp_shexp.weight"][None]
        for name, hf_name in HF_FFN.items():
            tensors[f"{target}mlp.shared_expert.{hf_name}.weight"] = merged[f"{source}{name}_shexp.weight"]
            for expert, weight in enumerate(merged[f"{source}{name}_exps.weight"]):
                tensors[f"{target}mlp.experts.{expert}.{hf_name}.weight"] = weight
    return {name: tensor.to(dtype).contiguous().clone() for name, tensor in tensors.items()}


def hf_config(shape, experts, vocabulary, special):
    return {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "vocab_size": vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_base,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "qkv_bias": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.size,
        "shared_expert_intermediate_size": experts.shared,
        "norm_topk_prob": False,
        "torch_dtype": "bfloat16",
        **special,
    }


def write_hf(folder, shape, experts, merged, tokenizer, special, dtype=torch.bfloat16):
    """The folder is written beside its place and then renamed."""
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights_file = partial / "model.safetensors"
    save_file(hf_tensors(shape, merged, dtype), weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)
    config = hf_config(shape, experts, len(merged["token_embd.weight"]), special)
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in Path(tokenizer).iterdir():
        shutil.copy(file, partial / file.name)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def copy_metadata(reader, writer, file_type, experts):
    """All fields of the dense file, those of its architecture under the new name, and the experts' sizes."""
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type", "general.size_label"):
            continue
        value, kind = field.contents(), field.types[0]
        if key == "general.name":
            value = f"{value} MoE"
        writer.add_key_value(
            key.replace("qwen2.", "qwen2moe.", 1) if key.startswith("qwen2.") else key,
            value,
            kind,
            sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None,
        )
    writer.add_file_type(file_type)
    writer.add_expert_count(experts.count)
    writer.add_expert_used_count(experts.used)
    writer.add_expert_feed_forward_length(experts.size)
    writer.add_expert_shared_feed_forward_length(experts.shared)


def write_gguf(path, base, experts, merged, quant):
    """Matrices quantised, norms, biases and routers in f32, the embedding and the output in Q8_0."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    matrix_type, file_type = QUANTS[quant]
    writer = gguf.GGUFWriter(partial, "qwen2moe")
    copy_metadata(gguf.GGUFReader(base), writer, file_type, experts)
    for name, tensor in merged.items():
        array = tensor.float().numpy()
        if array.ndim == 1 or "ffn_gate_inp" in name:
            writer.add_tensor(name, array.astype(np.float32))
            continue
        kind = gguf.GGMLQuantizationType.Q8_0 if name in ("token_embd.weight", "output.weight") else matrix_type
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)


def special_tokens(base):
    fields = gguf.GGUFReader(base).fields
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {hf: fields[f"tokenizer.ggml.{name}"].contents() for hf, name in names.items()}


def run(base, state, tokenizer, hf=None, gguf_path=None, quant="q8_0"):
    shape, weights = read_dense(base, dtype=torch.float32)
    merged, experts = merge(shape, weights, state), Experts.of(state)
    if hf:
        write_hf(hf, shape, experts, merged, tokenizer, special_tokens(base))
        print(f"wrote {hf}")
    if gguf_path:
        write_gguf(gguf_path, base, experts, merged, quant)
        print(f"wrote {gguf_path}")
