"""Function calling: the Berkeley leaderboard's cases through running OpenAI-compatible servers.

    pip download --no-deps bfcl-eval==2026.3.23 && unzip bfcl_eval-*.whl -d bfcl
    python benches/tools/bfcl.py --data bfcl --server ponder=http://127.0.0.1:8000/v1 \
        --server llama-server=http://127.0.0.1:8080/v1 --each 100 --out result.json

Every server gets the same cases, greedily, with `tool_choice: "auto"`. The package's own checker says whether the calls
are right: the function's name, every argument against its possible values, for "parallel" in any order. Prints a Markdown
table with Wilson's 95 % interval, and how many cases only one of two servers got right. Needs only Python 3.
"""

import argparse
import importlib
import json
import math
import sys
import types
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CATEGORIES = {"simple": "simple_python", "multiple": "multiple", "parallel": "parallel"}
# The leaderboard's names of types and those of JSON Schema.
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
MODEL = "bench"


def load_checker(folder):
    """The package's checker, without the clients of a hundred hosted models that it imports beside it."""
    sys.path.insert(0, str(folder))
    config = types.ModuleType("bfcl_eval.constants.model_config")
    config.MODEL_CONFIG_MAPPING = {MODEL: types.SimpleNamespace(underscore_to_dot=True)}
    sys.modules[config.__name__] = config
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    language = importlib.import_module("bfcl_eval.constants.enums").Language
    return lambda functions, calls, truth, category: checker.ast_checker(
        functions, calls, truth, language.PYTHON, category, MODEL
    )["valid"]


def to_schema(schema):
    """JSON Schema of the leaderboard's dialect."""
    if not isinstance(schema, dict):
        return schema
    out = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            out[key] = TYPES.get(value, value)
        elif key == "properties":
            out[key] = {name: to_schema(part) for name, part in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = to_schema(value)
        elif key in ("description", "enum", "required", "minimum", "maximum"):
            out[key] = value
    return out


def to_tool(function):
    # OpenAI's names have no dots.
    name = function["name"].replace(".", "_")
    parameters = to_schema(function["parameters"])
    return {
        "type": "function",
        "function": {"name": name, "description": function["description"], "parameters": parameters},
    }


def load_cases(folder, kind, count):
    data = folder / "bfcl_eval" / "data"
    file = f"BFCL_v4_{CATEGORIES[kind]}.json"
    read = lambda path: [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    truths = {truth["id"]: truth["ground_truth"] for truth in read(data / "possible_answer" / file)}
    return [(case, truths[case["id"]]) for case in read(data / file)[:count]]


def ask(url, key, model, case):
    body = {
        "model": model,
        "messages": case["question"][0],
        "tools": [to_tool(function) for function in case["function"]],
        "tool_choice": "auto",
        "temperature": 0,
        "max_tokens": 400,
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=900) as response:
        return json.load(response)["choices"][0]["message"]


def calls_of(message):
    calls = []
    for call in message.get("tool_calls") or []:
        arguments = json.loads(call["function"]["arguments"] or "{}")
        calls.append({call["function"]["name"]: arguments})
    return calls


def is_right(check, case, truth, message, category):
    try:
        return bool(check(case["function"], calls_of(message), truth, category))
    except Exception:  # Arguments that are no JSON, or no object.
        return False


def wilson(right, total, z=1.96):
    share = right / total
    middle = share + z * z / (2 * total)
    width = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [(middle - width) / (1 + z * z / total), (middle + width) / (1 + z * z / total)]


def measure(args, check, kind, name, url):
    cases = load_cases(args.data, kind, args.each)
    with ThreadPoolExecutor(args.concurrency) as pool:
        messages = list(pool.map(lambda case: ask(url, args.key, args.model, case[0]), cases))
    found = [
        {"id": case["id"], "right": is_right(check, case, truth, message, CATEGORIES[kind]), "message": message}
        for (case, truth), message in zip(cases, messages)
    ]
    print(f"{name}, {kind}: {sum(it['right'] for it in found)} of {len(found)}", file=sys.stderr, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the unpacked wheel of bfcl-eval")
    parser.add_argument("--server", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--key", default="none")
    parser.add_argument("--each", type=int, default=100, help="cases of each kind")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    check = load_checker(args.data)
    servers = dict(server.split("=", 1) for server in args.server)
    results = {}
    for kind in CATEGORIES:
        for name, url in servers.items():
            results[f"{name}/{kind}"] = measure(args, check, kind, name, url)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))
    print("| kind | " + " | ".join(servers) + " |\n|---" + "|---" * len(servers) + "|")
    for kind in CATEGORIES:
        row = []
        for name in servers:
            found = results[f"{name}/{kind}"]
            right = sum(it["right"] for it in found)
            low, high = wilson(right, len(found))
            row.append(f"{right} of {len(found)} ({low:.2f} to {high:.2f})")
        print(f"| {kind} | " + " | ".join(row) + " |")
    names = list(servers)
    if len(names) == 2:
        pairs = [
            (a["right"], b["right"])
            for kind in CATEGORIES
            for a, b in zip(results[f"{names[0]}/{kind}"], results[f"{names[1]}/{kind}"])
        ]
        print(f"\nOnly {names[0]} right: {pairs.count((True, False))}; only {names[1]}: {pairs.count((False, True))}.")


if __name__ == "__main__":
    main()
