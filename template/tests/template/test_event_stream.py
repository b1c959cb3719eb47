"""What a stream's response is made of: no second start, no timer that is left, no work for the garbage collector."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from app.config import ModelEntry, Timeouts
from app.errors import Draining, ProviderTimeout
from app.http import event_stream
from app.http.exchange import Exchange
from app.llm import direct
from app.llm.call import Call as ModelCall
from app.llm.call import OpenStream
from app.llm.deadlines import Deadlines
from app.llm.packets import Packets
from app.llm.targets import resolve
from tests.serving import Backend
from tests.stub import Behaviour, Stub
from tests.template.running import Ask, row, running
from tests.wire import Call

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")
kinds = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
MEGABYTE = 1_000_000
BIG = Behaviour(text="x" * 10_000, repeat=10_000)
"""A stream of 100 MB."""


@pytest.fixture(scope="module")
def provider() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def shared(key: str, provider: Stub) -> Iterator[Ask]:
    """A server that is as patient as the default settings."""
    with running(key, {"direct": row(provider), "litellm": row(provider, protocol="litellm")}) as ask:
        yield ask


@pytest.fixture
def new_objects() -> Iterator[None]:
    """Let the garbage collector see what is made from now on alone: there are half a million objects of LiteLLM's."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def ask(shared: Ask, provider: Stub) -> Ask:
    """Ask the model of a provider that will answer well."""
    provider.default = Behaviour()
    return shared


@kinds
def test_a_providers_status_counts_though_its_errors_body_stalls(
    ask: Ask, provider: Stub, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "ERROR_WITHIN", 0.2)
    provider.default = Behaviour(status=401, stall_after=0)
    with ask("direct", stream=stream) as call:
        assert call.status == 502
        assert call.json["error"]["code"] == "provider_misconfigured"


def test_a_stream_that_timed_out_leaves_nothing_behind(key: str, stub: Stub) -> None:
    stub.default = Behaviour(stall_after=3)
    with running(key, {"direct": row(stub)}, timeouts={"idle": 0.2}) as ask:
        for _ in range(3):
            with ask("direct", stream=True) as call:
                *_, error, done = call.events
                assert done == "data: [DONE]"
                assert json.loads(error.removeprefix("data: "))["status"] == 504
    assert eventually(lambda: alive(Packets) == 0)


@kinds
@pytest.mark.usefixtures("new_objects")
@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        (Behaviour(), 200),
        (Behaviour(status=400), 400),
        (Behaviour(status=500), 502),
        (Behaviour(cut_after=3), None),
        (Behaviour(error_at=3), None),
    ],
    ids=["whole", "refused", "failed", "cut", "an error"],
)
def test_a_request_leaves_no_work_to_the_collector(
    ask: Ask, provider: Stub, behaviour: Behaviour, status: int | None, stream: bool
) -> None:
    """Objects in a reference cycle live on, with the prompt, until a garbage collection finds them."""
    provider.default = behaviour
    assert eventually(lambda: alive(Exchange) == 0)
    gc.disable()
    try:
        with ask("direct", stream=stream) as call:
            assert call.status == (status or (200 if stream else 502))
            assert call.body
        assert eventually(lambda: alive(Exchange) == 0, collect=False)
    finally:
        gc.enable()


