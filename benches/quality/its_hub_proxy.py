"""Wall clock of the same searches in the engine and by the library its_hub in front of another server.

    pip install --no-deps its-hub==1.2.0 && pip install numpy typing-extensions aiohttp backoff certifi
    python its_hub_proxy.py --ponder http://127.0.0.1:8000/v1 --peer http://127.0.0.1:8080/v1 --problems humaneval.jsonl

Best of 8 chooses by the problem's public tests: in Ponder the verifier, of which a full score stops the other samples
(`--best-reward likelihood` lets all of them end), for its_hub an outcome reward that runs them with grade.py. Beam search keeps
4 of 8 beams a line; Ponder ranks them by likelihood, its_hub by a hash of the text, which costs nothing (`--beam-reward
likelihood` asks the server for log-probabilities and ranks as Ponder does). its_hub begins with 2 beams, Ponder with 8, and
they end by their own rules, so compare seconds a token in that case. The peer for Ponder's sampling, with its_hub's only way to
see the end of an answer (--special) and a count of the prompt tokens that were computed (--metrics), is

    llama-server -m qwen2.5-coder-0.5b.gguf -t 2 -np 8 -c 16384 --port 8080 --top-k 0 --top-p 1 --min-p 0 --special --metrics

Only one of the two servers computes at a time; problems alternate between them. Tokens are counted by each server.
"""

import argparse
import asyncio
import hashlib
import json
import math
import re
import statistics
import time
import urllib.error
import urllib.request

import grade
from its_hub.api import AbstractOutcomeRewardModel, AbstractProcessRewardModel, GenerationUsage
from its_hub.core.algorithms.beam_search import BeamSearch
from its_hub.core.algorithms.bon import BestOfN
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
from its_hub.core.lms.step_generation import StepGeneration

N, KEPT, STEPS = 8, 4, 24
MAX_TOKENS, STEP_TOKENS, TEMPERATURE = 512, 48, 0.7
END = "<|im_end|>"
COLUMNS = ("seconds", "tokens", "requests", "sent", "computed", "scoring")


