"""Your code is a model, and a model runs your code: `own/` rows, `llm.run`, `llm.parse` and `llm_for`."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from app.config import ModelEntry, Settings, SettingsError
from app.errors import AppError, InvalidRequest, ProviderError, RateLimited, UnfitAnswer
from app.http.event_stream import EventStream
from app.http.ui_messages import ui_message_stream
from app.llm.client import LLMClient
from app.llm.tool_loop import Done, RunEvent
from app.llm.tools import ToolCall, ToolError, ToolResult
from app.llm.upstreams import Upstreams
from app.main import create_app
from app.models import ChatChunk, ChatRequest
from app.telemetry.tracing import Tracing
from tests.conftest import MakeSettings
from tests.fakes import BreaksOff, Calls, FakeLLM, tool
from tests.serving import serve
from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import request_line

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
Collected = list[RunEvent]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- Models of the team's ---------------------------------------------------------------------------------------------


async def echo(request: ChatRequest, _: LLMClient) -> AsyncGenerator[str, None]:
    """Answers without a model."""
    for word in str(request.messages[-1].content).split(" "):
        yield f"{word}, "


async def support(request: ChatRequest, llm: LLMClient) -> AsyncGenerator[str | ChatChunk, None]:
    """Asks a model twice, the second time with the client's tools, and passes its chunks on."""
    yield f"{(await llm.complete(messages=request.messages)).content} / "
    async for chunk in llm.stream(messages=request.messages, tools=request.tools):
        yield chunk


async def weather(city: str) -> str:
    """Return the weather."""
    return f"Sun in {city}"


async def agent(request: ChatRequest, llm: LLMClient) -> AsyncGenerator[RunEvent, None]:
    async for event in llm.run(model="demo", messages=request.messages, tools=[weather]):
        yield event


async def broken(request: ChatRequest, _: LLMClient) -> AsyncGenerator[str, None]:
    if request.messages[-1].content == "late":
        yield "A text."
    raise LookupError("a secret")


async def refusing(_request: ChatRequest, _: LLMClient) -> AsyncGenerator[str, None]:
    raise InvalidRequest("Ask about orders.", param="messages")
    yield ""


async def waiting(_request: ChatRequest, _: LLMClient) -> AsyncGenerator[str, None]:
    try:
        yield "A text."
        await asyncio.sleep(600)
    finally:
        ended.append("waiting")


ended: list[str] = []
FUNCTIONS = {f.__name__: f for f in (echo, support, agent, broken, refusing, waiting)}


@pytest.fixture
def app(settings: MakeSettings, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    models: dict[str, Any] = {name: {"upstream": f"own/{name}"} for name in FUNCTIONS}
    models |= {
        "gpt-4o": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1", "fallbacks": ["echo"]},
        "safe": {"upstream": "own/broken", "fallbacks": ["demo"]},
        "demo": {"upstream": "demo/echo"},
        "rare": {"upstream": "own/echo", "requests_per_minute": 1},
    }
    monkeypatch.setattr("app.main.own", SimpleNamespace(models=FUNCTIONS))
    ended.clear()
    return create_app(settings(models=models))


@pytest.fixture
def client(app: FastAPI, key: str) -> Iterator[openai.OpenAI]:
    with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


def say(client: openai.OpenAI, model: str, content: str = "Hello", **fields: Any) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **fields)


def read(chunks: Any) -> tuple[str, list[str], Any]:
    """Return a stream's text, finish reasons and usage."""
    text, reasons, usage = "", [], None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    return text, reasons, usage


def test_own_code_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = say(client, "echo", "a b")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("a, b, ", "stop")
    assert answer.usage.total_tokens == 0
    assert read(say(client, "echo", "a b", stream=True))[:2] == ("a, b, ", ["stop"])


