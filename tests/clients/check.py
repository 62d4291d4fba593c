"""Frameworks written for OpenAI, unchanged, against a running server.

    python -m venv clients && clients/bin/pip install -r tests/clients/requirements.txt
    clients/bin/python tests/clients/check.py http://127.0.0.1:8000/v1 KEY qwen2.5-coder-0.5b [NAME ...]

Each function below is one client. A check looks at what the client makes of the answer (types, calls, streams), not at how
clever the model is. Prints a line a client and fails if one of them does.
"""

import asyncio
import json
import os
import sys
import traceback
from importlib.metadata import version
from typing import Literal

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")

from pydantic import BaseModel

URL, KEY, MODEL, *ONLY = sys.argv[1:]
QUESTION = "The weather in Oslo: 7 degrees Celsius and rain. Report it."
CLIENTS = {}


class Weather(BaseModel):
    city: str
    celsius: int
    sky: Literal["sun", "rain", "snow"]


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def client(package):
    """Registers a check under the name of its package."""
    return lambda check: CLIENTS.setdefault(check.__name__, (package, check))


def weather(city: str) -> str:
    """The weather of a city."""
    return f"It rains in {city} at 7 degrees."


def openai_client():
    import openai

    return openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)


@client("openai")
def openai_chat():
    ask = openai_client().chat.completions
    messages = [{"role": "user", "content": QUESTION}]
    parsed = ask.parse(model=MODEL, messages=messages, response_format=Weather, temperature=0).choices[0].message.parsed
    assert isinstance(parsed, Weather), parsed
    with ask.stream(model=MODEL, messages=messages, response_format=Weather, temperature=0) as stream:
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert streamed == parsed, (streamed, parsed)
    asked = dict(model=MODEL, messages=[{"role": "user", "content": "The weather in Oslo?"}], tools=[TOOL], temperature=0)
    called = ask.create(**asked, tool_choice="required").choices[0]
    call = called.message.tool_calls[0]
    assert called.finish_reason == "tool_calls" and call.function.name == "get_weather", called
    assert set(json.loads(call.function.arguments)) == {"city"}, call
    parts = list(ask.create(**asked, tool_choice="required", stream=True))
    calls = [c for part in parts if part.choices for c in part.choices[0].delta.tool_calls or []]
    text = "".join(c.function.arguments or "" for c in calls if c.index == 0)
    assert text == call.function.arguments and sum(bool(c.id) for c in calls if c.index == 0) == 1, calls
    history = [*asked["messages"], called.message.model_dump(exclude_none=True)]
    history += [{"role": "tool", "tool_call_id": c.id, "content": weather("Oslo")} for c in called.message.tool_calls]
    assert ask.create(**{**asked, "messages": history}, tool_choice="none").choices[0].message.content


@client("openai")
def openai_responses():
    responses = openai_client().responses
    made = responses.create(model=MODEL, input="Say hello.", max_output_tokens=20, temperature=0)
    assert made.output_text and made.status in ("completed", "incomplete"), made
    with responses.stream(model=MODEL, input="Say hello.", max_output_tokens=20, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == made.output_text, text
    parsed = responses.parse(model=MODEL, input=QUESTION, text_format=Weather, temperature=0).output_parsed
    assert isinstance(parsed, Weather), parsed
    tool = {"type": "function", **TOOL["function"], "strict": True}
    called = responses.create(model=MODEL, input="The weather in Oslo?", tools=[tool], tool_choice="required", temperature=0)
    call = next(item for item in called.output if item.type == "function_call")
    assert call.name == "get_weather" and json.loads(call.arguments), called
    more = [{"type": "function_call_output", "call_id": call.call_id, "output": weather("Oslo")}]
    assert responses.create(model=MODEL, previous_response_id=called.id, input=more, tools=[tool], tool_choice="none").output_text


@client("openai")
def openai_embeddings():
    embeddings = openai_client().embeddings
    found = embeddings.create(model=MODEL, input=["a cat", "a kitten", "a motorway"])
    vectors = [entry.embedding for entry in found.data]
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert abs(dot(vectors[0], vectors[0]) - 1) < 1e-3, "normalised"
    plain = embeddings.create(model=MODEL, input="a cat", encoding_format="float").data[0].embedding
    assert dot(plain, vectors[0]) > 0.9999, "base64 and floats are the same"


@client("openai-agents")
def openai_agents():
    from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, ModelSettings
    import openai

    asynchronous = openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)
    seen = []

    @function_tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        seen.append(city)
        return weather(city)

    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        model = kind(model=MODEL, openai_client=asynchronous)
        settings = ModelSettings(temperature=0, tool_choice="required", max_tokens=100)
        agent = Agent(name="a", instructions="Use the tool.", model=model, tools=[get_weather],
                      tool_use_behavior="stop_on_first_tool", model_settings=settings)
        result = Runner.run_sync(agent, "The weather in Oslo?", max_turns=4)
        assert seen and result.final_output, (kind, seen, result)
        typed = Agent(name="b", model=model, output_type=Weather, model_settings=ModelSettings(temperature=0))
        assert isinstance(Runner.run_sync(typed, QUESTION).final_output, Weather), kind
        seen.clear()


