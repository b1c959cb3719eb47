"""Streams at length, against `python -m app` as it stands: a hundred clients that leave, and readers that stop."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from operations.servers import TEXT, Behaviour, Call, Process, Stub, text_of

KEY = "sk-app-test"
TIMES = 100
AT_ONCE = 0.2
"""Seconds within which a call to a provider is closed after its client has left."""
AT_BUSY_TIMES = 5
"""The same, for the one time in ten in which a busy machine may hold up this test."""
STOP = 4
"""Seconds for which a reader stops."""
EVENTS = 4_000
MEGABYTE = 1_000_000
BIG = Behaviour(text="x" * 10_000, repeat=EVENTS)
"""A stream of 40 MB."""

MOMENTS = {
    "a stream that flows": (Behaviour(repeat=10_000, pace=0.001), True, True),
    "a silent stream": (Behaviour(stall_after=5), True, True),
    "a stream before its first event": (Behaviour(stall_after=0), True, False),
    "a stream before its headers": (Behaviour(delay_headers=60), True, False),
    "an answer before its end": (Behaviour(stall_after=2), False, False),
    "an answer before its headers": (Behaviour(delay_headers=60), False, False),
}
"""What a client leaves: how its provider behaves, whether it is a stream, and whether it has begun."""

ways = pytest.mark.parametrize("way", ["direct", "litellm", "anthropic"])


@dataclass
class Server:
    process: Any
    stub: Any

    def ask(self, way: str, behaviour: Any, **fields: Any) -> Any:
        """Ask a provider that behaves so; return as soon as it has been asked."""
        before = len(self.stub.requests)
        self.stub.queue(behaviour)
        call = Call(self.process.url, KEY, model=way, **fields)
        assert self.stub.wait_until(lambda: len(self.stub.requests) > before)
        return call


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Stub() as stub:
        api = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}
        models = {
            "direct": api,
            "litellm": api | {"protocol": "litellm"},
            "anthropic": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": stub.url},
        }
        env = {
            "APP_MODELS": json.dumps(models),
            "APP_DEFAULT_MODEL": "direct",
            "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}}),
            "APP_RETRIES": "0",
        }
        with Process(env=env) as process:
            process.wait_until_ready()
            server = Server(process, stub)
            for way in models:  # LiteLLM does much of its work at its first call
                with server.ask(way, Behaviour(), stream=True) as call:
                    assert text_of(list(call.events)) == TEXT
            yield server


@ways
@pytest.mark.parametrize("moment", MOMENTS)
def test_whoever_leaves_takes_the_upstream_call_along_a_hundred_times_out_of_a_hundred(
    server: Server, way: str, moment: str
) -> None:
    behaviour, stream, begun = MOMENTS[moment]
    seconds = []
    for _ in range(TIMES):
        with server.ask(way, behaviour, stream=stream) as call:
            if begun:
                next(call.events)
        left_at = time.monotonic()
        upstream = server.stub.requests[-1]
        assert upstream.closed.wait(10), "the upstream call goes on"
        seconds.append(upstream.closed_at - left_at)
    assert sorted(seconds)[TIMES * 9 // 10] < AT_ONCE
    assert max(seconds) < AT_BUSY_TIMES


@ways
def test_a_reader_that_stops_costs_no_memory_and_then_gets_all(server: Server, way: str) -> None:
    process, stub = server.process, server.stub
    with server.ask(way, BIG, stream=True, window=64_000) as call:  # takes what memory there is to take
        next(call.events)
        time.sleep(1)
    assert stub.wait_until(lambda: stub.in_flight == 0)
    before = process.rss
    with server.ask(way, BIG, stream=True, window=64_000, patience=120) as call:
        first = next(call.events)
        time.sleep(STOP)
        grown = process.rss - before
        assert stub.requests[-1].sent < 30 * MEGABYTE, "the provider is held back"
        read = sum(event.count("x" * 10_000) for event in [first, *call.events])
    assert grown < 5 * MEGABYTE
    assert process.rss - before < 10 * MEGABYTE
    assert read == EVENTS