@pytest.mark.parametrize("stream", [False, True])
def test_the_usage_of_own_code_is_the_sum_of_its_calls(client: openai.OpenAI, stub: Stub, stream: bool) -> None:
    with capture_logs() as lines:
        if stream:
            text, reasons, usage = read(say(client, "support", stream=True, stream_options={"include_usage": True}))
        else:
            answer = say(client, "support")
            text, usage = answer.choices[0].message.content, answer.usage
            reasons = [answer.choices[0].finish_reason]
        line = request_line(lines)
    assert (text, reasons) == (f"{TEXT} / {TEXT}", ["stop"])
    assert (usage.prompt_tokens, usage.completion_tokens) == (14, 16)
    assert (line["model"], line["tokens_in"], line["tokens_out"]) == ("support", 14, 16)
    assert len(stub.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_cached_and_reasoning_tokens_of_own_code_are_the_sums_of_its_calls(
    client: openai.OpenAI, stub: Stub, stream: bool
) -> None:
    """Clients show them, and of an own model they would be a cache that never works."""
    details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12} | details
    message = {"role": "assistant", "content": "Hi."}
    whole = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
    odd = whole | {
        "usage": usage | {"prompt_tokens_details": [], "completion_tokens_details": {"reasoning_tokens": "2"}}
    }
    chunk = {"id": "c", "choices": [{"index": 0, "delta": message, "finish_reason": "stop"}], "usage": usage}
    events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
    streamed = Behaviour(body=events, headers={"content-type": "text/event-stream"})
    for first, total in ((whole, (8, 4)), (odd, (4, 2))):
        stub.queue(Behaviour(body=json.dumps(first).encode()), streamed)
        if stream:
            used = read(say(client, "support", stream=True, stream_options={"include_usage": True}))[2]
        else:
            used = say(client, "support").usage
        told = (used.prompt_tokens_details.cached_tokens, used.completion_tokens_details.reasoning_tokens)
        assert (used.prompt_tokens, told) == (14, total)


@pytest.mark.parametrize("stream", [False, True])
def test_own_code_may_call_the_clients_tools(client: openai.OpenAI, stub: Stub, stream: bool) -> None:
    offered: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    delta = {
        "tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]
    }
    chunk = {"id": "a", "choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls"}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
    stub.queue(Behaviour(), Behaviour(body=body, headers={"content-type": "text/event-stream"}))
    answer = say(client, "support", tools=offered, stream=stream)
    if stream:
        deltas = [choice.delta for chunk in answer for choice in chunk.choices]
        names = [call.function.name for delta in deltas for call in delta.tool_calls or () if call.function.name]
    else:
        assert answer.choices[0].finish_reason == "tool_calls"
        names = [call.function.name for call in answer.choices[0].message.tool_calls]
    assert names == ["look_up"]


def test_events_of_tools_are_told_beside_the_answer(client: openai.OpenAI) -> None:
    chunks = list(say(client, "agent", stream=True))
    events = [chunk.tool_event for chunk in chunks if getattr(chunk, "tool_event", None)]
    assert [event["type"] for event in events] == ["tool_call", "tool_result"]
    assert events[1]["result"] == "Sun in demo"
    assert read(chunks)[:2] == ("You said: Sun in demo", ["stop"])


@pytest.mark.parametrize("stream", [False, True])
def test_no_other_dialect_and_no_whole_answer_tells_of_tools(app: FastAPI, headers: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "agent", "messages": MESSAGES, "stream": stream}
    paths = {
        "responses": {"model": "agent", "input": "Hello", "stream": stream},
        "messages": {**asked, "max_tokens": 9},
    }
    with TestClient(app, headers=headers) as client:
        for path, body in (paths | ({} if stream else {"chat/completions": asked})).items():
            text = client.post(f"/v1/{path}", json=body).text
            assert "Sun" in text, path
            assert "tool_event" not in text, path
            assert "tool_result" not in text, path


def test_an_exception_of_own_code_is_a_clear_error(client: openai.OpenAI) -> None:
    with capture_logs() as lines, pytest.raises(openai.InternalServerError) as error:
        say(client, "broken")
    assert (error.value.status_code, error.value.code) == (500, "own_model_failed")
    assert "secret" not in str(error.value)
    assert [line["error"] for line in lines if line["event"] == "own model failed"] == ["LookupError"]
    with pytest.raises(openai.APIError) as late:
        read(say(client, "broken", "late", stream=True))
    assert late.value.code == "own_model_failed"


def test_own_code_may_refuse_a_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="Ask about orders"):
        say(client, "refusing")


@pytest.mark.parametrize("stream", [False, True])
def test_fallbacks_lead_from_own_code_and_to_it(client: openai.OpenAI, stub: Stub, stream: bool) -> None:
    stub.default = Behaviour(status=500)
    for model, text in {"safe": "You said: Hello", "gpt-4o": "Hello, "}.items():
        answer = say(client, model, stream=stream)
        assert (read(answer)[0] if stream else answer.choices[0].message.content) == text


def test_limits_hold_for_own_code(client: openai.OpenAI) -> None:
    say(client, "rare")
    with pytest.raises(openai.RateLimitError):
        say(client, "rare")


