"""OpenAI's Responses API by the official Python SDK: responses_test.py BASE_URL KEY MODEL."""

import json
import sys
import time

import openai
import pydantic
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent

base_url, key, model = sys.argv[1:4]
client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
question = "What is the capital of France? Answer in one sentence."
any_event = pydantic.TypeAdapter(ResponseStreamEvent)
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


def create(**options):
    return client.responses.create(**{"model": model, "input": question, "temperature": 0, "max_output_tokens": 24, **options})


def raw(**options):
    body = {"model": model, "input": question, "temperature": 0, "max_output_tokens": 24, **options}
    return client.post("/responses", body=body, cast_to=object)


served = client.models.retrieve(model)
can = served.capabilities

# The SDK takes nearly everything; its models, asked to validate, do not.
told = raw(metadata={"run": "sdk"}, include=["message.output_text.logprobs"], top_logprobs=2)
parsed = Response.model_validate(told)
check("model", parsed.status == "completed" and parsed.metadata == {"run": "sdk"}, told)
check("logprobs", len(parsed.output[0].content[0].logprobs[0].top_logprobs) == 2)
whole = create()
answer = whole.output_text
check("text", "Paris" in answer, answer)
usage = whole.usage
check("usage", usage.total_tokens == usage.input_tokens + usage.output_tokens)
chat = client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24)
check("chat's answer", chat.choices[0].message.content == answer)
check("length", create(max_output_tokens=2).incomplete_details.reason == "max_output_tokens")

counted = client.responses.input_tokens.count(model=model, input=question)
check("input tokens", counted.input_tokens == usage.input_tokens, counted)

events = list(create(stream=True))
for event in events:
    any_event.validate_python(event.to_dict())
check("numbers", [event.sequence_number for event in events] == list(range(len(events))))
text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
check("stream", text == answer, text)
check("last", events[-1].type == "response.completed" and events[-1].response.output_text == answer)
with client.responses.stream(model=model, input=question, temperature=0, max_output_tokens=24) as stream:
    kinds = [event.type for event in stream]
    check("helper", stream.get_final_response().output_text == answer)
check("helper's events", kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds)

retrieved = client.responses.retrieve(whole.id)
check("retrieve", retrieved.output_text == answer and retrieved.usage == whole.usage)
items = client.responses.input_items.list(whole.id)
ResponseItemList.model_validate(items.to_dict())
check("input items", items.data[0].content[0].text == question, items)
follow = create(input="And of Italy? Answer in one sentence.", previous_response_id=whole.id)
check("previous response", follow.usage.input_tokens > whole.usage.input_tokens)
explicit = create(
    input=[
        {"role": "user", "content": question},
        *[item.to_dict() for item in whole.output],
        {"role": "user", "content": "And of Italy? Answer in one sentence."},
    ]
)
check("same conversation", explicit.output_text == follow.output_text, (explicit.output_text, follow.output_text))
pages = list(client.responses.input_items.list(explicit.id, limit=1, order="asc"))
check("pages", len(pages) == 3, pages)
check("delete", client.responses.delete(whole.id) is None)
check("deleted", raises(openai.NotFoundError, lambda: client.responses.retrieve(whole.id)) is not None)
lost = raises(openai.BadRequestError, lambda: create(previous_response_id=whole.id))
check("lost conversation", lost is not None and lost.code == "previous_response_not_found", lost)
check("not stored", raises(openai.NotFoundError, lambda: client.responses.retrieve(create(store=False).id)) is not None)


def settled(response):
    until = time.monotonic() + 60
    while response.status in ("queued", "in_progress") and time.monotonic() < until:
        time.sleep(0.05)
        response = client.responses.retrieve(response.id)
    return response


queued = create(background=True)
check("queued", queued.status in ("queued", "in_progress"), queued)
check("background", settled(queued).output_text == answer)
with create(background=True, stream=True) as stream:
    first = next(iter(stream))
resumed = list(client.responses.retrieve(first.response.id, stream=True, starting_after=first.sequence_number))
text = "".join(event.delta for event in resumed if event.type == "response.output_text.delta")
check("resumed stream", text == answer and resumed[0].sequence_number == 1, text)
slow = create(background=True, max_output_tokens=1500, extra_body={"ignore_eos": True})
ended = client.responses.cancel(slow.id)
check("cancel", ended.status == "cancelled" and client.responses.cancel(slow.id).status == "cancelled", ended.status)

instructed = create(instructions="You are a pirate.")
check("instructions", instructed.instructions == "You are a pirate." and instructed.usage.input_tokens != usage.input_tokens)
if "prefix_sharing" in can:
    search = {"strategy": "best_of_n", "n": 2, "reward": {"kind": "likelihood"}}
    found = create(temperature=0.7, extra_body={"search": search})
    check("search", found.search["strategy"] == "best_of_n" and found.output_text, found)
for name, options in {
    "temperature": {"temperature": 7},
    "tools[0].type": {"tools": [{"type": "web_search"}]},
    "input[0].content[0].image_url": {
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"}]}]
    },
}.items():
    if "vision" in can and "image" in name:
        continue
    error = raises(openai.BadRequestError, lambda: create(**options))
    check(f"bad {name}", error is not None and error.param == name, error)
check("bad model", raises(openai.NotFoundError, lambda: create(model="nope")) is not None)


class Weather(pydantic.BaseModel):
    city: str
    is_warm: bool


weather_tool = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
if "constraints" in can:
    shaped = client.responses.parse(
        model=model, input="Oslo is cold today. As JSON.", text_format=Weather, temperature=0, max_output_tokens=64
    )
    check("parse", isinstance(shaped.output_parsed, Weather), shaped)
    loose = create(input="A city of Norway as JSON.", text={"format": {"type": "json_object"}}, max_output_tokens=64)
    check("json object", loose.status == "incomplete" or isinstance(json.loads(loose.output_text), dict), loose.output_text)
asked = {"tools": [weather_tool], "tool_choice": "required", "max_output_tokens": 64, "input": "How is the weather in Oslo?"}
# Some models have no form for calls, and say so.
unreadable = raises(openai.BadRequestError, lambda: create(**asked))
if unreadable is not None:
    check("no calls", unreadable.param in ("tools", "tool_choice") or unreadable.code == "unsupported_capability", unreadable)
else:
    called = create(**asked)
    Response.model_validate(called.to_dict())
    call = next(item for item in called.output if item.type == "function_call")
    check("call", call.name == "get_weather" and "city" in json.loads(call.arguments), called)
    streamed = list(create(**asked, stream=True))
    first = next(event.item_id for event in streamed if event.type == "response.function_call_arguments.delta")
    pieces = "".join(event.delta for event in streamed if event.type == "response.function_call_arguments.delta" and event.item_id == first)
    check("streamed call", pieces == call.arguments, pieces)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": '{"celsius": -3}'}
    told = create(input=[output], tools=[weather_tool], tool_choice="none", previous_response_id=called.id)
    check("function output", told.output_text, told)
    history = [{"role": "user", "content": asked["input"]}, *[item.to_dict() for item in called.output], output]
    same = create(input=history, tools=[weather_tool], tool_choice="none")
    check("function history", same.output_text == told.output_text, (same.output_text, told.output_text))
print(f"Responses by the Python SDK {openai.__version__}: {passed} checks passed")