@client("langchain-openai")
def langchain():
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    for responses in (False, True):
        chat = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, temperature=0, max_retries=0, use_responses_api=responses)
        for method in ("json_schema", "function_calling", "json_mode"):
            question = QUESTION + (" Answer as JSON with city, celsius and sky (rain)." if method == "json_mode" else "")
            schema = None if method == "json_mode" else Weather
            made = chat.with_structured_output(schema or {"title": "w", "type": "object"}, method=method).invoke(question)
            assert isinstance(made, Weather if schema else dict), (method, made)
        bound = chat.bind_tools([tool(weather)], tool_choice="any")
        call = bound.invoke("The weather in Oslo?").tool_calls[0]
        assert call["name"] == "weather" and "city" in call["args"], call
        chunks = list(chat.stream("Say hello."))
        assert "".join(str(chunk.text) for chunk in chunks), chunks
    vectors = OpenAIEmbeddings(model=MODEL, base_url=URL, api_key=KEY, check_embedding_ctx_length=False).embed_documents(["a", "b"])
    assert len(vectors) == 2 and len(vectors[0]) > 10


@client("llama-index-llms-openai-like")
def llama_index():
    from llama_index.core.tools import FunctionTool
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model=MODEL, api_base=URL, api_key=KEY, is_chat_model=True, is_function_calling_model=True,
        should_use_structured_outputs=True, temperature=0, max_tokens=100, context_window=8192,
    )
    assert llm.complete("Say hello.").text
    assert "".join(part.delta or "" for part in llm.stream_complete("Say hello."))
    made = llm.as_structured_llm(Weather).complete(QUESTION).raw
    assert isinstance(made, Weather), made
    answer = llm.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg="The weather in Oslo?", tool_required=True)
    calls = llm.get_tool_calls_from_response(answer)
    assert calls and calls[0].tool_name == "weather", answer
    assert len(OpenAILikeEmbedding(model_name=MODEL, api_base=URL, api_key=KEY).get_text_embedding("a")) > 10


@client("pydantic-ai-slim")
def pydantic_ai():
    from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=URL, api_key=KEY)
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        for output in (ToolOutput(Weather), NativeOutput(Weather), PromptedOutput(Weather)):
            agent = Agent(kind(MODEL, provider=provider), output_type=output, model_settings={"temperature": 0}, retries=3)
            made = agent.run_sync(QUESTION).output
            assert isinstance(made, Weather), (kind, output, made)


@client("instructor")
def instructor_modes():
    import instructor

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA, instructor.Mode.MD_JSON):
        wrapped = instructor.from_openai(openai_client(), mode=mode)
        made = wrapped.chat.completions.create(
            model=MODEL, response_model=Weather, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_retries=3
        )
        assert isinstance(made, Weather), (mode, made)


@client("litellm")
def litellm_calls():
    import litellm

    for prefix in ("openai", "hosted_vllm"):
        ask = dict(model=f"{prefix}/{MODEL}", api_base=URL, api_key=KEY, temperature=0)
        messages = [{"role": "user", "content": QUESTION}]
        made = litellm.completion(messages=messages, response_format=Weather, **ask).choices[0].message.content
        assert Weather.model_validate_json(made)
        answer = litellm.completion(messages=messages, tools=[TOOL], tool_choice="required", **ask).choices[0]
        assert answer.message.tool_calls[0].function.name == "get_weather", answer
        chunks = list(litellm.completion(messages=messages, stream=True, max_tokens=10, **ask))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    found = litellm.embedding(model=f"openai/{MODEL}", api_base=URL, api_key=KEY, input=["a", "b"])
    assert len(found.data) == 2
    made = litellm.responses(model=f"openai/{MODEL}", api_base=URL, api_key=KEY, input="Say hello.", max_output_tokens=16)
    assert made.output[0].content[0].text


@client("openai")
def open_webui_requests():
    """What Open WebUI sends: its list of models, a title as JSON, a streamed chat with fields of its own."""
    http = openai_client()
    assert http.models.list().data[0].id
    body = {
        "model": MODEL, "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}],
        "max_tokens": 12, "metadata": None, "tools": None, "files": None, "session_id": "s", "chat_id": "c", "features": {},
    }
    parts = list(http.post("/chat/completions", body=body, cast_to=object, stream=True, stream_cls=__import__("openai").Stream[object]))
    assert parts[-1]["usage"]["completion_tokens"] > 0, parts[-1]


def main():
    failed = []
    for name, (package, check) in CLIENTS.items():
        if ONLY and name not in ONLY:
            continue
        try:
            done = check()
            if asyncio.iscoroutine(done):
                asyncio.run(done)
            print(f"ok      {name} ({package} {version(package)})", flush=True)
        except Exception:
            failed.append(name)
            print(f"FAILED  {name} ({package} {version(package)})\n{traceback.format_exc()[-2500:]}", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