def test_a_caller_needs_only_the_own_model(app: FastAPI, key: str) -> None:
    """What it calls in turn is the team's business."""
    entry = app.state.settings.callers["test"].model_copy(update={"models": ["support"], "max_in_flight": 1})
    given = app.state.settings.model_copy(update={"callers": {"test": entry}})
    with serve(create_app(given)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        assert say(client, "support").choices[0].message.content == f"{TEXT} / {TEXT}"
        with pytest.raises(openai.PermissionDeniedError):
            say(client, "gpt-4o")


def test_own_code_ends_when_its_client_leaves(client: openai.OpenAI) -> None:
    with say(client, "waiting", stream=True) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 20
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == ["waiting"]


def test_own_models_are_listed(client: openai.OpenAI) -> None:
    assert {model.id: model.owned_by for model in client.models.list()}["support"] == "own"


def test_a_row_that_leads_to_no_function_stops_the_start(settings: MakeSettings) -> None:
    with pytest.raises(SettingsError, match=r"models\.a: app/own\.py has no model 'b'"):
        create_app(settings(models={"a": {"upstream": "own/b"}}, default_model="a"))


def test_what_own_code_calls_is_within_its_span(app: FastAPI, headers: dict[str, str]) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    upstreams = app.state.upstreams
    upstreams.accounting = replace(upstreams.accounting, tracing=Tracing(provider.get_tracer("llm")))
    for stream in (False, True):
        with TestClient(app, headers=headers) as client, provider.get_tracer("ours").start_as_current_span("ours"):
            client.post("/v1/chat/completions", json={"model": "support", "messages": MESSAGES, "stream": stream})
        spans = {span.context.span_id: span for span in exporter.get_finished_spans() if span.context}
        parents = [
            (span.name, spans[span.parent.span_id].name)
            for span in spans.values()
            if span.parent and span.parent.span_id in spans
        ]
        assert sorted(parents)[:2] == [("chat gpt-4o", "chat support")] * 2
        exporter.clear()


# --- The tool loop ----------------------------------------------------------------------------------------------------


async def slow(seconds: float) -> str:
    """Sleep."""
    await asyncio.sleep(seconds)
    return "slept"


async def failing(kind: str) -> str:
    """Fail."""
    raise {"words": ToolError("No such order."), "ours": InvalidRequest("Not this."), "bug": LookupError("a secret")}[
        kind
    ]


class Place(BaseModel):
    city: str


def nested(place: Place, days: int = 3) -> dict[str, Any]:
    """Plan a trip."""
    return {"city": place.city, "days": days}


async def collect(llm: LLMClient, tools: list[Callable[..., Any]], **options: Any) -> Collected:
    return [event async for event in llm.run(messages=MESSAGES, tools=tools, **options)]


def results(events: Collected) -> list[ToolResult]:
    return [event for event in events if isinstance(event, ToolResult)]


def done(events: Collected) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


@pytest.mark.anyio
async def test_a_tool_is_called_and_its_result_told() -> None:
    llm = FakeLLM(tool("weather", city="Lisbon"), "It is sunny.")
    events = await collect(llm, [weather])
    assert [event.type for event in events] == ["tool_call", "tool_result", "text", "text", "text", "done"]
    assert events[0] == ToolCall(id="call_0", name="weather", arguments='{"city": "Lisbon"}')
    assert events[1] == ToolResult(id="call_0", name="weather", result="Sun in Lisbon")
    end = done(events)
    assert (end.reason, end.text, end.turns, end.usage.total_tokens) == ("stop", "It is sunny.", 2, 10)
    assert [message["role"] for message in end.messages] == ["user", "assistant", "tool", "assistant"]
    offered = llm.requests[0]["tools"][0]["function"]
    assert (offered["name"], offered["description"]) == ("weather", "Return the weather.")
    assert offered["parameters"]["properties"]["city"]["type"] == "string"
    assert llm.requests[1]["messages"][2] == {"role": "tool", "tool_call_id": "call_0", "content": "Sun in Lisbon"}


@pytest.mark.anyio
async def test_arguments_are_validated_and_become_objects() -> None:
    llm = FakeLLM(tool("nested", place={"city": "Lisbon"}), tool("nested", place=7), tool("nested", other=1), "So.")
    first, second, third = results(await collect(llm, [nested]))
    assert first.result == {"city": "Lisbon", "days": 3}
    assert second.is_error
    assert "place" in str(second.result)
    assert third.is_error


@pytest.mark.anyio
async def test_very_many_faults_in_arguments_are_told_in_a_few_words() -> None:
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    [result] = results(await collect(FakeLLM(tool("add", numbers=["one"] * 1000), "So."), [add]))
    assert (result.is_error, result.result) == (
        True,
        "The arguments do not fit: more than 100 values are invalid.",
    )


@pytest.mark.anyio
async def test_calls_are_made_at_the_same_time() -> None:
    llm = FakeLLM(Calls([("slow", {"seconds": 0.3}), ("slow", {"seconds": 0.2}), ("slow", {"seconds": 0.1})]), "So.")
    events = await collect(llm, [slow])
    assert [result.id for result in results(events)] == ["call_2", "call_1", "call_0"]
    told = [message["tool_call_id"] for message in done(events).messages if message["role"] == "tool"]
    assert told == ["call_0", "call_1", "call_2"]


@pytest.mark.anyio
async def test_each_call_has_a_time_limit() -> None:
    events = await collect(FakeLLM(tool("slow", seconds=600), "So."), [slow], tool_timeout=0.05)
    [result] = results(events)
    assert (result.is_error, result.result) == (True, "slow took longer than 0.05 s.")
    assert done(events).reason == "stop"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "told"), [("words", "No such order."), ("ours", "Not this."), ("bug", "failing failed: LookupError.")]
)
async def test_the_error_of_a_tool_is_told_to_the_model(kind: str, told: str) -> None:
    llm = FakeLLM(tool("failing", kind=kind), "So.")
    [result] = results(await collect(llm, [failing]))
    assert (result.is_error, result.result) == (True, told)
    assert llm.requests[1]["messages"][2]["content"] == told