def fetch(url, body=None):
    """The text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=900) as response:
        return response.read().decode()


def computed_prompt(peer):
    """Prompt tokens that llama-server has computed so far, without those found in its cache; None without --metrics."""
    try:
        found = re.search(r"^llamacpp:prompt_tokens_total (\S+)", fetch(peer.removesuffix("/v1") + "/metrics"), re.MULTILINE)
    except urllib.error.URLError:
        return None
    return float(found[1]) if found else None


def ponder(url, search, problem):
    """What a search in the engine took."""
    body = {"messages": problem["messages"], "seed": 0, "temperature": TEMPERATURE, "max_tokens": MAX_TOKENS, "search": search}
    start = time.perf_counter()
    answer = json.loads(fetch(url + "/chat/completions", body))
    row = {"seconds": time.perf_counter() - start, "tokens": answer["usage"]["completion_tokens"], "requests": 1}
    return row | {"sent": answer["usage"]["prompt_tokens"], "scoring": answer["search"].get("scorer_ms", 0) / 1000}


class Peer(OpenAICompatibleLanguageModel):
    """its_hub's client for llama-server; counts tokens where the algorithm doesn't, and keeps log-probabilities if told to."""

    def __init__(self, url, max_tokens, with_logprobs):
        options = {"temperature": TEMPERATURE, "max_completion_tokens": max_tokens, "include_raw_choices": with_logprobs}
        super().__init__(url, "none", "default", **options)
        self.usage, self.with_logprobs, self.logprobs = GenerationUsage(), with_logprobs, {}

    def _prepare_request_data(self, *args, **kwargs):
        data = super()._prepare_request_data(*args, **kwargs)
        return data | ({"logprobs": True, "top_logprobs": 1} if self.with_logprobs else {})

    async def _agenerate(self, messages_lst, *args):
        answers = await super()._agenerate(messages_lst, *args[:-1], self.usage)
        for messages, answer in zip(messages_lst, answers):
            prefix = messages[-1].content if messages[-1].role == "assistant" else ""
            # llama-server answers with the text that it was to continue; its_hub would append all of it as the next step.
            answer["content"] = answer["content"].removeprefix(prefix)
            if self.with_logprobs:
                content = (answer["_raw_choice"].get("logprobs") or {}).get("content") or []
                before = self.logprobs.get(prefix.removesuffix("\n"), [])
                self.logprobs[prefix + answer["content"]] = before + [token["logprob"] for token in content]
        return answers


class PublicTests(AbstractOutcomeRewardModel):
    """1 for an answer that passes the public tests, else 0."""

    def __init__(self, problem):
        self.problem, self.seconds = problem, 0.0

    def score(self, messages, **kwargs):
        problem = self.problem
        code = grade.answer_code(problem, messages[-1].content.removesuffix(END))
        parts = [grade.preamble(problem), code, *problem["public_tests"]]
        return float(grade.passes("\n".join(parts)))

    async def ascore(self, messages, orchestrator=None, **kwargs):
        start = time.perf_counter()
        scores = await asyncio.gather(*(asyncio.to_thread(self.score, conversation) for conversation in messages))
        self.seconds += time.perf_counter() - start
        return scores


class Steps(AbstractProcessRewardModel):
    """A pseudo-random score, or the likelihood where the client keeps log-probabilities."""

    def __init__(self, peer):
        self.peer = peer

    def score(self, prompt_or_messages, steps):
        if self.peer.with_logprobs:
            values = [self.peer.logprobs[text] for text in steps]
            return [math.exp(sum(row) / max(len(row), 1)) for row in values]
        return [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 for text in steps]

    async def ascore(self, prompt_or_messages, steps):
        return self.score(prompt_or_messages, steps)


async def run_its_hub(url, algorithm, peer, problem):
    """The usage of one search."""
    # As a text: beam search would put "user: " before the content of a message.
    [message] = problem["messages"]
    async with peer:
        result = await algorithm.ainfer(peer, message["content"], N, return_response_only=False)
    return getattr(result, "usage", None) or peer.usage


def its_hub(url, kind, with_logprobs, problem):
    """What a search by its_hub took."""
    is_beam = kind == "beam"
    peer = Peer(url, STEP_TOKENS if is_beam else MAX_TOKENS, is_beam and with_logprobs)
    reward = Steps(peer) if is_beam else PublicTests(problem)
    # The step that finds max_steps before it is the last one.
    steps = StepGeneration(STEPS - 1, "\n", END, TEMPERATURE)
    algorithm = BeamSearch(steps, reward, KEPT) if is_beam else BestOfN(reward)
    computed, start = computed_prompt(url), time.perf_counter()
    usage = asyncio.run(run_its_hub(url, algorithm, peer, problem))
    row = {"seconds": time.perf_counter() - start, "tokens": usage.completion_tokens, "requests": usage.num_calls}
    computed = computed if computed is None else computed_prompt(url) - computed
    return row | {"sent": usage.prompt_tokens, "computed": computed, "scoring": getattr(reward, "seconds", 0.0)}


def report(rows):
    """The table; the ratio is its_hub to Ponder."""
    print("| | s/problem | tokens | tok/s | requests | prompt tokens sent | computed | scoring, s | s, ratio | s/token, ratio |")
    print("|---" * 10 + "|")
    for kind in dict.fromkeys(kind for kind, _ in rows):
        of_ponder = None
        for system in ("Ponder", "its_hub"):
            row = {name: statistics.mean(row.get(name) or 0 for row in rows[kind, system]) for name in COLUMNS}
            of_ponder, pace = of_ponder or row, row["seconds"] / row["tokens"]
            computed = f"{row['computed']:.0f}" if row["computed"] else "-"
            cells = [f"{row['seconds']:.2f}", f"{row['tokens']:.0f}", f"{1 / pace:.1f}", f"{row['requests']:.0f}"]
            cells += [f"{row['sent']:.0f}", computed, f"{row['scoring']:.2f}"]
            cells += [f"{row['seconds'] / of_ponder['seconds']:.2f}"]
            cells.append(f"{pace * of_ponder['tokens'] / of_ponder['seconds']:.2f}")
            print(f"| {kind}, {system} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ponder", required=True, metavar="URL", help="with /v1")
    parser.add_argument("--peer", required=True, metavar="URL", help="llama-server, with /v1")
    parser.add_argument("--problems", required=True, metavar="FILE", help="from problems.py; only those with public tests")
    parser.add_argument("--limit", type=int, default=10, metavar="N")
    parser.add_argument("--kinds", nargs="+", choices=["best_of_8", "beam"], default=["best_of_8", "beam"])
    parser.add_argument("--best-reward", choices=["verifier", "likelihood"], default="verifier", help="of Ponder")
    parser.add_argument("--beam-reward", choices=["hash", "likelihood"], default="hash", help="of its_hub")
    args = parser.parse_args()
    with open(args.problems, encoding="utf-8") as file:
        problems = [problem for problem in map(json.loads, file) if problem.get("public_tests")][: args.limit]
    beam = {"strategy": "beam", "n": N, "branch": N // KEPT, "max_depth": STEPS, "reward": {"kind": "likelihood"}}
    beam["step"] = {"delimiter": "\n", "max_tokens": STEP_TOKENS}
    rows = {(kind, system): [] for kind in args.kinds for system in ("Ponder", "its_hub")}
    for problem in problems:
        reward = {"kind": args.best_reward}
        if args.best_reward == "verifier":
            reward |= {"type": "python", "prefix": grade.preamble(problem), "tests": problem["public_tests"]}
        searches = {"best_of_8": {"strategy": "best_of_n", "n": N, "reward": reward}, "beam": beam}
        for kind in args.kinds:
            rows[kind, "Ponder"].append(ponder(args.ponder, searches[kind], problem))
            rows[kind, "its_hub"].append(its_hub(args.peer, kind, args.beam_reward == "likelihood", problem))
            for system in ("Ponder", "its_hub"):
                print(json.dumps({"id": problem["id"], "kind": kind, "system": system, **rows[kind, system][-1]}), flush=True)
    report(rows)


if __name__ == "__main__":
    main()
