"""Beam search of your own over the branch API: python beam_search.py "QUESTION" (needs only Python)."""

import json
import sys
import urllib.request

URL = "http://127.0.0.1:8000/v1/branches"


def call(path, body):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def beam_search(question, width=2, branch=4, depth=16, step={"delimiter": "\n", "max_tokens": 48}):
    messages = [{"role": "user", "content": question}]
    session = "/" + call("", {"messages": messages, "temperature": 0.8, "max_tokens": 512, "seed": 0})["id"]
    beams, done = [0], []
    for _ in range(depth):
        children = call(session + "/generate", {"nodes": beams, "n": branch, "step": step})["data"]
        new = {child["node"]: child for child in children if child["is_new"]}
        if not new:
            break
        scores = call(session + "/score", {"nodes": list(new), "reward": {"kind": "likelihood"}})["data"]
        ranked = sorted(scores, key=lambda score: -score["score"])
        done += [score for score in ranked if new[score["node"]]["end"] == "stop"]
        beams = [score["node"] for score in ranked if not new[score["node"]]["end"]][:width]
        if not beams or len(done) >= width:
            break
    best = max(done or ranked, key=lambda score: score["score"])
    return call(session + "/commit", {"node": best["node"]})["choices"][0]["message"]["content"]


if __name__ == "__main__":
    print(beam_search(sys.argv[1]))
