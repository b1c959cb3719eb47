"""A model of your own takes what its calls of other models take, once: of its caller, of each model, and in metrics."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace

import pytest

from app.access.callers import hash_key
from app.llm.client import LLMClient
from app.models import ChatChunk, ChatRequest
from tests.stub import Behaviour, Stub
from tests.template.running import Ask, row, running
from tests.wire import HELLO

LIMIT = 1_000_000
ASKED = 1000
"""The answer's bound, which is what is reserved for it."""
EACH = 15
"""Tokens that the stub tells of each answer."""


async def twice(request: ChatRequest, llm: LLMClient) -> AsyncGenerator[str | ChatChunk, None]:
    yield f"{(await llm.complete(model='inner', messages=request.messages)).content} / "
    async for chunk in llm.stream(model="inner", messages=request.messages):
        yield chunk


async def failing(request: ChatRequest, llm: LLMClient) -> AsyncGenerator[str, None]:
    await llm.complete(model="inner", messages=request.messages)
    raise LookupError
    yield ""


async def impatient(request: ChatRequest, llm: LLMClient) -> AsyncGenerator[str, None]:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await llm.complete(model="inner", messages=request.messages, max_tokens=ASKED)
    yield "It took too long."


async def alone(_request: ChatRequest, _: LLMClient) -> AsyncGenerator[str, None]:
    yield "A text of some words."


@pytest.fixture
def ask(stub: Stub, key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    functions = {function.__name__: function for function in (twice, failing, impatient, alone)}
    monkeypatch.setattr("app.main.own", SimpleNamespace(models=functions))
    limited = {"tokens_per_minute": LIMIT}
    models = {
        **{name: {"upstream": f"own/{name}", **limited} for name in functions},
        "safe": {"upstream": "own/failing", "fallbacks": ["inner"]},
        "inner": row(stub, **limited),
        "demo": {"upstream": "demo/echo"},
    }
    callers = {"test": {"key_sha256": hash_key(key), "requests_per_minute": 100, "max_in_flight": 9, **limited}}
    with running(key, models, callers=callers) as ask:
        yield ask


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_is_charged_once_with_what_own_code_took(ask: Ask, stream: bool) -> None:
    call = ask("twice", messages=HELLO, stream=stream, max_tokens=ASKED)
    assert call.status == 200
    assert call.body
    assert ask.taken("caller/test") == ask.taken("model/twice") == ask.taken("model/inner") == 2 * EACH


@pytest.mark.parametrize("stream", [False, True])
def test_a_metric_counts_the_tokens_of_own_code_once(ask: Ask, stream: bool) -> None:
    assert ask("twice", messages=HELLO, stream=stream).body
    ask.taken("caller/test")
    counted = {line for line in ask.metrics if line.startswith("llm_tokens_total{")}
    assert counted == {
        'llm_tokens_total{caller="test",direction="in",model="inner"} 14.0',
        'llm_tokens_total{caller="test",direction="out",model="inner"} 16.0',
    }


def test_own_code_that_calls_no_model_costs_nothing(ask: Ask) -> None:
    assert ask("alone", messages=HELLO).body
    assert ask.taken("caller/test") == ask.taken("model/alone") == 0


def test_what_own_code_took_before_it_failed_is_charged(ask: Ask) -> None:
    assert ask("failing", messages=HELLO).status == 500
    assert ask.taken("caller/test") == ask.taken("model/failing") == ask.taken("model/inner") == EACH


def test_a_fallback_is_charged_beside_the_own_code_that_failed(ask: Ask) -> None:
    assert ask("safe", messages=HELLO).status == 200
    assert ask.taken("caller/test") == ask.taken("model/inner") == 2 * EACH


def test_a_reservation_stays_if_a_call_of_own_code_may_have_taken_more(ask: Ask, stub: Stub) -> None:
    stub.queue(Behaviour(delay_headers=60))
    assert ask("impatient", messages=HELLO, max_tokens=ASKED).status == 200
    assert ask.taken("model/inner") >= ASKED
    assert ask.taken("caller/test") >= ASKED


def test_own_code_takes_one_request_of_its_caller(ask: Ask) -> None:
    assert ask("twice", messages=HELLO).headers["x-ratelimit-remaining-requests"] == "99"
    assert ask("demo", messages=HELLO).headers["x-ratelimit-remaining-requests"] == "98"
