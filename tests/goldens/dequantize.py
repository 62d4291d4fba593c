"""Writes a GGUF with all tensors as f32, to see what a reference says without activation rounding.

    python dequantize.py MODEL.gguf MODEL-f32.gguf
    llama-perplexity -m MODEL-f32.gguf -f text.txt -c 512 -b 512 -t 2

perplexity.json holds llama-perplexity's estimates: `same_file` for MODEL.gguf, `f32` for its
dequantised copy. text.txt is a piece of Shakespeare's plays (public domain). Needs gguf and numpy.
"""

import sys

import gguf
import numpy as np

source, target = sys.argv[1:]
reader = gguf.GGUFReader(source)
writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
for field in reader.fields.values():
    if field.name.startswith("GGUF.") or field.name == "general.architecture":
        continue
    kind = field.types[0]
    item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    value = 0 if field.name == "general.file_type" else field.contents()
    writer.add_key_value(field.name, value, kind, sub_type=item)
for tensor in reader.tensors:
    writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
