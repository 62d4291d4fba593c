"""The training text: source code, documentation, and chats about functions and small problems, as tokens.

Nothing is downloaded: the text is what lies in the given folders, and what reasoning-gym draws.
"""

import ast
import hashlib
import random
import textwrap
from pathlib import Path

import numpy as np
import torch

END_OF_TEXT = "<|endoftext|>"
SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CHAT = (
    "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    "<|im_start|>assistant\n{answer}<|im_end|>\n"
)

# Shares of the tokens.
SHARES = {"code": 0.35, "docs": 0.24, "functions": 0.25, "problems": 0.16}
# One file in so many is held out for validation.
HELD_OUT_FILES = 64
MAX_EXCERPT, MIN_EXCERPT = 12_000, 400
MAX_EXCERPTS_OF_FILE = 4
DOC_SUFFIXES = {".md", ".rst", ".txt"}
# HumanEval is for evaluation: no file that mentions it, or holds its first problem, is used.
FORBIDDEN = ("humaneval", "human_eval", "human-eval", "has_close_elements")
SKIPPED_FOLDERS = set("__pycache__ _vendor goldens human_eval locale site-packages test testing tests".split())
# The functions of the chats have this many lines, and docstrings of this many characters.
MIN_LINES, MAX_LINES, MIN_DOCSTRING = 4, 60, 40

# Seeds from here on: evaluations use small ones.
FIRST_SEED = 1_000_000
PROBLEM_FAMILIES = (
    "chain_sum", "basic_arithmetic", "gsm_symbolic", "leg_counting", "simple_equations", "products", "gcd", "lcm",
    "fraction_simplification", "number_sorting", "word_sorting", "letter_counting", "spell_backward",
    "calendar_arithmetic", "time_intervals", "decimal_arithmetic", "number_filtering", "base_conversion",
    "caesar_cipher", "count_bits", "prime_factorization", "syllogism", "family_relationships", "knights_knaves",
    "word_sequence_reversal", "sentence_reordering", "number_sequence", "count_primes", "isomorphic_strings",
    "palindrome_generation", "binary_matrix", "course_schedule", "aiw", "dice", "power_function",
)  # fmt: skip

NAMES = ("Ana", "Ben", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ivan", "Jun", "Kofi", "Lena")
THINGS = ("apples", "books", "coins", "stamps", "eggs", "pencils", "tickets", "stones", "cards", "plants")

COMPLETE = (
    "Complete this Python function.\n\n```python\n{stub}\n```",
    "Write the body of the following function.\n\n{stub}",
    "Implement this function in Python:\n```python\n{stub}\n```",
    "Please complete the function below. Answer with the whole function in a code block.\n\n```python\n{stub}\n```",
)
DESCRIBE = (
    "Write a Python function `{name}({arguments})`.\n\n{docstring}",
    "I need a Python function called `{name}` with the parameters ({arguments}). What it does: {docstring}",
)
EXPLAIN = ("What does this Python function do?\n\n```python\n{code}\n```", "Explain this code briefly.\n\n{code}")


def load_tokenizer(base):
    """The tokenizer that a GGUF file holds."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(base.parent), gguf_file=base.name)


def load_tokens(folder, name, limit=None):
    """The first tokens of the stream `name`, [n]."""
    return torch.from_numpy(np.load(Path(folder) / f"{name}.npz")["tokens"][:limit].astype(np.int64))


def is_held_out(path):
    return int(hashlib.sha256(str(path).encode()).hexdigest(), 16) % HELD_OUT_FILES == 0


def read_files(roots, suffixes, seed):
    """Paths and texts of the files below the roots, shuffled, without those that must not be trained on."""
    paths = set()
    for root in roots:
        for path in Path(root).rglob("*"):
            inner = path.relative_to(root).parts
            if path.suffix in suffixes and not SKIPPED_FOLDERS.intersection(inner) and path.is_file():
                paths.add(path)
    paths = sorted(paths)
    random.Random(seed).shuffle(paths)
    seen = set()
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        lower, key = text.lower(), hash(text)
        if len(text) < MIN_EXCERPT or key in seen or any(word in lower for word in FORBIDDEN):
            continue
        seen.add(key)
        yield path, text


def excerpts(text, rng):
    """A few parts of a file that start at lines."""
    if len(text) <= MAX_EXCERPT:
        return [text]
    lines = text.splitlines(keepends=True)
    parts = []
    for _ in range(min(MAX_EXCERPTS_OF_FILE, len(text) // MAX_EXCERPT)):
        start = rng.randrange(len(lines))
        part = "".join(lines[start : start + 400])[:MAX_EXCERPT]
        if len(part) >= MIN_EXCERPT:
            parts.append(part)
    return parts


def chat(user, answer):
    return CHAT.format(system=SYSTEM, user=user, answer=answer)


def function_chats(text, rng):
    """Chats about the documented functions of a Python file: complete it, write it, explain it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        docstring = ast.get_docstring(node)
        num_lines = node.end_lineno - node.lineno + 1
        if not docstring or len(docstring) < MIN_DOCSTRING or not MIN_LINES <= num_lines <= MAX_LINES:
            continue
        if len(node.body) < 2:
            continue
        code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        stub = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].end_lineno]))
        answer = f"```python\n{code}\n```"
        kind = rng.random()
        if kind < 0.6:
            yield chat(rng.choice(COMPLETE).format(stub=stub), answer)
        elif kind < 0.85:
            words = {"name": node.name, "arguments": ast.unparse(node.args), "docstring": docstring}
            yield chat(rng.choice(DESCRIBE).format(**words), answer)
        else:
            yield chat(rng.choice(EXPLAIN).format(code=code), docstring)


