"""Callers and models stay within their limits, which OpenAI's headers tell."""

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from app import middleware
from app.access.estimate import estimate as estimated
from app.config import ModelEntry, Settings
from app.errors import RateLimited
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from tests import limited
from tests.limited import EMBEDDINGS, USED, Served, is_refused, remaining, until
from tests.stub import PROMPT_TOKENS, TEXT, Behaviour, Stub
from tests.wire import CHAT, HELLO, Call

STALLS = Behaviour(stall_after=3)
DONE = b"data: [DONE]\n\n"


client = pytest.fixture(scope="module")(limited.client)
served = pytest.fixture(limited.served)
clock = pytest.fixture(autouse=True)(limited.clock)


# Requests.


def test_requests_are_counted_to_the_limit_and_told_in_openais_headers(served: Callable[..., Served]) -> None:
    server = served(requests_per_minute=3)
    answers = [server.ask() for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["x-ratelimit-limit-requests"] for answer in answers] == ["3"] * 5
    assert [remaining(answer, "requests") for answer in answers] == [2, 1, 0, 0, 0]
    for answer in answers:
        reset = re.fullmatch(r"(\d+\.\d{3})s", answer.headers["x-ratelimit-reset-requests"])
        assert reset
        assert 0 < float(reset[1]) <= 60
        assert is_refused(answer) == ("retry-after" in answer.headers)
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert "This caller has reached its limit of 3 requests a minute." in answers[-1].text


def test_a_streams_headers_tell_the_limits_too(served: Callable[..., Served]) -> None:
    with served(requests_per_minute=3, tokens_per_minute=9000).stream() as call:
        assert call.headers["x-ratelimit-remaining-requests"] == "2"
        assert 0 < int(call.headers["x-ratelimit-remaining-tokens"]) < 9000


def test_one_callers_limit_is_not_another_s(served: Callable[..., Served]) -> None:
    server = served(requests_per_minute=1)
    assert [is_refused(server.ask(key)) for key in "aabb"] == [False, True, False, True]


def test_a_models_limit_binds_all_callers_and_no_other_model(served: Callable[..., Served]) -> None:
    server = served(model={"requests_per_minute": 1})
    assert [is_refused(server.ask(key)) for key in "ab"] == [False, True]
    assert "This model has reached" in server.ask("b").text
    assert not is_refused(server.ask("b", model="demo"))


def test_headers_tell_the_tighter_of_two_limits(served: Callable[..., Served]) -> None:
    server = served(requests_per_minute=5, model={"requests_per_minute": 3})
    assert server.ask().headers["x-ratelimit-limit-requests"] == "3"
    assert server.ask(model="demo").headers["x-ratelimit-limit-requests"] == "5"


