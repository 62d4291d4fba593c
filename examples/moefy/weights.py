"""The dense model, read from its GGUF file, and the state that turns it into a mixture of experts."""

from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file

# A state is written in files of at most this many bytes.
SHARD_BYTES = 15 * 2**20


@dataclass(frozen=True)
class Shape:
    """The sizes of the dense model."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    rope_base: float
    norm_eps: float
    context: int

    @property
    def head_dim(self):
        return self.width // self.heads


@dataclass(frozen=True)
class Experts:
    """How the neurons of an FFN are divided: `shared` neurons always run, and `used` of `count` experts of `size`."""

    shared: int = 1280
    count: int = 28
    used: int = 8
    size: int = 128

    @property
    def groups(self):
        """The FFN's neurons in groups of `size`: those of the shared expert first, then one for each expert."""
        return self.shared // self.size + self.count

    @classmethod
    def of(cls, state):
        """As `split` divided them: a state says how many experts a token uses."""
        return cls(used=int(state["used"])) if "used" in state else cls()

    def check(self, shape):
        if self.shared % self.size or self.groups * self.size != shape.ffn:
            raise ValueError(f"{self} does not divide an FFN of {shape.ffn} neurons")


def read_shape(reader):
    def value(key):
        return reader.fields[f"qwen2.{key}"].contents()

    if (architecture := reader.fields["general.architecture"].contents()) != "qwen2":
        raise ValueError(f"the dense model must be of the architecture qwen2, not {architecture}")
    return Shape(
        layers=value("block_count"),
        width=value("embedding_length"),
        ffn=value("feed_forward_length"),
        heads=value("attention.head_count"),
        kv_heads=value("attention.head_count_kv"),
        rope_base=value("rope.freq_base"),
        norm_eps=value("attention.layer_norm_rms_epsilon"),
        context=value("context_length"),
    )


def read_dense(path, device="cpu", dtype=torch.bfloat16):
    """The shape and the dequantised weights by their GGUF names, matrices as [outputs, inputs].

    Qwen2 was published in bf16: the norms and biases are exact in it.
    """
    reader = gguf.GGUFReader(path)
    weights = {}
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        weights[tensor.name] = torch.tensor(array).to(device, dtype)
    weights.setdefault("output.weight", weights["token_embd.weight"])
    return read_shape(reader), weights


def save_state(folder, state):
    """Writes a state as safetensors shards. A shard appears under its name only when it is whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards, room = [], 0
    for name, tensor in sorted(state.items()):
        tensor = tensor.detach().cpu().contiguous()
        if tensor.nbytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    for i, shard in enumerate(shards):
        partial = folder / f"state-{i}.partial"
        save_file(shard, partial)
        partial.rename(folder / f"state-{i}.safetensors")


def load_state(folder, device="cpu"):
    files = sorted(Path(folder).glob("state-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no state-*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file, device=str(device)).items()}