def word_problem(rng):
    """A small sum in words, with the steps of its answer."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    have, bags, each = rng.randint(3, 60), rng.randint(2, 12), rng.randint(2, 20)
    total = have + bags * each
    gone = rng.randint(1, total - 1)
    question = (
        f"{name} has {have} {thing} and buys {bags} bags with {each} {thing} in each. "
        f"Then {name} gives away {gone} {thing}. How many {thing} does {name} have left?"
    )
    steps = (
        f"The bags hold {bags} * {each} = {bags * each} {thing}.\nWith the first ones that is {have} + {bags * each} = "
        f"{total} {thing}.\nAfter giving away {gone}, {total} - {gone} = {total - gone} are left.\n\n"
        f"The answer is {total - gone}."
    )
    return chat(question, steps)


def problem_chats(seed):
    """Chats of small problems without end, in turn from every family."""
    import reasoning_gym

    rng, size = random.Random(seed), 50
    while True:
        for family in PROBLEM_FAMILIES:
            seed += size
            try:
                drawn = list(reasoning_gym.create_dataset(family, size=size, seed=seed))
            except Exception as error:  # A family that this version lacks, or that cannot draw from this seed.
                print(f"{family}: {error!r}", flush=True)
                continue
            for item in drawn:
                if item["answer"] is not None:
                    yield chat(item["question"], str(item["answer"]))
        for _ in range(2 * size):
            yield word_problem(rng)


def file_documents(python_roots, doc_roots, seed):
    """(kind, is held out, text) of all documents that come from files."""
    rng = random.Random(seed)
    for path, text in read_files(python_roots, {".py"}, seed):
        held_out = is_held_out(path)
        for part in excerpts(text, rng):
            yield "code", held_out, part
        for part in function_chats(text, rng):
            yield "functions", held_out, part
    for path, text in read_files(doc_roots, DOC_SUFFIXES, seed):
        for part in excerpts(text, rng):
            yield "docs", is_held_out(path), part


def gather(documents, encode, wanted):
    """Encodes documents until there are enough tokens. Returns one array for each document, and their tokens."""
    arrays, num, batch = [], 0, 256
    for start in range(0, len(documents), batch):
        for ids in encode([text + END_OF_TEXT for text in documents[start : start + batch]]):
            if num >= wanted:
                return arrays, num
            arrays.append(np.asarray(ids, dtype=np.uint32))
            num += len(ids)
    return arrays, num


def take(iterator, characters):
    """The first documents of an iterator, at least this many characters together."""
    documents, num = [], 0
    for text in iterator:
        documents.append(text)
        num += len(text)
        if num >= characters:
            return documents


def build(tokenizer, python_roots, doc_roots, num_train, num_valid, seed=0):
    """Train and validation tokens: uint32 [n] each, documents shuffled and joined."""

    def encode(texts):
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    pools = {(kind, held_out): [] for kind in SHARES for held_out in (False, True)}
    for kind, held_out, text in file_documents(python_roots, doc_roots, seed):
        pools[kind, held_out].append(text)
    rng = random.Random(seed)
    streams = {}
    for held_out, total in ((True, num_valid), (False, num_train)):
        arrays = []
        for kind, share in SHARES.items():
            wanted = int(total * share)
            documents = pools[kind, held_out]
            if kind == "problems":
                first = FIRST_SEED if held_out else 10 * FIRST_SEED
                documents = take(problem_chats(first), 4 * wanted)
            rng.shuffle(documents)
            parts, num = gather(documents, encode, wanted)
            name = "valid" if held_out else "train"
            print(f"{name} {kind}: {num} tokens of {wanted} wanted, {len(parts)} documents", flush=True)
            arrays += parts
        rng.shuffle(arrays)
        streams["valid" if held_out else "train"] = np.concatenate(arrays)
    return streams
