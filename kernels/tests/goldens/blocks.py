"""Records blocks of the low-bit GGUF types and what gguf-py reads from them, for tests/types.rs.

    pip install gguf==0.19.0 && python kernels/tests/goldens/blocks.py

For each type: u32 ggml number, u32 number of blocks, the blocks, and their values as f32; all
little-endian.
"""

import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, quants

# Where a block has its f16 scales.
SCALES = {
    T.Q2_K: [80, 82],
    T.Q3_K: [108],
    T.IQ2_XXS: [0],
    T.IQ2_XS: [0],
    T.IQ2_S: [0],
    T.IQ3_XXS: [0],
    T.IQ3_S: [0],
    T.IQ4_NL: [0],
    T.IQ4_XS: [0],
    T.MXFP4: [],
}
# Ordinary, negative, subnormal, zero, the largest and the smallest; E8M0 exponents likewise.
HALVES = [0x211F, 0xA35C, 0x0001, 0x8000, 0x7BFF, 0x03FF]
EXPONENTS = [127, 121, 0, 1, 2, 252, 253, 254, 255]
ONE = 0x3C00


def grid_blocks(kind, size):
    """Blocks that name every entry of the type's grid once, all signs positive and scales zero."""
    entries = {T.IQ2_XXS: 256, T.IQ2_XS: 512, T.IQ2_S: 1024, T.IQ3_XXS: 256, T.IQ3_S: 512}.get(
        kind, 0
    )
    per_block = 64 if kind in (T.IQ3_XXS, T.IQ3_S) else 32
    blocks = np.zeros((entries // per_block, size), dtype=np.uint8)
    for entry in range(entries):
        block, at = blocks[entry // per_block], entry % per_block
        low, high = entry & 255, entry >> 8
        if kind == T.IQ2_XXS:
            block[2 + 8 * (at // 4) + at % 4] = low
        elif kind == T.IQ2_XS:
            block[2 + 2 * at] = low
            block[3 + 2 * at] = high
        elif kind == T.IQ2_S:
            block[2 + at] = low
            block[66 + at // 4] |= high << (2 * (at % 4))
        else:
            block[2 + at] = low
            block[66 + at // 8] |= high << (at % 8)
    blocks[:, :2] = np.frombuffer(struct.pack("<H", ONE), dtype=np.uint8)
    return blocks


def main():
    random = np.random.default_rng(23)
    out = b""
    for kind, places in SCALES.items():
        _, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (len(EXPONENTS), size), dtype=np.uint8)
        for index, block in enumerate(blocks):
            if kind == T.MXFP4:
                block[0] = EXPONENTS[index]
            for place, at in enumerate(places):
                half = HALVES[(index + place) % len(HALVES)]
                block[at : at + 2] = np.frombuffer(struct.pack("<H", half), dtype=np.uint8)
        blocks = np.concatenate([blocks, grid_blocks(kind, size)])
        values = quants.dequantize(blocks, kind).astype("<f4")
        out += struct.pack("<II", kind, len(blocks)) + blocks.tobytes() + values.tobytes()
    path = pathlib.Path(__file__).with_name("blocks.bin")
    path.write_bytes(out)
    print(path, len(out), "bytes")


if __name__ == "__main__":
    main()
