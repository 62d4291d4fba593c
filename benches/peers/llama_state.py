"""llama.cpp's saved state of one sequence (`llama_state_seq_save_file`, version 4): a short one is
made as long as wanted by repeating its cells, so that what a long context costs can be measured
without computing it. The cells get positions and tokens of their own; their keys and values stay
those that were computed."""

import struct

from peers import Failed

MAGIC = 0x67677371  # "ggsq"
VERSION = 4
# Of a cell: its position, how many sequences hold it (one), and which.
CELL = struct.Struct("<iIi")
ROWS = struct.Struct("<iQ")  # A tensor's type, and bytes of a row.


class Source:
    def __init__(self, data):
        self.data, self.at = memoryview(data), 0

    def take(self, count):
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise Failed("llama.cpp: the saved state ends early")
        self.at += count
        return piece

    def words(self, count):
        return struct.unpack(f"<{count}I", self.take(4 * count))


def repeated(pieces, num_rows, size):
    """`num_rows` rows of `size` bytes, from one computed piece after the other."""
    whole, rest = divmod(num_rows * size, len(pieces))
    return bytes(pieces) * whole + bytes(pieces[:rest])


def lengthen(data, tokens):
    """Parts of a state as long as `tokens`, made of `data`, a shorter one."""
    source = Source(data)
    magic, version, num_tokens = source.words(3)
    if (magic, version) != (MAGIC, VERSION):
        raise Failed(f"llama.cpp: a saved state of version {version}, not {VERSION}")
    source.take(4 * num_tokens)
    num_streams, num_cells = source.words(2)
    if num_streams != 1 or not num_cells:
        raise Failed(f"llama.cpp: the saved state has {num_streams} streams, {num_cells} cells")
    cells = [CELL.unpack(source.take(CELL.size)) for _ in range(num_cells)]
    if any(cell[:2] != (position, 1) for position, cell in enumerate(cells)):
        raise Failed("llama.cpp: the saved state's cells are not one sequence in order")
    sequence = cells[0][2]
    yield struct.pack("<3I", MAGIC, VERSION, len(tokens))
    yield struct.pack(f"<{len(tokens)}i", *tokens)
    yield struct.pack("<2I", 1, len(tokens))
    yield b"".join(CELL.pack(position, 1, sequence) for position in range(len(tokens)))
    header = source.take(16)
    is_transposed, num_layers, _, _ = struct.unpack("<4I", header)
    if is_transposed:
        raise Failed("llama.cpp: values are transposed: flash attention is off")
    yield bytes(header)
    # Keys of all layers, then values.
    for _ in range(2 * num_layers):
        head = source.take(ROWS.size)
        size = ROWS.unpack(head)[1]
        yield bytes(head)
        yield repeated(source.take(num_cells * size), len(tokens), size)
    if source.at != len(source.data):
        raise Failed("llama.cpp: the saved state is longer than a sequence of attention layers")
