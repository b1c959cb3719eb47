"""LiteLLM does no work for a call that nobody reads."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from app.llm.litellm_clients import close_clients
from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import Ask, running
from tests.wire import text_of

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def ask(stub: Stub, key: str) -> Iterator[Ask]:
    with running(key, {"anthropic": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": stub.url}}) as ask:
        yield ask


def test_litellms_wrapper_gets_one_chunk_for_an_event_and_none_for_its_other_lines(
    ask: Ask, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper

    taken = []
    create = CustomStreamWrapper.chunk_creator

    def noting(self: Any, chunk: Any) -> Any:
        taken.append(chunk)
        return create(self, chunk)

    monkeypatch.setattr(CustomStreamWrapper, "chunk_creator", noting)
    words = 50
    stub.default = Behaviour(text="Hello " * words)
    with ask("anthropic", stream=True) as call:
        sent = list(call.events)
    stub.default = Behaviour()
    assert len(sent) > words
    assert len(taken) < len(sent) + 10


def priced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the model of each call whose cost LiteLLM works out."""
    from litellm import cost_calculator

    found: list[str] = []
    work_out = cost_calculator.completion_cost

    def noting(*arguments: Any, **given: Any) -> float:
        found.append(given["model"])
        return work_out(*arguments, **given)

    monkeypatch.setattr(cost_calculator, "completion_cost", noting)
    return found


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_litellm_works_out_no_cost_of_our_calls(ask: Ask, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices are the model table's, in micro-dollars. `cache` is a callback that LiteLLM sets itself, for Gemini."""
    import litellm

    monkeypatch.setattr(litellm, "success_callback", ["cache"])
    found = priced(monkeypatch)
    with ask("anthropic", stream=stream) as call:
        assert call.status == 200
        assert list(call.events) if stream else call.json["content"] == TEXT
    assert not found


async def in_a_coroutine(*_: Any) -> None:
    """Do nothing. LiteLLM moves such a callback to another list at the next call."""


@pytest.mark.parametrize("callback", [lambda *_: None, in_a_coroutine], ids=["function", "coroutine"])
def test_litellm_works_out_the_cost_of_our_calls_for_a_callback(
    ask: Ask, callback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    monkeypatch.setattr(litellm, "success_callback", [callback])
    monkeypatch.setattr(litellm, "_async_success_callback", [])
    assert ask("anthropic").json["content"] == TEXT
    found = priced(monkeypatch)
    assert ask("anthropic").json["content"] == TEXT
    assert found


def test_litellm_works_out_the_cost_of_calls_that_are_not_ours(
    ask: Ask, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    async def call() -> None:
        hello = [{"role": "user", "content": "Hello"}]
        await litellm.acompletion("anthropic/claude-sonnet-4-5", hello, api_base=stub.url, api_key="none")
        await close_clients(litellm)

    assert ask("anthropic").status == 200
    found = priced(monkeypatch)
    asyncio.run(call())
    assert found


def test_the_connection_of_a_stream_is_used_again(ask: Ask, stub: Stub) -> None:
    """Anthropic's last event, and the end of its response, come after what LiteLLM's wrapper waits for."""
    stub.default = Behaviour(pace=0.02)
    first = len(stub.requests)
    for _ in range(2):
        with ask("anthropic", stream=True) as call:
            assert text_of(list(call.events)) == TEXT
    assert not stub.requests[first].closed.is_set()
    stub.default = Behaviour()


def test_a_stream_that_does_not_end_after_its_finish_reason_is_whole(ask: Ask, stub: Stub) -> None:
    stub.default = Behaviour(stall_after=len([*Behaviour().words()]) + 5)  # all but the last event
    with ask("anthropic", stream=True) as call:
        assert text_of(list(call.events)) == TEXT
    assert stub.requests[-1].closed.wait(30)
    stub.default = Behaviour()
