"""What a GGUF file says of its model, as far as the measures need it: how many bytes one decoded
token reads, and how large a token's keys and values are. Format: ggml's docs/gguf.md."""

import mmap
import struct
from dataclasses import dataclass

# Formats of the scalar types by their ids; 8 is a string, 9 an array.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
F16_BYTES = 2


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def scalar(self, form):
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def string(self):
        length = self.scalar("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode(errors="replace")

    def value(self, kind):
        """A value; of an array only its length."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        of, count = self.scalar("I"), self.scalar("Q")
        if of in SCALARS:
            self.at += count * struct.calcsize(f"<{SCALARS[of]}")
        else:
            for _ in range(count):
                self.value(of)
        return count


@dataclass
class Gguf:
    """Metadata by key, and the bytes of each tensor with the padding behind it."""

    metadata: dict
    tensors: dict

    def own(self, key, default=None):
        """The architecture's entry `key`, or the default where there is one. May raise KeyError."""
        full = f"{self.metadata['general.architecture']}.{key}"
        return self.metadata[full] if default is None else self.metadata.get(full, default)

    def bytes_per_token(self):
        """Weights that one decoded token reads. A table of embeddings beside a head of its own is
        read in one row only."""
        has_head = "output.weight" in self.tensors
        unread = self.tensors["token_embd.weight"] if has_head else 0
        return sum(self.tensors.values()) - unread

    def kv_bytes_per_token(self):
        """Keys and values of one token in 16 bits."""
        heads = self.own("attention.head_count")
        width = self.own("embedding_length") // heads
        kv_heads = self.own("attention.head_count_kv", heads)
        key = self.own("attention.key_length", width)
        value = self.own("attention.value_length", width)
        return self.own("block_count") * kv_heads * (key + value) * F16_BYTES


def parse(data):
    """Of the bytes of a whole file. Raises ValueError where it is no GGUF file."""
    if bytes(data[:4]) != b"GGUF":
        raise ValueError("not a GGUF file")
    reader = Reader(data)
    reader.at = 8
    num_tensors, num_entries = reader.scalar("Q"), reader.scalar("Q")
    metadata = {}
    for _ in range(num_entries):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("I"))
    places = []
    for _ in range(num_tensors):
        name = reader.string()
        num_dimensions = reader.scalar("I")
        reader.at += 8 * num_dimensions + 4
        places.append((reader.scalar("Q"), name))
    alignment = metadata.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    places.sort()
    ends = [offset for offset, _ in places[1:]] + [len(data) - start]
    tensors = {name: end - offset for (offset, name), end in zip(places, ends)}
    return Gguf(metadata, tensors)


def read(path):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return parse(data)
