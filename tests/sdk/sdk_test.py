"""The official Python SDK against a running server: sdk_test.py BASE_URL KEY MODEL."""

import asyncio
import sys

import openai

base_url, key, model = sys.argv[1:4]
client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
messages = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
passed = 0


def check(name, condition, detail=""):
    global passed
    if not condition:
        sys.exit(f"FAILED {name}: {detail}")
    passed += 1


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    return None


def chat(**options):
    return client.chat.completions.create(**{"model": model, "messages": messages, "temperature": 0, "max_tokens": 24, **options})


def refuses(capability, call):
    """Whether the server says that its backend lacks the capability."""
    error = raises(openai.BadRequestError, call)
    return error is not None and error.code == "unsupported_capability" and capability in error.message


check("models", model in [entry.id for entry in client.models.list()])
served = client.models.retrieve(model)
check("model", served.id == model)
can = served.capabilities
whole = chat()
answer = whole.choices[0].message.content
check("chat", "Paris" in answer, answer)
check("finish", whole.choices[0].finish_reason == "stop")
check("usage", whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens)
chunks = list(chat(stream=True, stream_options={"include_usage": True}))
check("stream", "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer)
check("stream usage", chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices)
check("cached tokens", (chat().usage.prompt_tokens_details.cached_tokens > 0) == ("prefix_sharing" in can))
prediction = {"type": "content", "content": answer}
check("prediction", chat(prediction=prediction).choices[0].message.content == answer)
lookup = {"prediction": prediction, "extra_body": {"speculative": "prompt-lookup"}}
if "speculation" in can:
    check("prompt lookup", chat(**lookup).choices[0].message.content == answer)
else:
    check("no speculation", refuses("speculation", lambda: chat(**lookup)))
if "adaptation" not in can:
    check("no adaptation", refuses("adaptation", lambda: chat(extra_body={"adaptation": "slot"})))
    check("no router adaptation", refuses("adaptation", lambda: chat(extra_body={"router_adaptation": True})))
if "hidden_states" not in can:
    head = {"search": {"strategy": "best_of_n", "reward": {"kind": "value_head"}}}
    check("no value head", refuses("hidden_states", lambda: chat(temperature=0.7, extra_body=head)))
if "prefix_sharing" not in can:
    session = {"model": model, "messages": messages}
    check("no branches", refuses("prefix_sharing", lambda: client.post("/branches", body=session, cast_to=object)))
if "vision" not in can:
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    check("no vision", refuses("vision", lambda: chat(messages=[{"role": "user", "content": [shown]}])))
plain = chat(extra_body={"speculative": "off"})
check("speculative off", plain.choices[0].message.content == answer)
check("no drafts", plain.usage.completion_tokens_details.accepted_prediction_tokens == 0)
several = chat(n=3, temperature=1.0, seed=11)
check("n", [choice.index for choice in several.choices] == [0, 1, 2])
# Without it the sums of sequences that run together depend on when each of them started.
is_invariant = "batch_invariance" in can
sampled = lambda: [c.message.content for c in chat(n=3 if is_invariant else 1, temperature=1.0, seed=11).choices]
check("seed", sampled() == sampled())
logprobs = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
check("logprobs", len(logprobs[0].top_logprobs) == 3 and logprobs[0].logprob <= 0)
check("stop", chat(stop=["Paris"]).choices[0].message.content == answer[: answer.index("Paris")])
check("length", chat(max_tokens=2).choices[0].finish_reason == "length")
complete = lambda **options: client.completions.create(model=model, prompt="The capital of France is", max_tokens=4, temperature=0, **options)
check("completions", complete(echo=True).choices[0].text.startswith("The capital of France is"))
check("completions logprobs", len(complete(logprobs=1).choices[0].logprobs.tokens) == 4)
if "prompt_logits" in can:
    check("echoed logprobs", len(complete(echo=True, logprobs=1).choices[0].logprobs.tokens) > 4)
else:
    check("no prompt logprobs", refuses("prompt_logits", lambda: complete(echo=True, logprobs=1)))
check("extra body", chat(extra_body={"search": {"strategy": "none"}, "min_p": 0.1}).choices[0].message.content == answer)

for strategy in ["self_consistency", "best_of_n", "beam", "dvts", "rebase", "particle_filtering",
                 "mcts", "vm_mcts"]:
    search = {"strategy": strategy, "n": 4, "branch": 2, "iterations": 3, "step": {"max_tokens": 8}, "budget": {"tokens": 160}}
    options = {"temperature": 0.7, "seed": 4, "extra_body": {"search": search}}
    found = chat(**options)
    check(strategy, found.choices[0].message.content and found.search["strategy"] == strategy, found)
    check(f"{strategy} budget", 0 < found.usage.completion_tokens <= 160, found.usage)
    parts = list(chat(**options, stream=True))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    check(f"{strategy} stream", text == found.choices[0].message.content if is_invariant else text, text)
check("model preset", chat(model=f"{model}:best_of_n", temperature=0.7).search["strategy"] == "best_of_n")
check("effort", chat(reasoning_effort="medium", temperature=0.7).search["strategy"] == "self_consistency")
stored = chat(store=True, metadata={"run": "sdk"})
trace = client.get(f"/traces/{stored.trace_id}", cast_to=object)
check("trace", trace["nodes"][1]["text"] == stored.choices[0].message.content and trace["tags"] == ["run:sdk"], trace)
searched = chat(temperature=0.7, extra_body={"search": {"strategy": "best_of_n", "n": 2}})
outcome = client.post(f"/traces/{searched.search['trace_id']}/outcome", body={"outcome": 1}, cast_to=object)
check("outcome", outcome["outcome"] == 1 and outcome["revision"] == 2, outcome)
bad_search = raises(openai.BadRequestError, lambda: chat(temperature=0.7, extra_body={"search": {"strategy": "guess"}}))
check("bad search", bad_search is not None and bad_search.param == "search.strategy", bad_search)
error = raises(openai.BadRequestError, lambda: chat(temperature=7))
check("bad request", error is not None and error.param == "temperature", error)
check("bad model", raises(openai.NotFoundError, lambda: chat(model="nope")) is not None)
check("bad n", raises(openai.BadRequestError, lambda: chat(n=100000)) is not None)
stranger = openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0)
check("auth", raises(openai.AuthenticationError, lambda: stranger.models.list()) is not None)
hasty = client.with_options(timeout=0.02)
slow = {"model": model, "messages": messages, "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
check("timeout", raises(openai.APITimeoutError, lambda: hasty.chat.completions.create(**slow)) is not None)


async def concurrent():
    asynchronous = openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0)
    calls = [asynchronous.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24) for _ in range(12)]
    answers = [result.choices[0].message.content for result in await asyncio.gather(*calls)]
    check("async", set(answers) == {answer}, set(answers))
    stream = await asynchronous.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    check("async stream", text == answer)


asyncio.run(concurrent())
print(f"python SDK {openai.__version__}: {passed} checks passed")
