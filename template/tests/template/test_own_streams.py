"""EventStream and ui_message_stream serve any iterator: real statuses, error events, pings, cancellation, an end."""

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from fastapi import APIRouter, HTTPException, Request
from fastapi.sse import ServerSentEvent
from pydantic import BaseModel
from structlog.testing import capture_logs

from app.dependencies import LLM
from app.errors import Draining, InvalidRequest
from app.http import event_stream
from app.http.event_stream import EventStream
from app.http.ui_messages import ui_message_stream
from app.main import create_app
from tests.conftest import MakeSettings
from tests.serving import serve
from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import request_line

SOON = 20
"""Seconds, generous."""
MESSAGES: Any = [{"role": "user", "content": "Hello"}]


class Progress(BaseModel):
    done: int


routes = APIRouter()
happened: list[str] = []


async def of_every_kind() -> AsyncIterator[Any]:
    yield "a\ntext"
    yield {"a": "dict"}
    yield Progress(done=1)
    yield ServerSentEvent(data={"a": 1}, event="named", id="7")
    yield b"data: raw\n\n"


async def failing(error: Exception, after: int) -> AsyncIterator[str]:
    for _ in range(after):
        yield "Hello"
    raise error


ERRORS: dict[str, Callable[[], Exception]] = {
    "ours": lambda: InvalidRequest("No such thing.", param="thing"),
    "http": lambda: HTTPException(409, "Shipped."),
    "bug": lambda: LookupError("a secret"),
    "group": lambda: ExceptionGroup("of a TaskGroup", [InvalidRequest("No such thing.")]),
}


@routes.get("/kinds")
async def kinds() -> EventStream:
    return EventStream(of_every_kind(), headers={"X-Own": "yes"})


@routes.get("/empty")
async def empty() -> EventStream:
    async def nothing() -> AsyncIterator[str]:
        return
        yield

    return EventStream(nothing())


@routes.get("/failing")
async def fails(error: str, after: int) -> EventStream:
    return EventStream(failing(ERRORS[error](), after))


@routes.get("/ui")
async def ui(error: str, after: int) -> EventStream:
    return ui_message_stream(failing(ERRORS[error](), after))


@routes.post("/left")
async def left() -> EventStream:
    """Reads no body, and asks for nothing that notices that a client leaves."""

    async def conversation() -> AsyncIterator[str]:
        try:
            while True:
                yield "Hello"
                await asyncio.sleep(0.01)
        finally:
            await asyncio.sleep(0.05)  # as a database takes time
            happened.append("stored")

    return EventStream(conversation())


@routes.post("/waiting")
async def waiting() -> EventStream:
    async def conversation() -> AsyncIterator[str]:
        try:
            yield "Hello"
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.05)
            happened.append("stored")

    return EventStream(conversation())


async def unread() -> AsyncIterator[str]:
    """Has always more to send than its reader takes, so it is left while it sends, and not while it waits."""
    try:
        while True:
            yield "Hello" * 1_000_000
    finally:
        await asyncio.sleep(0.05)
        happened.append("stored")


routes.post("/unread", response_model=None)(lambda: EventStream(unread()))
routes.post("/unread/ui", response_model=None)(lambda: ui_message_stream(unread()))


@routes.get("/aborted")
async def aborted(request: Request) -> EventStream:
    async def events() -> AsyncIterator[str]:
        yield "Hello"
        request.scope["app.exchange"].abort(Draining("Bye."))
        await asyncio.sleep(600)

    return EventStream(events())


@routes.get("/silent")
async def silent() -> EventStream:
    async def events() -> AsyncIterator[str]:
        await asyncio.sleep(0.2)
        yield "Hello"

    return EventStream(events())


@routes.get("/model")
async def model(llm: LLM) -> EventStream:
    return EventStream(llm.stream(messages=MESSAGES))


@routes.post("/v1/own/chat/completions")
async def like_openais(llm: LLM) -> EventStream:
    return EventStream(chunk async for chunk in llm.stream(messages=MESSAGES))


@pytest.fixture
def url(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("app.main.own", SimpleNamespace(public_routers=[routes]))
    happened.clear()
    with serve(create_app(settings())) as url:
        yield url


def connect(url: str) -> contextlib.closing[http.client.HTTPConnection]:
    return contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60))


def get(url: str, path: str, headers: dict[str, str] | None = None) -> tuple[http.client.HTTPResponse, str]:
    with connect(url) as connection:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer, answer.read().decode()


def test_every_kind_of_event_is_sent(url: str) -> None:
    answer, text = get(url, "/kinds")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (answer.headers["x-own"], answer.headers["cache-control"]) == ("yes", "no-cache")
    assert text.split("\n\n") == [
        'data: "a\\ntext"',
        'data: {"a":"dict"}',
        'data: {"done":1}',
        'event: named\ndata: {"a":1}\nid: 7',
        "data: raw",
        "data: [DONE]",
        "",
    ]


def test_a_stream_of_nothing_has_an_end(url: str) -> None:
    answer, text = get(url, "/empty")
    assert (answer.status, text) == (200, "data: [DONE]\n\n")


CODES = {
    "ours": (422, "invalid_request"),
    "http": (409, "conflict"),
    "bug": (500, "internal_error"),
    "group": (422, "invalid_request"),
}


@pytest.mark.parametrize("path", ["failing", "ui"])
@pytest.mark.parametrize("error", CODES)
def test_an_error_before_the_first_event_has_its_own_status(url: str, error: str, path: str) -> None:
    answer, text = get(url, f"/{path}?error={error}&after=0")
    assert (answer.status, json.loads(text)["error"]["code"]) == CODES[error]


@pytest.mark.parametrize("error", CODES)
def test_a_later_error_is_an_event(url: str, error: str) -> None:
    with capture_logs() as lines:
        answer, text = get(url, f"/failing?error={error}&after=1")
        line = request_line(lines)
    first, last, done, _ = text.split("\n\n")
    assert (answer.status, first, done) == (200, 'data: "Hello"', "data: [DONE]")
    assert last.startswith("event: error\ndata: {")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == CODES[error][1]
    assert line["error"] == CODES[error][1]
    assert [entry["error"] for entry in lines if entry["event"] == "unexpected"] == ["LookupError"] * (error == "bug")


@pytest.mark.parametrize("path", ["/left", "/waiting", "/unread", "/unread/ui"])
def test_what_is_to_be_stored_is_stored_when_the_reader_leaves(url: str, path: str) -> None:
    with capture_logs() as lines:
        with connect(url) as connection:
            connection.request("POST", path, b"x" * 10)
            with connection.getresponse() as answer:
                assert answer.read(5)
            connection.close()
        line = request_line(lines)
    assert (line["status"], happened) == (499, ["stored"])


def test_draining_ends_own_events_with_an_event(url: str) -> None:
    assert '"code":"draining"' in get(url, "/aborted")[1]


def test_silence_is_filled_with_pings(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "FIRST_EVENT", 0.01)
    _, text = get(url, "/silent")
    assert text.startswith(": ping\n")
    assert text.endswith('data: "Hello"\n\ndata: [DONE]\n\n')


def test_a_models_error_is_the_streams(url: str, stub: Stub, headers: dict[str, str]) -> None:
    stub.queue(Behaviour(status=429, headers={"retry-after": "7"}))
    answer, _ = get(url, "/model", headers)
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")


def test_a_models_chunks_are_what_openais_client_reads(url: str, key: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1/own", api_key=key, max_retries=0) as client:
        chunks = client.chat.completions.create(model="x", messages=MESSAGES, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
