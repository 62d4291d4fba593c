#!/usr/bin/env python3
"""Vocabularies and texts with llama.cpp's token ids, for a test of Ponder to compare with its own.

    tokens.py LLAMA_CPP FOLDER
    PONDER_VOCABULARIES=FOLDER cargo test --lib ids_are_those_of_llama_cpp -- --nocapture

LLAMA_CPP is a source tree with a build in build/bin. FOLDER gets its vocabularies
(models/ggml-vocab-*.gguf), and one of them under the name of each pre-tokenizer of byte-level
vocabularies that its loader knows. Each has a file of texts (.inp) and one of ids (.out), in the
format of llama.cpp's own tests, and one of the ids that end an answer (.ends).

Some texts are left out (see `is_comparable`): those for which llama.cpp does not do what the
patterns of the models' tokenizer.json say.
"""

import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import unicodedata

SEPARATOR = "\n__ggml_vocab_test__\n"
# Of many kinds of characters and merges.
BASE = "ggml-vocab-llama-bpe.gguf"
NUM_RANDOM_TEXTS = 400
# Types of vocabularies other than byte-level BPE and SentencePiece, or names for them.
OTHERS = {"gemma4", "granite-embed-multi-311m", "mmbert", "sarvam-moe", "whitespace"}
OTHER_FILES = ("bert-bge", "gemma-4", "nomic-bert-moe")

PARTS = [
    *" \n\r\t\u00a0\u3000.,;:!?'\"/\\-_=+<>|^~`$%&@#()[]{}*aAzZsSltdm0123789",
    *"éÉßñǅжЖωΩ漢字中文ひらカナ가나ㄅ٣²½Ⅷनมाสप्តេ\u0301\u200d🙂🚀…。、，！？“”《》",
    "  ", "    ", "\n\n", "\r\n", " \n", "'s", "'LL", "'re", " the", "Hello", "fooBar", "ABCdef",
    "HTTPServer", "12345678", "1,234.50", "://", "...", "===", "#include <x>", "नमस्ते", "สวัสดี",
    "привет", "Привет", "日本語テスト", "안녕하세요", "مرحبا", "def f(x):\n    return x\n", "IMGIMGABZ",
]
DOCUMENTS = [
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n\n"
    "    return total / len(values)  # 12345 values\n",
    "| name | count |\n|------|------:|\n| a    |  1024 |\n| b    |    77 |\n",
    '{"key": [1, 22, 333, 4444, 55555], "text": "it\'s   done", "n": -1.5e-10}\n\n\n',
    "DON'T panic: we'll see what they've done. I'd say it's 1,000,000 km/h…\r\n\tOK?\r\n",
]


def texts():
    generator = random.Random(7)
    yield from DOCUMENTS
    for _ in range(NUM_RANDOM_TEXTS):
        count = generator.randint(1, 24)
        yield "".join(generator.choice(PARTS) for _ in range(count))


def is_comparable(name, text):
    """Whether llama.cpp has the words of the pattern of `name` for `text`."""
    kinds = {unicodedata.category(character) for character in text}
    beyond = {unicodedata.category(character) for character in text if ord(character) > 127}
    if name in ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "tekken", "kimi-k2"):
        # Cases are told apart in ASCII alone (or nowhere), marks are symbols.
        return not beyond & {"Lu", "Ll", "Lt"} and not kinds & {"Mn", "Mc", "Me"} and (
            name != "kimi-k2" or not re.search("[a-z][A-Z]|[A-Z]{2}", text)
        )
    if name in ("youtu", "tiny_aya", "cohere2moe", "granite-embed-multi-97m"):
        has_cases = bool(beyond & {"Lu", "Ll", "Lt"})
        if name == "granite-embed-multi-97m":
            return not has_cases
        # A word with cases is one in llama.cpp; digits in threes take what is before them along.
        cases = re.search(r"[^\W\d_][A-Z]|[A-Z][a-z]", text)
        digits = name != "youtu" and re.search(r"\s\s+\d|\d\w", text)
        return not has_cases and not cases and not digits
    if name == "afmoe":
        return not re.search(r"\s\s+[\d²½Ⅷ]", text)
    if name in ("deepseek-llm", "deepseek-coder"):
        # Their classes have this space, which llama.cpp takes for another one.
        return "\u3000" not in text
    if name == "superbpe":
        return not set(text) & set("٣²½Ⅷ")
    return True


def names(source):
    """The pre-tokenizers that the loader compares with."""
    return sorted(set(re.findall(r'tokenizer_pre == "([^"]+)"', source)) - OTHERS)


def renamed(vocabulary, name):
    """The bytes of a vocabulary whose pre-tokenizer has another name."""
    key = b"tokenizer.ggml.pre"
    at = vocabulary.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    (length,) = struct.unpack_from("<Q", vocabulary, at)
    name = name.encode()
    return vocabulary[:at] + struct.pack("<Q", len(name)) + name + vocabulary[at + 8 + length :]


def built(llama_cpp, folder):
    """The program that prints llama.cpp's ids."""
    program = folder / "tokens"
    source = pathlib.Path(__file__).with_name("tokens.cpp")
    libraries = llama_cpp / "build/bin"
    subprocess.run(
        ["g++", "-O1", "-std=c++17", f"-I{llama_cpp}/include", f"-I{llama_cpp}/ggml/include"]
        + [str(source), f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml"]
        + ["-lggml-base", "-o", str(program)],
        check=True,
    )
    return program


def write(program, path, name):
    """The texts, ids and ends of a vocabulary that lies at `path`."""
    chosen = [text for text in texts() if is_comparable(name, text)]
    inputs = "".join(text + SEPARATOR for text in chosen).encode()
    done = subprocess.run([program, path], input=inputs, capture_output=True, check=True)
    path.with_name(path.name + ".inp").write_bytes(inputs)
    path.with_name(path.name + ".out").write_bytes(done.stdout)
    path.with_name(path.name + ".ends").write_bytes(done.stderr)
    print(f"{name}: {len(chosen)} texts", flush=True)


def main():
    llama_cpp, folder = map(pathlib.Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    program = built(llama_cpp, folder)
    base = (llama_cpp / "models" / BASE).read_bytes()
    for name in names((llama_cpp / "src/llama-vocab.cpp").read_text()):
        path = folder / f"{name}.gguf"
        path.write_bytes(renamed(base, name))
        write(program, path, name)
    for source in sorted((llama_cpp / "models").glob("ggml-vocab-*.gguf")):
        name = source.stem.removeprefix("ggml-vocab-")
        if name in OTHER_FILES:
            continue
        path = folder / f"own-{name}.gguf"
        shutil.copy(source, path)
        write(program, path, name)
        for end in (".inp", ".out"):
            expected = source.with_name(source.name + end)
            if expected.exists():
                shutil.copy(expected, folder / f"published-{name}.gguf{end}")
        shutil.copy(source, folder / f"published-{name}.gguf")


if __name__ == "__main__":
    main()
