"""What a program does with OpenAI's client for Python. Prints the name of each step that went well.

Usage: python session.py BASE_URL KEY
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import openai
from pydantic import BaseModel

HELLO: Any = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
SAID = {
    "demo": "You said: Hello",
    "stub": "Hello from the stub. Grüße, 世界! 👋",
    "anthropic": "Hello from the stub. Grüße, 世界! 👋",
}
"""What each model that is well answers."""


class Place(BaseModel):
    """What a model fills in."""

    city: str
    inhabitants: int
    rivers: list[str]


def chat(client: openai.OpenAI) -> None:
    for model, text in SAID.items():
        answer = client.chat.completions.create(model=model, messages=HELLO)
        assert answer.object == "chat.completion"
        assert answer.choices[0].message.content == text
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
        assert answer._request_id  # noqa: SLF001 - its documented name


def stream(client: openai.OpenAI) -> None:
    for model, text in SAID.items():
        chunks = list(client.chat.completions.create(model=model, messages=HELLO, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        assert chunks[-1].choices[0].finish_reason == "stop"
        options: Any = {"include_usage": True}
        *_, last = client.chat.completions.create(model=model, messages=HELLO, stream=True, stream_options=options)
        assert last.choices == []
        assert last.usage
        assert last.usage.completion_tokens > 0


def odd_events(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="odd", messages=HELLO, stream=True))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == SAID["stub"]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]


def stream_helpers(client: openai.OpenAI) -> None:
    for model, text in SAID.items():
        with client.chat.completions.stream(model=model, messages=HELLO) as events:
            deltas = [event.delta for event in events if event.type == "content.delta"]
            final = events.get_final_completion()
        assert "".join(deltas) == final.choices[0].message.content == text


def tools(client: openai.OpenAI) -> None:
    for model, city in {"demo": "demo", "tools": "Zürich", "tools-anthropic": "Zürich"}.items():
        first = client.chat.completions.create(model=model, messages=HELLO, tools=TOOLS)
        assert first.choices[0].finish_reason == "tool_calls"
        [call] = first.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": city}
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        messages: Any = [*HELLO, first.choices[0].message, result]
        second = client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
        assert second.choices[0].finish_reason == "stop"
        assert second.choices[0].message.content
        with client.chat.completions.stream(model=model, messages=HELLO, tools=TOOLS) as events:
            [streamed] = events.get_final_completion().choices[0].message.tool_calls or []
        assert json.loads(streamed.function.arguments) == {"city": city}


def parse(client: openai.OpenAI) -> None:
    place = client.chat.completions.parse(model="demo", messages=HELLO, response_format=Place)
    assert isinstance(place.choices[0].message.parsed, Place)
    with client.chat.completions.stream(model="demo", messages=HELLO, response_format=Place) as events:
        assert isinstance(events.get_final_completion().choices[0].message.parsed, Place)


def embeddings(client: openai.OpenAI) -> None:
    for model in ("demo", "stub"):
        forms: list[dict[str, Any]] = [{}, {"encoding_format": "float"}]  # else it asks for base64, and decodes it
        for form in forms:
            answer = client.embeddings.create(model=model, input=["Hello", "World"], dimensions=8, **form)
            assert [row.index for row in answer.data] == [0, 1]
            assert all(len(row.embedding) == 8 for row in answer.data)
            assert answer.data[0].embedding != answer.data[1].embedding
            assert answer.usage.prompt_tokens > 0


def models(client: openai.OpenAI) -> None:
    assert {"demo", "stub", "anthropic"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("demo").id == "demo"
    caught(openai.NotFoundError, "model_not_found", lambda: client.models.retrieve("nowhere/none"))


def errors(client: openai.OpenAI) -> None:
    once = client.with_options(max_retries=0)

    def ask(model: str, **fields: Any) -> Callable[[], object]:
        return lambda: once.chat.completions.create(model=model, messages=HELLO, **fields)

    stranger = once.with_options(api_key="sk-unknown")
    caught(openai.AuthenticationError, "invalid_api_key", stranger.models.list)
    caught(openai.NotFoundError, "model_not_found", ask("none"))
    unfit = caught(openai.UnprocessableEntityError, "invalid_request", ask("demo", temperature=3))
    assert unfit.param == "temperature"
    refused = caught(openai.BadRequestError, "context_length_exceeded", ask("refusing"))
    assert "told to fail" in refused.message
    busy = caught(openai.RateLimitError, "provider_rate_limited", ask("busy-for-long"))
    assert isinstance(busy, openai.APIStatusError)
    assert busy.response.headers["retry-after"] == "600"
    assert busy.request_id == busy.response.headers["x-request-id"]
    caught(openai.InternalServerError, "provider_error", ask("broken"))
    caught(openai.InternalServerError, "provider_error", ask("broken", stream=True))
    received: list[object] = []

    def read() -> None:
        received.extend(once.chat.completions.create(model="cut", messages=HELLO, stream=True))

    caught(openai.APIError, "provider_error", read)
    assert received, "it broke off in mid-stream"


def caught(kind: type[openai.APIError], code: str, call: Callable[[], object]) -> openai.APIError:
    """Return the error that a call raises, which must be of this kind and have this code."""
    error: openai.APIError | None = None
    try:
        call()
    except kind as raised:
        error = raised
    assert error is not None, f"no {kind.__name__}"
    assert error.code == code, error
    return error


def retries(client: openai.OpenAI) -> None:
    asked_at = time.monotonic()
    answer = client.chat.completions.create(model="busy", messages=HELLO)
    assert answer.choices[0].message.content == SAID["stub"]
    assert time.monotonic() - asked_at >= 1, "Retry-After said one second"
    # x-should-retry says no: the test counts what reaches the provider.
    caught(
        openai.InternalServerError,
        "provider_misconfigured",
        lambda: client.chat.completions.create(model="misconfigured", messages=HELLO),
    )


def cancellation(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="endless", messages=HELLO, stream=True) as chunks:
        next(iter(chunks))
    with client.chat.completions.stream(model="endless", messages=HELLO) as events:
        next(iter(events))
    hasty = client.with_options(timeout=0.5, max_retries=0)
    try:
        hasty.chat.completions.create(model="silent", messages=HELLO)
    except openai.APITimeoutError:
        pass
    else:
        raise AssertionError("it did not time out")
    asyncio.run(cancelled(str(client.base_url), client.api_key))


async def cancelled(url: str, key: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
        async for _ in await client.chat.completions.create(model="stub", messages=HELLO, stream=True):
            pass
        waiting = asyncio.create_task(client.chat.completions.create(model="silent", messages=HELLO))
        await asyncio.sleep(0.5)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()


STEPS = (chat, stream, odd_events, stream_helpers, tools, parse, embeddings, models, errors, retries, cancellation)

if __name__ == "__main__":
    with openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2]) as client:
        for step in STEPS:
            step(client)
            sys.stdout.write(f"{step.__name__}\n")