def test_a_stream_that_goes_on_has_no_pings(ask: Ask, provider: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream lasts longer than the silence after which a ping would come, and each of its pauses is far shorter."""
    monkeypatch.setattr(event_stream, "FIRST_EVENT", 1.5)
    monkeypatch.setattr(event_stream, "PING_EVERY", 1.5)
    provider.default = Behaviour(pace=0.25)
    calls = [ask(way, stream=True) for way in ("direct", "litellm")]
    assert not [event for call in calls for event in call.events if event == ": ping"]


@pytest.mark.parametrize("way", ["direct", "litellm"])
def test_a_reader_that_stops_costs_no_memory(backend: Backend, key: str, way: str) -> None:
    stub, process = backend.stub, backend.process
    for seconds in (0.5, 1):
        before = process.rss
        stub.queue(BIG)
        with Call(process.url, key, model=way, stream=True, window=64_000) as call:
            assert next(call.events)
            time.sleep(seconds)
            grown = process.rss - before
            assert stub.requests[-1].sent < 30 * MEGABYTE, "the provider is held back"
        assert stub.wait_until(lambda: stub.in_flight == 0)
    assert grown < 5 * MEGABYTE, "a second stream finds the memory that the first one took"


def alive(kind: type) -> int:
    return sum(type(thing) is kind for thing in gc.get_objects())


def eventually(holds: Callable[[], bool], *, collect: bool = True) -> bool:
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        if collect:
            gc.collect()
        time.sleep(0.01)
    return holds()


@asynccontextmanager
async def opened(body: Callable[[], AsyncGenerator[bytes, None]]) -> AsyncIterator[OpenStream]:
    """Open a stream of the demo model that says what `body` yields."""
    call = ModelCall("chat", resolve("demo", ModelEntry(upstream="demo/echo"), {}), {}, Deadlines(Timeouts()))
    async with aclosing(body()) as packets:
        yield OpenStream(call, await anext(packets), packets)


@pytest.mark.parametrize("turns", range(6))
def test_an_error_that_meets_a_ping_starts_no_second_response(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer fires, the ping starts the response, and the error comes in turns of the loop next to each other."""
    monkeypatch.setattr(event_stream, "FIRST_EVENT", 0)

    async def body() -> AsyncGenerator[bytes, None]:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise ProviderTimeout("Late.")
        yield b""

    async def answered() -> tuple[bool, list[Any]]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            await asyncio.sleep(0)
            sent.append(message)

        async def receive() -> Any:
            await asyncio.Event().wait()

        scope: dict[str, Any] = {"type": "http", "path": "/", "headers": []}
        scope["app.exchange"] = Exchange(scope, receive, send, 1000)
        try:
            await event_stream.EventStream(opened(body))(scope, receive, send)
        except ProviderTimeout:
            return True, sent
        finally:
            await asyncio.sleep(0.01)
        return False, sent

    raised, sent = asyncio.run(answered())
    if raised:
        assert sent == []
    else:
        start, *rest = sent
        assert start["type"] == "http.response.start"
        *_, ping, error = [message["body"] for message in rest]
        assert ping == event_stream.PING
        assert b'"Late."' in error
        assert [message["more_body"] for message in rest] == [True] * (len(rest) - 1) + [False]


def test_an_end_that_was_never_sent_is_followed_by_an_error() -> None:
    """The server ends while the last packet waits for a reader that has stopped."""

    async def body() -> AsyncGenerator[bytes, None]:
        yield b"data: {}\n\n"
        yield b"data: [DONE]\n\n"

    async def aborted() -> list[bytes]:
        sent: list[bytes] = []

        async def send(message: Any) -> None:
            if b"[DONE]" in message.get("body", b"") and exchange.aborted_by is None:
                exchange.abort(Draining("The server ends."))
                await asyncio.sleep(60)  # uvicorn waits here, before it writes
            sent.append(message.get("body", b""))

        async def receive() -> Any:
            await asyncio.Event().wait()

        scope: dict[str, Any] = {"type": "http", "path": "/", "headers": []}
        exchange = scope["app.exchange"] = Exchange(scope, receive, send, 1000)
        await event_stream.EventStream(opened(body))(scope, receive, send)
        return sent

    *_, error = asyncio.run(aborted())
    assert b'"draining"' in error
    assert error.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("way", ["send", "middleware"])
def test_events_are_written_without_the_task_unless_a_middleware_wants_to_see_them(way: str) -> None:
    async def written() -> list[Any]:
        async def body() -> AsyncGenerator[bytes, Any]:
            yield b"data: 1\n\n"
            writes.append((yield b"data: 2\n\n"))
            yield b"data: [DONE]\n\n"

        async def send(_: Any) -> None: ...
        async def middleware(message: Any) -> None:
            await exchange.send(message)

        async def receive() -> Any:
            await asyncio.Event().wait()

        writes: list[Any] = []
        scope: dict[str, Any] = {"type": "http", "path": "/", "headers": []}
        scope["app.exchange"] = exchange = Exchange(scope, receive, send, 1000)
        stream = event_stream.EventStream(opened(body))
        await stream(scope, receive, exchange.send if way == "send" else middleware)
        return writes

    assert [write is not None for write in asyncio.run(written())] == [way == "send"]


def test_packets_that_come_one_by_one_wake_no_task(ask: Ask, provider: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[Any] = []
    send = Exchange.send

    async def noted(self: Exchange, message: Any) -> None:
        woken.append(message)
        await send(self, message)

    monkeypatch.setattr(Exchange, "send", noted)
    provider.default = Behaviour(text="one two three four five six seven eight nine ten", pace=0.05)
    with ask("direct", stream=True) as call:
        events = list(call.events)
    assert len(events) > 10
    assert events[-1] == "data: [DONE]"
    assert len(woken) == 3, "the head, the first packet and the last"
