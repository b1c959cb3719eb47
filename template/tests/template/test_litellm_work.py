"""LiteLLM does no work for a call that nobody reads."""

from collections.abc import Iterator

import pytest

from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import Ask, running

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
    monkeypatch.setattr(
        CustomStreamWrapper, "chunk_creator", lambda self, chunk: taken.append(chunk) or create(self, chunk)
    )
    words = 50
    stub.default = Behaviour(text="Hello " * words)
    with ask("anthropic", stream=True) as call:
        sent = list(call.events)
    stub.default = Behaviour()
    assert len(sent) > words
    assert len(taken) < len(sent) + 10
