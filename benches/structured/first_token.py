"""Time to the first token of a constrained request beside a plain one, with a cold and a warm grammar.

    python benches/structured/first_token.py --url http://127.0.0.1:8000/v1 --model qwen2.5-coder-0.5b

Requests take turns: plain, with a schema that the server has not seen, with the same schema again. Prints medians.
"""

import argparse
import json
import statistics
import time
import urllib.request


def schema(index):
    """A schema of some forty keywords; each index is another one."""
    item = {
        "type": "object",
        "properties": {
            "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            "quantity": {"type": "integer", "minimum": 1, "maximum": 100 + index},
            "tags": {"type": "array", "items": {"enum": ["new", "sale", f"tag{index}"]}, "maxItems": 4},
        },
        "required": ["sku", "quantity"],
        "additionalProperties": False,
    }
    properties = {
        f"id{index}": {"type": "string", "format": "uuid"},
        "created": {"type": "string", "format": "date-time"},
        "status": {"enum": ["open", "paid", "shipped"]},
        "items": {"type": "array", "items": item, "minItems": 1, "maxItems": 3},
        "note": {"anyOf": [{"type": "string", "maxLength": 80}, {"type": "null"}]},
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def first_token(args, response_format):
    body = {
        "model": args.model,
        "messages": [{"role": "user", "content": "An order of two items, as JSON."}],
        "max_tokens": 2,
        "temperature": 0,
        "stream": True,
        **({"response_format": response_format} if response_format else {}),
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {args.key}"}
    request = urllib.request.Request(f"{args.url}/chat/completions", json.dumps(body).encode(), headers)
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as response:
        for line in response:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                elapsed = time.perf_counter() - started
                response.read()
                return elapsed * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    times = {"plain": [], "cold grammar": [], "warm grammar": []}
    first_token(args, None)
    for index in range(args.rounds):
        seen = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema(int(time.time()) + index)}}
        for name, asked in [("plain", None), ("cold grammar", seen), ("warm grammar", seen)]:
            times[name].append(first_token(args, asked))
    print("| request | first token, ms (median) | 90 % |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.1f} | {sorted(values)[int(len(values) * 0.9)]:.1f} |")


if __name__ == "__main__":
    main()
