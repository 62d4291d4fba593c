"""Makes the goldens of this folder with llama.cpp's server as the reference.

    llama-server -m MODEL.gguf -c 4096 --port 8099 -t 2
    python3 make.py MODEL_NAME http://127.0.0.1:8099

Writes MODEL_NAME.tokens.json (the ids of every corpus string, as one base-36 line) and
MODEL_NAME.logits.json (prompt ids, and the reference's most likely next tokens with logprobs).
Needs only the standard library. The corpus is generated from a fixed seed; corpus.json holds it.
"""

import json
import random
import sys
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
NUM_STRINGS = 2200
NUM_PROMPTS = 56
NUM_TOP = 40

WORDS = """the of and to in is that for it as was with be by on not he his but at are this have from or
had an they which one you were all her she there would their we him been has when who will no more if
function return import class def for while let const struct impl match async await println lambda self
naïve café straße Übung élève señor mañana привет мир Москва книга こんにちは 世界 東京 日本語 中文 測試 한국어 서울
עברית שלום العربية مرحبا हिन्दी नमस्ते ไทย สวัสดี Ελληνικά Ωmega don't I'll we've they're it's O'Neil""".split()
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇫🇷", "❤️", "🧑🏿‍💻", "𝔘𝔫𝔦", "e\u0301", "a\u0308\u0323", "\u200b", "\ufeff", "\u00a0", "…", "—", "“q”"]
SPACES = [" ", "  ", "   ", "    ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", " \n", "\n ", "        ", "\n    ", " \t "]
MARKS = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["==", "!=", "->", "=>", "::", "//", "/*", "*/", "```", "...", "&&", "||", "<<=", "###", "</div>", "<a href=\"x\">"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "<|fim_prefix|>", "<unk>", "<0x0A>"]
CODE = [
    "def f(x: int) -> int:\n    return x * 2  # double\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n",
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name;",
    "fn main() { println!(\"{:>08.3}\", 3.14159); }",
    "{\"key\": [1, 2.5e-3, null, true], \"nested\": {\"a\": \"b\\n\"}}",
    "<html>\n  <body class='x'>Hi&nbsp;there</body>\n</html>",
    "export const add = (a, b) => a + b;\r\n",
    "x = [i**2 for i in range(10) if i % 2 == 0]",
    "$ grep -rn 'foo.*bar' src/ | sort -u | head -20",
]


def corpus():
    rng = random.Random(20260101)
    strings = ["", " ", "a", "\n", "0", "\u0000x", "\u0007", "123456789", "3.14159", "1,000,000", "2024-01-01T00:00:00Z"]
    strings += CODE + EMOJI + SPACES + SPECIAL + MARKS
    while len(strings) < NUM_STRINGS:
        parts = []
        for _ in range(rng.randint(1, 14)):
            kind = rng.random()
            if kind < 0.45:
                word = rng.choice(WORDS)
                parts.append(rng.choice([word, word.capitalize(), word.upper(), " " + word]))
            elif kind < 0.60:
                parts.append(rng.choice(SPACES))
            elif kind < 0.72:
                parts.append(rng.choice(MARKS))
            elif kind < 0.80:
                parts.append(str(rng.randint(0, 10 ** rng.randint(1, 9))))
            elif kind < 0.87:
                parts.append(rng.choice(EMOJI))
            elif kind < 0.93:
                parts.append(rng.choice(CODE)[: rng.randint(1, 60)])
            elif kind < 0.96:
                parts.append(rng.choice(SPECIAL))
            else:
                parts.append("".join(chr(rng.choice([rng.randint(33, 126), rng.randint(161, 0x2FF), rng.randint(0x400, 0x4FF), rng.randint(0x4E00, 0x9FFF), rng.randint(0x1F300, 0x1F6FF)])) for _ in range(rng.randint(1, 8))))
        text = "".join(parts)
        if text not in strings:
            strings.append(text)
    return strings


PROMPTS = [
    "The capital of France is", "Once upon a time, there was a", "def fibonacci(n):\n    ", "2 + 2 =", "The quick brown fox",
    "import numpy as np\n\ndef softmax(x):\n", "In 1969, humans first", "La capitale de l'Italie est", "Die Hauptstadt von Deutschland ist",
    "El perro y el gato", "1, 2, 3, 4, 5,", "Dear Sir or Madam,\n\nI am writing to", "SELECT * FROM", "#include <stdio.h>\n\nint main(",
    "Water boils at", "fn main() {\n    let x =", "The opposite of hot is", "Roses are red, violets are", "Q: What is 7 times 8?\nA:",
    "{\"name\": \"Alice\", \"age\":", "<html><head><title>", "To be or not to be, that is", "Photosynthesis is the process by which", "日本の首都は",
    "Привет, как", "E = mc", "The first president of the United States was", "class Stack:\n    def __init__(self):\n",
]


def call(base, path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.loads(response.read())


def main():
    name, base = sys.argv[1], sys.argv[2].rstrip("/")
    strings = corpus()
    (HERE / "corpus.json").write_text(json.dumps(strings, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = []
    for text in strings:
        ids = call(base, "/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
        rows.append(ids)
    (HERE / f"{name}.tokens.json").write_text(json.dumps(rows, separators=(",", ":")) + "\n")
    prompts = list(PROMPTS)
    rng = random.Random(7)
    logits = []
    while len(logits) < NUM_PROMPTS:
        if prompts:
            prompt = prompts.pop(0)
        else:
            picked = [text for text in rng.sample(strings, rng.randint(2, 30)) if "\u0000" not in text and "<" not in text]
            prompt = " ".join(picked)[: rng.randint(40, 2000)]
        ids = call(base, "/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
        body = {"prompt": ids, "n_predict": 1, "n_probs": NUM_TOP, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        try:
            # The server reports no probabilities for a token that is part of a character.
            top = call(base, "/completion", body)["completion_probabilities"][0]["top_logprobs"]
        except (KeyError, urllib.error.HTTPError):
            continue
        logits.append({"prompt": ids, "top": [[entry["id"], round(entry["logprob"], 5)] for entry in top]})
    (HERE / f"{name}.logits.json").write_text(json.dumps(logits, separators=(",", ":")) + "\n")


main()
