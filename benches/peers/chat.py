"""Sends a load of conversations (load.py) to a server over its chat route, as streams, and takes
the times of their tokens. Needs aiohttp."""

import asyncio
import json
import time

from load import Answer, conversations, summary
from peers import Failed, say
from servers import WITHOUT_DRAFTS, Server, llama_command, ponder_command

try:
    import aiohttp
except ModuleNotFoundError:
    # Only tables are made then.
    aiohttp = None


class Run:
    """One load on one server."""

    def __init__(self, args, url, model):
        self.args, self.url, self.model = args, f"{url}/v1/chat/completions", model
        self.places = asyncio.Semaphore(args.clients)
        self.answers = []
        self.started = 0.0
        self.last_token = 0.0

    def now(self):
        return time.perf_counter() - self.started

    async def talk(self, session, conversation):
        """A client: waits for its conversation to begin and for a place, then speaks its turns."""
        await asyncio.sleep(max(0.0, conversation.arrival - self.now()))
        async with self.places:
            messages = []
            for turn in conversation.turns:
                await asyncio.sleep(turn.think_seconds)
                if self.now() > self.args.seconds:
                    return
                messages.append({"role": "user", "content": turn.prompt})
                answer = Answer(error="unfinished")
                # It counts from here on, should it be cut off.
                self.answers.append(answer)
                said = await self.turn(session, messages, turn, answer)
                if answer.error is not None:
                    return
                messages.append({"role": "assistant", "content": said})

    async def turn(self, session, messages, turn, answer):
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": turn.answer_tokens,
            "ignore_eos": True,
            "temperature": 0.7,
            "seed": len(self.answers),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            return await self.read(session, body, answer)
        except (aiohttp.ClientError, ValueError, LookupError) as error:
            answer.error = type(error).__name__
            return ""

    async def read(self, session, body, answer):
        """The answer's text, with the times of its tokens in `answer`."""
        sent = last = time.perf_counter()
        parts = []
        async with session.post(self.url, json=body) as response:
            if response.status != 200:
                answer.error = f"HTTP {response.status}"
                return ""
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    answer.error = "error in the stream"
                    return ""
                usage = chunk.get("usage")
                if usage:
                    answer.num_tokens = usage["completion_tokens"]
                    answer.prompt_tokens = usage["prompt_tokens"]
                content = chunk["choices"] and chunk["choices"][0]["delta"].get("content")
                if not content:
                    continue
                parts.append(content)
                at = time.perf_counter()
                if answer.ttft is None:
                    answer.ttft = at - sent
                else:
                    answer.gaps.append(at - last)
                last = at
                self.last_token = at - self.started
        answer.error = None
        return "".join(parts)

    async def all(self, load):
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            self.started = time.perf_counter()
            tasks = [asyncio.create_task(self.talk(session, each)) for each in load]
            limit = self.args.seconds + self.args.drain
            _, pending = await asyncio.wait(tasks, timeout=limit)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            for task in tasks:
                if task not in pending and task.exception() is not None:
                    raise task.exception()
        # Tokens of answers that were cut off came too, one a gap.
        for answer in self.answers:
            if answer.error == "unfinished" and answer.ttft is not None:
                answer.num_tokens = 1 + len(answer.gaps)
        seconds = max(self.args.seconds, self.last_token)
        return summary(self.answers, seconds, self.args.ttft_bound, self.args.gap_bound)


def one_load(name, command, setup, args, load):
    with Server(name, command, args.timeout) as server:

        async def begin():
            return await Run(args, server.url, setup.model).all(load)

        result = asyncio.run(begin())
        return {**result, "memory": server.memory()}


def measure(args, llama_bin, setup, words, rate):
    """The same load on both servers, one after the other. `args` has clients, seconds, drain and
    the bounds."""
    if aiohttp is None:
        raise Failed("the measure chat needs aiohttp: pip install aiohttp")
    extra = [*WITHOUT_DRAFTS, "--max-num-queued-seqs", 4096]
    commands = {}
    if "Ponder" not in args.without:
        commands["Ponder"] = ponder_command(args.ponder, setup, extra)
    if llama_bin:
        commands["llama.cpp"] = llama_command(llama_bin, setup)
    load = conversations(args.seed, words, rate, args.seconds, setup.max_len, args.think)
    results = {}
    for name, command in commands.items():
        say(f"{setup.model}: {args.clients} clients, {rate} conversations a second: {name}")
        try:
            results[name] = one_load(name, command, setup, args, load)
        except (Failed, OSError) as failure:
            results[name] = {"failed": str(failure)}
            say(f"{name}: {failure}")
    return results


def milliseconds(figures):
    return " / ".join("-" if at is None else f"{at * 1e3:.0f}" for at in figures.values())


def table(loads):
    lines = [
        "| model, load | engine | TTFT p50 / p95 / p99, ms | between tokens, ms | tok/s "
        "| goodput, turns/s (share) | errors | RSS, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for load, engines in loads.items():
        for index, (name, of) in enumerate(engines.items()):
            first = load if index == 0 else ""
            if "failed" in of:
                lines.append(f"| {first} | {name} | failed: {of['failed']} | | | | | |")
                continue
            share = "-" if of["good_share"] is None else f"{of['good_share'] * 100:.0f} %"
            errors = ", ".join(f"{count} {error}" for error, count in of["errors"].items())
            lines.append(
                f"| {first} | {name} | {milliseconds(of['ttft'])} | {milliseconds(of['gap'])} "
                f"| {of['tokens_per_second']:.0f} | {of['goodput']:.2f} ({share}) "
                f"| {errors or '0'} of {of['requests']} | {of['memory']['rss'] / 2**20:.0f} |"
            )
    return "\n".join(lines)
