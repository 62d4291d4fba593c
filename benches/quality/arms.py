"""The arms of a run: ways to ask.

An arms file is a list of {"name", "body", "before", "kinds", "factors"}. The body is merged into
the chat request; `before` are messages before those of the problem. `kinds` (["code"], ["text"])
are the kinds of problems that the arm is for, all by default.
With `factors` ([4, 8, 16]) there is an arm for each, named "NAME@4x" and so on. In a body these
strings are replaced:

    "$FACTOR"        the arm's factor, a number
    "$BUDGET:k"      k times the tokens that the arm "greedy" used for the problem, at least 64;
                     k is a number or $FACTOR
    "$PUBLIC_TESTS"  the problem's public tests, a list; a verifier of a problem without any becomes
                     likelihood
    "$PREFIX"        the imports and helpers of the problem's prompt, which the grader puts before
                     the answer too

An arm that samples nothing (temperature 0, no search) answers alike under every seed: it is asked
once, and its result counts for all seeds.
"""

import fnmatch
import hashlib
import json
import sys
from pathlib import Path

import grade
from server import RequestFailed

GREEDY = "greedy"
MIN_BUDGET = 64
FIELDS = {"name", "body", "before", "kinds", "factors"}


def read_arms(path, patterns=None):
    """The arms of a file, those with factors as one each, that match any of the patterns."""
    arms = []
    for arm in json.loads(Path(path).read_text(encoding="utf-8")):
        if unknown := arm.keys() - FIELDS:
            sys.exit(f"{path}: arm {arm.get('name')!r} has {sorted(unknown)}, which nothing reads")
        arms += expanded(arm)
    if len({arm["name"] for arm in arms}) < len(arms):
        sys.exit(f"{path}: two arms have one name")
    if any(arm["name"] == GREEDY and "$BUDGET" in json.dumps(arm["body"]) for arm in arms):
        sys.exit(f"{path}: the arm {GREEDY!r} cannot have its own tokens as a budget")
    if not patterns:
        return arms
    chosen = [arm for arm in arms if any(fnmatch.fnmatchcase(arm["name"], p) for p in patterns)]
    if not chosen:
        sys.exit(f"{path} has no arm like {' or '.join(patterns)}")
    return chosen


def messages(arm, problem):
    """What is asked of a problem."""
    return arm.get("before", []) + problem["messages"]


def expanded(arm):
    """The arm, or one for each of its factors."""
    if "factors" not in arm:
        return [arm]
    plain = {key: value for key, value in arm.items() if key != "factors"}
    factors = arm["factors"]
    return [{**plain, "name": f"{arm['name']}@{k}x", "body": with_factor(arm["body"], k)} for k in factors]


def with_factor(value, factor):
    """A body with the factor in its places."""
    if isinstance(value, dict):
        return {key: with_factor(inner, factor) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_factor(inner, factor) for inner in value]
    if value == "$FACTOR":
        return factor
    return value.replace("$FACTOR", str(factor)) if isinstance(value, str) else value


def is_fixed(arm):
    """Whether the arm answers alike under every seed."""
    return arm["body"].get("temperature") == 0 and "search" not in arm["body"]


def asked(model, arm, problem):
    """Changes with whatever is asked, but for the seed and the tokens of the greedy answer."""
    material = [model, arm["body"], messages(arm, problem), problem.get("public_tests")]
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode("utf-8")).hexdigest()[:16]


def filled(value, problem, tokens_of):
    """A body with its placeholders replaced. `tokens_of` has a problem's greedy tokens by its id, or None."""
    if isinstance(value, dict):
        result = {key: filled(inner, problem, tokens_of) for key, inner in value.items()}
        # A few problems have no public tests: likelihood is what is left to choose by.
        return {"kind": "likelihood"} if result.get("kind") == "verifier" and result.get("tests") == [] else result
    if isinstance(value, list):
        return [filled(inner, problem, tokens_of) for inner in value]
    if value == "$PUBLIC_TESTS":
        return problem.get("public_tests", [])
    if value == "$PREFIX":
        return grade.preamble(problem) if problem["kind"] == "code" else ""
    if isinstance(value, str) and value.startswith("$BUDGET:"):
        greedy_tokens = tokens_of(problem["id"])
        if greedy_tokens is None:
            raise RequestFailed(f"the arm {GREEDY!r} has no result to take the budget from")
        return max(MIN_BUDGET, int(float(value.removeprefix("$BUDGET:")) * greedy_tokens))
    return value