@pytest.mark.anyio
@pytest.mark.parametrize("made", [b"\xff", "name-\udcff.txt"], ids=["bytes", "half a pair"])
async def test_a_result_that_is_no_json_is_an_error_of_its_tool(made: Any) -> None:
    def picture() -> Any:
        return made

    [result] = results(await collect(FakeLLM(tool("picture"), "So."), [picture]))
    assert result.is_error
    assert str(result.result).startswith("picture failed: ")


@pytest.mark.anyio
async def test_a_tool_that_is_not_there_is_told_to_the_model() -> None:
    [result] = results(await collect(FakeLLM(tool("nothing"), "So."), [weather]))
    assert result.is_error
    assert "weather" in str(result.result)


@pytest.mark.anyio
async def test_the_loop_ends_at_its_turns() -> None:
    llm = FakeLLM(tool("weather", city="Lisbon"))
    end = done(await collect(llm, [weather], max_turns=3))
    assert (end.reason, end.turns, len(llm.requests)) == ("max_turns", 3, 3)
    assert end.messages[-1]["role"] == "tool"


@pytest.mark.anyio
async def test_the_loop_ends_at_its_deadline() -> None:
    events = await collect(FakeLLM(tool("slow", seconds=600), "So."), [slow, weather], timeout=0.1)
    end = done(events)
    assert (end.reason, end.turns, results(events)) == ("deadline", 1, [])
    assert end.messages[-1]["role"] == "tool"


@pytest.mark.anyio
async def test_an_error_of_the_model_ends_the_loop() -> None:
    with pytest.raises(ProviderError):
        await collect(FakeLLM(tool("weather", city="Lisbon"), BreaksOff("So", ProviderError("Broken."))), [weather])


@pytest.mark.anyio
async def test_leaving_the_loop_cancels_its_tools() -> None:
    cancelled = asyncio.Event()

    async def hanging() -> str:
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()
        return ""

    loop = FakeLLM(Calls([("hanging", {}), ("weather", {"city": "Lisbon"})])).run(
        messages=MESSAGES, tools=[hanging, weather]
    )
    async with contextlib.aclosing(loop):
        async for event in loop:
            if event.type == "tool_result":
                break
    assert cancelled.is_set()


@pytest.mark.anyio
async def test_a_tool_whose_arguments_have_no_types_is_refused() -> None:
    def untyped(city):  # type: ignore[no-untyped-def]
        return city

    with pytest.raises(TypeError, match="needs a type"):
        FakeLLM().run(messages=MESSAGES, tools=[untyped])


