"""Model files that are small enough to write here: a llama of two layers, and adapters for any llama. Standard library only."""

import json
import math
import random
import shutil
import struct
from pathlib import Path

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"
# A folder with a tokenizer of 262 tokens.
TOKENIZER_FOLDER = GOLDENS / "mistralrs" / "phi3"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 96, 2, 4, 2, 16, 262
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "eos_token_id": 257,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
# What `struct` calls the types of a safetensors file.
FORMATS = {"F32": "f", "F64": "d"}


def write_safetensors(path, tensors, dtype="F32"):
    """Writes `{name: (shape, values)}`; a single value fills its tensor."""
    header, data = {}, bytearray()
    for name, (shape, values) in tensors.items():
        count = math.prod(shape)
        values = [values] * count if isinstance(values, float) else values
        start = len(data)
        data += struct.pack(f"<{count}{FORMATS[dtype]}", *values)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def llama_tensors():
    """Names, shapes and seeded values of the tiny llama."""
    generator = random.Random(1)
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "self_attn.q_proj.weight"] = (HEADS * HEAD_DIM, HIDDEN)
        shapes[prefix + "self_attn.k_proj.weight"] = (KV_HEADS * HEAD_DIM, HIDDEN)
        shapes[prefix + "self_attn.v_proj.weight"] = (KV_HEADS * HEAD_DIM, HIDDEN)
        shapes[prefix + "self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes[prefix + "mlp.gate_proj.weight"] = (INNER, HIDDEN)
        shapes[prefix + "mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[prefix + "mlp.down_proj.weight"] = (HIDDEN, INNER)
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = (shape, [generator.gauss(0, 0.05) for _ in range(math.prod(shape))])
    norms = ["model.norm.weight"]
    for layer in range(LAYERS):
        norms += [f"model.layers.{layer}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")]
    return {**tensors, **{name: ((HIDDEN,), 1.0) for name in norms}}


def write_llama(folder, **changes):
    """A folder that `ponder serve` takes; `changes` are fields of its `config.json`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").exists():
        write_safetensors(folder / "model.safetensors", llama_tensors())
        for name in TOKENIZER_FILES:
            shutil.copy(TOKENIZER_FOLDER / name, folder / name)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def edit_json(path, change):
    """Reads a JSON file, lets `change` edit it, and writes it again."""
    content = json.loads(Path(path).read_text())
    change(content)
    Path(path).write_text(json.dumps(content))


def write_adapter(folder, hidden, a=0.01, b=0.01, alpha=1.0, dtype="F32"):
    """An adapter of rank 1 on the first layer's Q of a model whose Q is square; every weight is `a` or `b`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": alpha, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): ((1, hidden), a), name.format("B"): ((hidden, 1), b)}
    write_safetensors(folder / "adapter_model.safetensors", tensors, dtype)
    return folder


def set_gguf_float(source, target, key, value):
    """Copies a GGUF file with another value of one `f32` field of its metadata."""
    shutil.copy(source, target)
    with open(target, "r+b") as file:
        head = file.read(1 << 20)
        place = head.find(key.encode()) + len(key)
        kind = struct.unpack_from("<I", head, place)[0]
        # 6 is the type of a 32-bit float.
        if place < len(key) or kind != 6:
            raise ValueError(f"{key} is not a float of the file")
        file.seek(place + 4)
        file.write(struct.pack("<f", value))
