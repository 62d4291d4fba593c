"""Schemas end to end: every finished answer of a running server must validate.

    ponder serve qwen2.5-coder-0.5b &
    pip install jsonschema-rs
    python benches/structured/schemas.py --url http://127.0.0.1:8000/v1 --model qwen2.5-coder-0.5b

Each schema of tests/schemas is asked for with n 4 at temperature 1 and a seed, once with speculation off and once with it
on. An answer that ends with "stop" must be accepted by the independent validator, and both runs must be equal, token for
token. An answer that is cut by --max-tokens is counted apart. Prints counts, and each failure.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema_rs

ROOT = Path(__file__).resolve().parents[2]


def load(folder):
    """Every schema with its name: a file holds a list of them, or of {name, schema}."""
    found = []
    for path in sorted(folder.glob("*.json")):
        entries = json.loads(path.read_text())
        for index, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            schema = entry["schema"] if isinstance(entry, dict) and "schema" in entry else entry
            found.append((f"{path.stem}/{index}", schema))
    return found


def ask(args, schema, speculative):
    body = {
        "model": args.model,
        "messages": [{"role": "user", "content": "Write an example as JSON.\n" + json.dumps(schema)[:2000]}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
        "n": args.n,
        "temperature": 1,
        "seed": 7,
        "max_tokens": args.max_tokens,
        "speculative": speculative,
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {args.key}"}
    request = urllib.request.Request(f"{args.url}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=900) as response:
            answer = json.load(response)
            drafts = answer["usage"]["completion_tokens_details"]
            choices = [(c["message"]["content"], c["finish_reason"]) for c in answer["choices"]]
            return choices, answer["usage"]["completion_tokens"], drafts["accepted_prediction_tokens"]
    except urllib.error.HTTPError as error:
        return json.loads(error.read())["error"]["message"], 0, 0


def check(args, name, schema):
    plain, num_tokens, _ = ask(args, schema, "off")
    drafted, _, num_accepted = ask(args, schema, "auto")
    if isinstance(plain, str):
        return {"name": name, "refused": plain}
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    failures, valid, cut = [], 0, 0
    for content, reason in plain:
        if reason != "stop":
            cut += 1
            continue
        try:
            validator.validate(json.loads(content))
            valid += 1
        except Exception as error:
            failures.append(f"{content[:200]!r}: {str(error)[:200]}")
    return {
        "name": name, "valid": valid, "cut": cut, "failures": failures, "equal": plain == drafted,
        "tokens": num_tokens, "accepted": num_accepted,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--schemas", type=Path, default=ROOT / "tests" / "schemas")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    schemas = load(args.schemas)[: args.limit]
    started = time.time()
    with ThreadPoolExecutor(args.concurrency) as pool:
        results = []
        for result in pool.map(lambda it: check(args, *it), schemas):
            results.append(result)
            if sys.stderr.isatty():
                print(f"\r{len(results)} of {len(schemas)}", end="", file=sys.stderr, flush=True)
    answered = [result for result in results if "refused" not in result]
    for result in results:
        if "refused" in result:
            print(f"refused {result['name']}: {result['refused']}")
        for failure in result.get("failures", []):
            print(f"INVALID {result['name']}: {failure}")
        if not result.get("equal", True):
            print(f"DIFFERS {result['name']}")
    total = lambda key: sum(result[key] for result in answered)
    print(
        f"{len(schemas)} schemas, {len(answered)} accepted; answers: {total('valid')} valid, "
        f"{sum(len(it['failures']) for it in answered)} invalid, {total('cut')} cut at {args.max_tokens} tokens; "
        f"equal with speculation: {total('equal')} of {len(answered)}; "
        f"{total('accepted')} draft tokens accepted of {total('tokens')} tokens; {time.time() - started:.0f} s"
    )
    sys.exit(any(it["failures"] or not it["equal"] for it in answered))


if __name__ == "__main__":
    main()