PIECES: dict[str, list[list[dict[str, Any]]]] = {
    "whole calls without an index": [
        [{"id": "a", "function": {"name": "weather", "arguments": '{"city": "A"}'}}],
        [{"id": "b", "function": {"name": "weather", "arguments": '{"city": "B"}'}}],
    ],
    "one index for all": [
        [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": '{"city": "A"}'}}],
        [{"index": 0, "id": "b", "function": {"name": "weather", "arguments": '{"city": "B"}'}}],
    ],
    "bit by bit": [
        [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"city"'}}, {"index": 1, "id": "b", "function": {"name": "weather"}}],
        [{"index": 0, "function": {"arguments": ': "A"}'}}, {"index": 1, "function": {"arguments": '{"city": "B"}'}}],
    ],
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", PIECES)
async def test_calls_that_come_in_pieces_are_joined(stub: Stub, name: str) -> None:
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"tool_calls": calls}}]} for calls in PIECES[name]]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    stub.queue(Behaviour(body=body.encode(), headers={"content-type": "text/event-stream"}))
    async with upstreams({"m": ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1")}) as llm:
        events = await collect(llm, [weather])
    assert {(result.id, result.result) for result in results(events)} == {("a", "Sun in A"), ("b", "Sun in B")}
    assert done(events).text == TEXT


@pytest.mark.anyio
async def test_arguments_that_come_as_an_object_are_read_as_one(stub: Stub) -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": {"city": "A"}}}
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    stub.queue(Behaviour(body=body.encode(), headers={"content-type": "text/event-stream"}))
    async with upstreams({"m": ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1")}) as llm:
        [result] = results(await collect(llm, [weather]))
    assert result.result == "Sun in A"


@pytest.mark.anyio
@pytest.mark.parametrize("given", [{}, {"id": "weather"}, {"id": 7}], ids=["none", "the function's name", "a number"])
async def test_calls_whose_ids_are_not_their_own_are_all_answered(stub: Stub, given: dict[str, Any]) -> None:
    calls = [
        {"index": index, **given, "function": {"name": "weather", "arguments": json.dumps({"city": city})}}
        for index, city in enumerate("AB")
    ]
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    stub.queue(Behaviour(body=body.encode(), headers={"content-type": "text/event-stream"}))
    async with upstreams({"m": ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1")}) as llm:
        events = await collect(llm, [weather])
    end = done(events)
    assert (end.reason, end.text, end.turns) == ("stop", TEXT, 2)
    told = {message["tool_call_id"]: message["content"] for message in end.messages if message["role"] == "tool"}
    assert list(told.values()) == ["Sun in A", "Sun in B"]
    [asked] = [message["tool_calls"] for message in end.messages if "tool_calls" in message]
    assert [call["id"] for call in asked] == list(told) == [e.id for e in events if isinstance(e, ToolCall)]


@contextlib.asynccontextmanager
async def upstreams(models: dict[str, ModelEntry]) -> AsyncIterator[LLMClient]:
    async with Upstreams(Settings(models=models, default_model=next(iter(models)), retries=0)) as upstreams:
        yield LLMClient(upstreams)


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["direct", "litellm", "anthropic", "demo"])
async def test_the_loop_runs_on_every_way_to_a_model(stub: Stub, way: str) -> None:
    models = {
        "direct": ModelEntry(upstream="openai/gpt-4o", api_base=f"{stub.url}/v1"),
        "litellm": ModelEntry(upstream="openai/gpt-4o", api_base=f"{stub.url}/v1", protocol="litellm"),
        "anthropic": ModelEntry(upstream="anthropic/claude-sonnet-4-5", api_base=stub.url),
        "demo": ModelEntry(upstream="demo/echo"),
    }
    async with upstreams({way: models[way]}) as llm:
        if way != "demo":
            stub.queue(Behaviour(tool_calls=(("weather", '{"city": "Lisbon"}'),)))
        events = await collect(llm, [weather])
    assert [result.result for result in results(events)] == ["Sun in demo" if way == "demo" else "Sun in Lisbon"]
    assert done(events).text == ("You said: Sun in demo" if way == "demo" else TEXT)
    assert done(events).usage.total_tokens > 0


@pytest.mark.anyio
async def test_an_assistants_message_goes_straight_back() -> None:
    llm = FakeLLM(tool("weather", city="Lisbon"), "Good.", "Well.")
    answer = await llm.complete(messages=MESSAGES)
    told = {"role": "tool", "tool_call_id": "call_0", "content": "Sun"}
    again = await llm.complete(messages=[*MESSAGES, answer.choices[0].message, told])
    assert again.content == "Good."
    assert llm.requests[1]["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"
    assert llm.requests[1]["messages"][1]["content"] is None
    await llm.complete(messages=[*MESSAGES, again.choices[0].message, *MESSAGES])
    assert llm.requests[2]["messages"][1] == {"role": "assistant", "content": "Good."}


# --- The UI message stream --------------------------------------------------------------------------------------------


def test_a_run_becomes_a_ui_message(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    router = APIRouter()

    @router.post("/chat")
    async def chat() -> EventStream:
        llm = FakeLLM(Calls([("weather", {"city": "Lisbon"}), ("failing", {"kind": "words"})]), "It is sunny.")

        async def events() -> AsyncIterator[Any]:
            yield {"type": "data-progress", "data": 1}
            yield Place(city="Lisbon")
            async for event in llm.run(messages=MESSAGES, tools=[weather, failing]):
                yield event

        return ui_message_stream(events(), message_id="m")

    monkeypatch.setattr("app.main.own", SimpleNamespace(public_routers=[router]))
    with TestClient(create_app(settings())) as client:
        answer = client.post("/chat")
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    *parts, end, _ = answer.text.split("\n\n")
    assert end == "data: [DONE]"
    read = [json.loads(part.removeprefix("data: ")) for part in parts]
    assert [part["type"] for part in read] == [
        *("start", "start-step", "data-progress", "data-Place"),
        *("tool-input-start", "tool-input-available", "tool-input-start", "tool-input-available"),
        *(part["type"] for part in read[8:10]),
        *("finish-step", "start-step", "text-start", "text-delta", "text-delta", "text-delta", "text-end"),
        *("finish-step", "finish"),
    ]
    results = {part["type"]: part for part in read[8:10]}
    assert results["tool-output-available"]["output"] == "Sun in Lisbon"
    assert results["tool-output-error"]["errorText"] == "No such order."
    assert read[5]["input"] == {"city": "Lisbon"}


# --- Typed answers ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(("repairs", "bad"), [(0, 1), (1, 2), (3, 4)])
async def test_an_answer_that_does_not_fit_has_a_code_of_its_own(repairs: int, bad: int) -> None:
    llm = FakeLLM("no JSON")
    with pytest.raises(UnfitAnswer) as error:
        await llm.parse(Place, messages=MESSAGES, repairs=repairs)
    assert (error.value.code, error.value.status, len(llm.requests)) == ("unfit_answer", 502, bad)


@pytest.mark.anyio
async def test_what_a_typed_answer_took_is_told() -> None:
    llm = FakeLLM("no JSON", '{"city": 7}', '{"city": "Lisbon"}')
    parsed = await llm.parse_with_usage(Place, messages=MESSAGES, repairs=2, model="m")
    assert (parsed.value, parsed.model, parsed.repairs) == (Place(city="Lisbon"), "m", 2)
    assert parsed.usage.total_tokens == 15


@pytest.mark.anyio
async def test_an_answer_that_does_not_fit_reaches_the_fallbacks(stub: Stub) -> None:
    models = {
        "m": ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1", fallbacks=["demo"]),
        "demo": ModelEntry(upstream="demo/echo"),
    }
    async with upstreams(models) as llm:
        parsed = await llm.parse_with_usage(Place, messages=MESSAGES, repairs=0)
    assert (parsed.value, parsed.model) == (Place(city="demo"), "demo")
    assert len(stub.requests) == 1


# --- Outside a request ------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_job_calls_as_a_caller(settings: MakeSettings) -> None:
    callers = {"web": {"key_sha256": "0" * 64, "models": ["demo"], "requests_per_minute": 1}}
    app = create_app(settings(callers=callers))
    async with app.router.lifespan_context(app):
        with capture_logs() as lines:
            llm = app.llm_for("web")
            answer = await llm.complete(model="demo", messages=MESSAGES)
        assert answer.content == "You said: Hello"
        [line] = [line for line in lines if line["event"] == "call"]
        assert (line["caller"], line["model"], line["tokens_in"], line["tokens_out"]) == ("web", "demo", 1, 3)
        assert 'llm_tokens_total{caller="web"' in app.state.metrics.render().decode()
        with pytest.raises(RateLimited):
            await llm.complete(model="demo", messages=MESSAGES)
        with pytest.raises(AppError, match="may not use"):
            await llm.complete(model="gpt-4o", messages=MESSAGES)
        with pytest.raises(SettingsError, match="no such caller"):
            app.llm_for("nobody")
