"""Grades an answer's text for a problem of `problems.py`: code by its hidden tests, text by its final answer.

Code runs in a process of its own with limits on time, memory and file size. That keeps accidents away, not attacks:
grade models that you trust, or in a container.
"""

import functools
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from fractions import Fraction
from pathlib import Path

TIMEOUT_S = 10
MEMORY_BYTES = 2 << 30
FILE_BYTES = 16 << 20
# reasoning-gym gives partial credit; at this score an answer is right.
RIGHT_SCORE = 0.99
# As reasoning-gym's coin_flip has it.
PROBABILITY_TOLERANCE = Fraction(1, 10_000)
NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")
PHRASE = re.compile(r"(?i)\banswer\**\s*(?:is\b\s*:?|:)")


def grade(problem, text):
    """Whether `text` answers `problem`."""
    if problem["kind"] == "code":
        return passes(program(problem, text))
    return is_right_text(problem, text)


# Code


def preamble(problem):
    """The imports and helpers that the prompt has before the function: part of what the answer may use."""
    prompt = problem["prompt"]
    return prompt[: prompt.rindex(f"def {problem['entry_point']}(")]


def fenced_blocks(text):
    """(language, content) of each fenced block; one that is left open reaches to the end or to the next that opens."""
    blocks, language, lines = [], None, []
    for line in text.replace("\r\n", "\n").split("\n"):
        is_fence = line.lstrip().startswith("```")
        if not is_fence:
            lines.append(line)
            continue
        if language is not None:
            blocks.append((language, "\n".join(lines)))
        info = line.strip().strip("`").strip().lower()
        language = info if info or language is None else None
        lines = []
    if language is not None:
        blocks.append((language, "\n".join(lines)))
    return blocks


def answer_code(problem, text):
    """The answer's code: the first Python block that defines the function, else the first at all (models like to add a
    block that shows its use), as in the server's verifier; without blocks the whole text. A mere body goes under the
    prompt."""
    blocks = fenced_blocks(text)
    python = [code for language, code in blocks if language.split(" ")[0] in ("python", "python3", "py")]
    candidates = python or [code for _, code in blocks] or [text]
    definition = re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(problem['entry_point'])}\b", re.MULTILINE)
    defining = [code for code in candidates if definition.search(code)]
    if defining:
        return textwrap.dedent(defining[0])
    body = candidates[0].strip("\n")
    if not body[:1].isspace():
        body = textwrap.indent(body, "    ")
    return problem["prompt"] + body


def program(problem, text):
    """The whole program that passes when it runs to its end."""
    # As in the original harness, blocks for `__name__ == "__main__"` don't run.
    parts = ['__name__ = "builtins"', preamble(problem), answer_code(problem, text), problem["hidden_test"]]
    return "\n".join(parts) + "\n"


def limit_resources():
    """Runs in the child before Python starts."""
    for name, value in [
        ("RLIMIT_CPU", TIMEOUT_S),
        ("RLIMIT_AS", MEMORY_BYTES),
        ("RLIMIT_FSIZE", FILE_BYTES),
        ("RLIMIT_CORE", 0),
    ]:
        resource.setrlimit(getattr(resource, name), (value, value))


def passes(source):
    """Whether the program ends by itself with status 0."""
    # Without the mark, an answer that calls exit() before the tests would pass.
    mark = os.urandom(8).hex()
    with tempfile.TemporaryDirectory() as folder:
        script, reached = Path(folder, "program.py"), Path(folder, "reached")
        # The answer may have names of its own for built-in functions.
        end = f"__import__('builtins').open({str(reached)!r}, 'w').write({mark!r})"
        script.write_text(f"{source}\n{end}\n", encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=limit_resources,
        )
        try:
            status = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            kill_group(process)
        return status == 0 and reached.is_file() and reached.read_text() == mark


def kill_group(process):
    """Ends the process and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


# Text


def boxed(text):
    """The content of the last balanced box, or None."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth = 1
        for end in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[match.end() : end].strip() or None
    return None


def final_answer(text):
    """What the text says its answer is: a box or tag, "#### x", "the answer is x", the last number, or all of it. The
    same order as in the server, so that votes and grades read the same answer."""
    tags = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    marked = boxed(text) or (tags[-1].strip() if tags else None)
    if marked:
        return marked
    hashes = re.findall(r"####\s*(\S.*)", text)
    if hashes:
        return hashes[-1].strip()
    phrases = list(PHRASE.finditer(text))
    for line in text[phrases[-1].end() :].splitlines() if phrases else []:
        # Display math often starts on a line of its own.
        answer = re.split(r"\.(?:\s|$)", line.strip())[0].strip()
        if re.sub(r"\\[()\[\]]|[*$` ]", "", answer):
            return answer
    numbers = list(NUMBER.finditer(text))
    if not numbers:
        return text.strip()
    # In "10-5" the hyphen belongs to no number.
    number, before = numbers[-1][0], text[numbers[-1].start() - 1 : numbers[-1].start()]
    return number.removeprefix("-") if before.isalnum() or before == ")" else number


def normalise(answer):
    """The answer without typesetting, in lower case."""
    answer = answer.replace("−", "-").replace("\\times", "×").replace("\\cdot", "×")
    answer = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", answer)
    answer = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", answer)
    # Digits may come with their base.
    answer = re.sub(r"_\{?\(?\d+\)?\}?$|[₀-₉]+$|\s*\(?(?:in )?base[- ]?\d+\)?$", "", answer.strip())
    answer = re.sub(r"\\[()\[\],!;]|[$`*\"]", "", answer)
    answer = re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer)
    answer = re.sub(r"\s*([/×])\s*", r"\1", answer)
    return " ".join(answer.strip().strip("'").rstrip(".").lower().split())


def same_answer(given, right):
    """Whether two normalised answers are the same; a number may come with words ("x = 5", "12 legs")."""
    if given == right:
        return True
    if not NUMBER.fullmatch(right):
        return False
    numbers = NUMBER.findall(given)
    return len(numbers) == 1 and as_number(numbers[0]) == as_number(right)


def as_number(text):
    """A number for comparison; fractions stay as they are written, since lowest terms may be the task."""
    return text if "/" in text else float(text)


def score_probability(answer, entry):
    """1 for the number that is asked for, as a decimal or as a fraction."""
    given, right = (Fraction(text.replace(" ", "")) for text in (normalise(answer), entry["answer"]))
    return float(abs(given - right) <= PROBABILITY_TOLERANCE)


@functools.cache
def own_scorer(dataset):
    """reasoning-gym's scoring function for a dataset, or None where the package is absent."""
    # Its own gives full marks to any answer that begins as the right one does: 0.1 where 0.125 is right.
    if dataset == "coin_flip":
        return score_probability
    try:
        import reasoning_gym
    except ImportError:
        return None
    return reasoning_gym.get_score_answer_fn(dataset)


def is_right_text(problem, text):
    """Exact match after normalisation, or reasoning-gym's own word."""
    answer = final_answer(text)
    if same_answer(normalise(answer), normalise(problem["answer"])):
        return True
    scorer = own_scorer(problem["dataset"])
    if scorer is None:
        return False
    try:
        return scorer(answer, {"answer": problem["answer"], "metadata": problem["metadata"]}) >= RIGHT_SCORE
    except Exception:  # The scorers raise all sorts of things on answers that they cannot read.
        return False
