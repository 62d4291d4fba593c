"""Step 2: streams traces as training rows into a file of JSON lines.

    python stream.py --tag self-training --tag iteration-1 --out rows-1.jsonl
    python stream.py --tag self-training --tag iteration-1 --format tree --out trees-1.ndjson

Each row has a cursor. An interrupted stream goes on behind the last row in the file; with --follow it waits for what
comes, over restarts of the server too.
"""

import argparse
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

TIMEOUT_S = 60
RECONNECT_S = 2


def mend(path):
    """Cuts off a last line that was not written to its end. Returns the number of rows and the last cursor."""
    if not path.exists():
        return 0, None
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    lines = whole.splitlines()
    return len(lines), json.loads(lines[-1])["cursor"] if lines else None


def rows(url, query):
    """The rows of one connection."""
    key = os.environ.get("PONDER_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    address = f"{url.rstrip('/')}/traces/stream?{urllib.parse.urlencode(query, doseq=True)}"
    # The server sends an empty line every 15 s: a longer silence is a lost connection.
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT_S) as response:
        for line in response:
            if not line.strip():
                continue
            row = json.loads(line)
            if "error" in row:
                raise OSError(row["error"]["message"])
            yield row


def append(path, url, query, limit):
    """Writes what the server has behind the file's last row. Returns the number of rows in the file."""
    num, cursor = mend(path)
    if cursor:
        query = {**query, "after": cursor}
    if limit is not None:
        query = {**query, "limit": limit - num}
    if limit is not None and num >= limit:
        return num
    with open(path, "ab") as out:
        for row in rows(url, query):
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            # What is in the file has been read: the next connection starts behind it.
            out.flush()
            num += 1
    return num


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--format", default="sft", help="tree, sft, step_values, preferences, linearised or groups")
    parser.add_argument("--tag", action="append", default=[], help="all tags that are named must be there")
    parser.add_argument("--max-per-prompt", type=int, default=2, help="rows of one prompt; formats other than tree")
    parser.add_argument("--ungraded", action="store_true", help="also traces without outcomes: sft takes what was chosen")
    parser.add_argument("--limit", type=int, help="rows in the file at most")
    parser.add_argument("--follow", action="store_true", help="wait for new traces")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    query = {"format": args.format, "tag": args.tag}
    if args.format != "tree":
        query["max_per_prompt"] = args.max_per_prompt
    if not args.ungraded:
        query["has_outcome"] = "true"
    if args.follow:
        query["follow"] = "true"
    while True:
        try:
            num = append(args.out, args.url, query, args.limit)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{args.url}: {error.code} {error.read().decode(errors='replace')}") from None
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            if not args.follow:
                raise SystemExit(f"{args.url}: {error}; the same command goes on from here") from None
            print(f"{error}; connecting again", flush=True)
            time.sleep(RECONNECT_S)
            continue
        if not args.follow or num == args.limit:
            print(f"{num} rows in {args.out}")
            return
        time.sleep(RECONNECT_S)


if __name__ == "__main__":
    main()