def test_who_has_no_limit_is_told_of_none(served: Callable[..., Served]) -> None:
    assert not [name for name in served().ask().headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("limit", [{"requests_per_minute": 2}, {"tokens_per_minute": 2100}], ids=str)
def test_who_waits_as_long_as_retry_after_says_is_let_in(
    served: Callable[..., Served], clock: SimpleNamespace, stub: Stub, limit: dict[str, int]
) -> None:
    server = served(**limit)
    stub.default = Behaviour(text="word " * 1040)
    assert not is_refused(server.ask())
    clock.now += 0.4
    server.ask()
    clock.now += 20.25
    refused = server.ask()
    assert is_refused(refused)
    assert refused.headers["retry-after"] == "40"
    clock.now += 38
    assert is_refused(server.ask())
    clock.now += 2
    assert not is_refused(server.ask())


def test_refused_requests_do_not_lengthen_the_wait(served: Callable[..., Served], clock: SimpleNamespace) -> None:
    server = served(requests_per_minute=1)
    for _ in range(10):
        server.ask()
        clock.now += 6.1
    assert not is_refused(server.ask())


# Tokens.


def test_tokens_are_reserved_before_a_call_and_settled_after_it(served: Callable[..., Served]) -> None:
    server = served(tokens_per_minute=9000)
    first, second, third = (server.ask(max_tokens=1000) for _ in range(3))
    assert first.headers["x-ratelimit-limit-tokens"] == "9000"
    estimate = 9000 - 1000 - remaining(first)
    assert 0 < estimate < 50
    assert remaining(second) == remaining(first) - USED
    assert remaining(third) == remaining(first) - 2 * USED


def test_what_is_reserved_is_not_given_to_another_call(served: Callable[..., Served], stub: Stub) -> None:
    server = served(tokens_per_minute=1500)
    stub.queue(STALLS)
    with server.stream(max_tokens=1000) as call:
        next(call.events)
        assert is_refused(server.ask(max_tokens=1000))
        assert not is_refused(server.ask(max_tokens=100))


def test_a_request_that_is_too_large_alone_is_told_not_to_come_again(served: Callable[..., Served]) -> None:
    server = served(tokens_per_minute=500)
    refused = server.ask(max_tokens=600)
    assert is_refused(refused)
    assert "lower max_tokens" in refused.json()["detail"]
    assert "retry-after" not in refused.headers
    assert refused.headers["x-should-retry"] == "false"
    assert remaining(server.ask(max_tokens=1)) > 450


@pytest.mark.parametrize(
    ("behaviour", "used"),
    [
        (Behaviour(), USED),
        (Behaviour(usage=False), "what was seen"),
        (Behaviour(status=500), 0),
        (Behaviour(status=0), "what was reserved"),
        (Behaviour(body=b'{"choices": [], "usage": {"prompt_tokens": -5}}'), "what was reserved"),
        (Behaviour(cut_after=3), "what was reserved"),
    ],
    ids=["whole", "without usage", "refused", "disconnected", "nonsense", "cut off"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_takes_what_its_provider_says_or_what_was_seen_or_what_was_reserved(
    served: Callable[..., Served], stub: Stub, behaviour: Behaviour, used: int | str, stream: bool
) -> None:
    server = served(tokens_per_minute=9000)
    reserved = 9000 - remaining(server.ask(max_tokens=100))
    stub.queue(behaviour)
    server.ask(max_tokens=100, stream=stream)
    bounds = {"what was seen": (USED / 2, 99), "what was reserved": (reserved, reserved + 9)}
    lowest, highest = (used, used) if isinstance(used, int) else bounds[used]
    for asked in range(1, 50):
        time.sleep(0.02)  # a stream is settled soon after its last byte
        taken = 9000 - remaining(server.ask(max_tokens=100)) - reserved - asked * USED
        if lowest <= taken <= highest:
            break
    assert lowest <= taken <= highest


def test_embeddings_take_tokens_too(served: Callable[..., Served]) -> None:
    server = served(tokens_per_minute=9000)
    first, second = (server.ask(path=EMBEDDINGS, input="Hello") for _ in range(2))
    assert remaining(second) == remaining(first) - PROMPT_TOKENS


def test_a_stream_whose_client_left_keeps_what_was_reserved(served: Callable[..., Served], stub: Stub) -> None:
    """Else whoever leaves after the first word would get what a model thinks, or all of its text, for nothing."""
    server = served(tokens_per_minute=9000)
    stub.queue(Behaviour(text="word " * 30, stall_after=25))
    with server.stream(max_tokens=4000) as call:
        for _ in range(20):
            next(call.events)
    assert stub.requests[0].closed.wait(20)
    assert 9000 - 4000 - 40 - USED < remaining(server.ask(max_tokens=10)) < 9000 - 4000


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_whose_client_left_before_anything_came_keeps_what_was_reserved(
    served: Callable[..., Served], stub: Stub, stream: bool
) -> None:
    """Else whoever hangs up in time would use a provider for nothing."""
    server = served(tokens_per_minute=9000)
    stub.queue(Behaviour(delay_headers=60))
    with Call(server.url, "a", max_tokens=4000, stream=stream):
        assert stub.wait_until(lambda: bool(stub.requests))
    assert stub.requests[0].closed.wait(20)
    assert remaining(server.ask(max_tokens=10)) < 5000


def test_the_application_s_own_calls_are_bound_by_the_models_limits_alone(stub: Stub) -> None:
    entry = ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1", requests_per_minute=2)

    async def calls() -> None:
        async with Upstreams(Settings(models={"m": entry}, default_model="m")) as upstreams:
            llm = LLMClient(upstreams)
            for _ in range(2):
                await llm.complete(messages=HELLO)
            with pytest.raises(RateLimited, match="This model has reached"):
                await llm.complete(messages=HELLO)

    asyncio.run(calls())


# Calls in flight.


@pytest.mark.parametrize("kind", ["caller", "model"])
def test_calls_in_flight_are_counted_to_the_limit(served: Callable[..., Served], stub: Stub, kind: str) -> None:
    limit = {"max_in_flight": 2}
    server = served(**(limit if kind == "caller" else {"model": limit}))
    stub.default = STALLS
    with server.stream() as first, server.stream() as second:
        next(first.events)
        next(second.events)
        refused = server.ask()
        assert is_refused(refused)
        assert refused.headers["retry-after"] == "1"
        assert f"This {kind} already has 2 calls in flight, its limit." in refused.text
        stub.default = Behaviour()
        assert is_refused(server.ask("b")) == (kind == "model")
        first.leave()
        assert until(server.ask, lambda answer: answer.status_code == 200).status_code == 200


def test_a_refused_call_holds_no_place(served: Callable[..., Served]) -> None:
    server = served(max_in_flight=1, requests_per_minute=1)
    assert [is_refused(server.ask()) for _ in range(3)] == [False, True, True]
    assert "requests a minute" in server.ask().text


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(status=500), Behaviour(cut_after=2)], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_has_ended_leaves_its_place(
    served: Callable[..., Served], stub: Stub, behaviour: Behaviour, stream: bool
) -> None:
    server = served(max_in_flight=1)
    stub.default = behaviour
    assert 429 not in [server.ask(stream=stream).status_code for _ in range(3)]


def test_a_stream_leaves_its_place_with_its_last_event(served: Callable[..., Served], stub: Stub) -> None:
    """Though its provider does not end the response."""
    server = served(max_in_flight=1)
    for _ in range(3):
        stub.queue(Behaviour(stall_after=2 + len(TEXT.split()) + 2))
        with server.stream() as call:
            assert call.body.endswith(DONE)
        assert not is_refused(server.ask())


# The process's own limit.


def test_a_process_that_has_too_much_to_do_refuses_more_but_answers_probes(
    served: Callable[..., Served], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "WAIT_FOR_PLACE", 0.1)
    server = served(settings={"max_in_flight": 1})
    stub.default = STALLS
    with server.stream() as call:
        next(call.events)
        for path in (CHAT, EMBEDDINGS):
            refused = server.ask(path=path, **({"input": "x"} if path == EMBEDDINGS else {}))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
        for path in ("/health", "/ready", "/metrics"):
            key = {"Authorization": "Bearer a"}
            assert httpx2.get(server.url + path, headers=key, timeout=60).status_code == 200
    stub.default = Behaviour()
    assert until(server.ask, lambda answer: answer.status_code == 200).status_code == 200


def test_a_request_waits_a_moment_for_its_place(
    served: Callable[..., Served], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "WAIT_FOR_PLACE", 30)
    server = served(settings={"max_in_flight": 1})
    stub.queue(Behaviour(delay_headers=0.2))
    with ThreadPoolExecutor(2) as pool:
        assert [answer.status_code for answer in pool.map(lambda _: server.ask(), range(2))] == [200, 200]


# Images and sound.


def message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}]}


@pytest.mark.parametrize(
    "upstream", ["openai/gpt-4o", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash", "own/m"]
)
def test_an_image_takes_an_images_tokens_however_many_bytes_it_has(upstream: str) -> None:
    def tokens(size: int, **more: Any) -> int:
        url = "data:image/png;base64," + "A" * size
        return estimated(message({"type": "image_url", "image_url": {"url": url, **more}}), upstream)

    alone = estimated(message(), upstream)
    assert tokens(1_400_000) == tokens(100)
    assert 80 < tokens(100) - alone < 4000
    assert tokens(1_400_000, detail="low") - alone < 120


def test_sound_takes_ten_tokens_a_second() -> None:
    second = "A" * (16_000 * 2 * 4 // 3)
    sound = {"type": "input_audio", "input_audio": {"data": second * 60, "format": "wav"}}
    assert 500 < estimated(message(sound)) - estimated(message()) < 1000
