"""Whatever a provider does, a client gets a whole answer or the right error, in time, and leaves nothing behind.

Each behaviour of the stub is crossed by OpenAI's own client, whole and streamed, on each way to a provider.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.serving import Backend
from tests.stub import TEXT, Behaviour, Stub
from tests.template.faults import FAULTS, LEGAL_VARIANTS, Fault
from tests.template.running import Ask, row, running

# LiteLLM runs in this process, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")

WAYS = ("direct", "litellm", "anthropic")
KINDS = ("whole", "stream")
SOON = 30
"""Seconds, generous, and less than any usual time limit: a slow fault is found by a limit that is made short."""


def say_hello(backend: "Backend | Hasty", model: str, kind: str) -> str:
    """Ask for an answer; return the text, or raise what OpenAI's client raises.

    A stream is read to the end of its bytes first, since the client itself stops at an error and at `[DONE]`.
    """
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    if kind == "whole":
        return backend.client.chat.completions.create(**asked).choices[0].message.content or ""
    with backend.client.chat.completions.with_streaming_response.create(**asked, stream=True) as response:
        body = response.read()
        assert body.endswith(b"data: [DONE]\n\n")
        assert body.count(b"[DONE]") == 1
        # httpx's in SDK 2, httpx2's in SDK 3.
        recorded = type(response.http_response)(
            200, content=body, headers=response.headers, request=response.http_request
        )
    stream = openai.Stream(cast_to=ChatCompletionChunk, response=recorded, client=backend.client)
    choices = [choice for chunk in stream for choice in chunk.choices]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    return "".join(choice.delta.content or "" for choice in choices)


class Hasty:
    """A server in this process, one of whose time limits can be short for a while.

    Attributes:
        stub: the provider of all of its models.
        client: OpenAI's own, with a key and without retries.
        upstreams: what the stub is asked for, by the model's public name.
    """

    def __init__(self, ask: Ask, stub: Stub, client: openai.OpenAI) -> None:
        self._ask, self.stub, self.client = ask, stub, client
        self.upstreams = UPSTREAMS

    def waiting(self, fault: Fault, kind: str) -> contextlib.AbstractContextManager[None]:
        """Make the one limit short that finds a fault: what has to arrive before it has all the time it needs."""
        if kind == "whole":
            return self._ask.waiting(total=0.3)
        if fault.behaviour.repeat > 1:
            return self._ask.waiting(total=2)
        return self._ask.waiting(**{"idle" if fault.begun else "first_token": 0.3})


UPSTREAMS = {"direct": "gpt-4o", "litellm": "gpt-4.1", "anthropic": "claude-sonnet-4-5"}


@pytest.fixture(scope="module")
def hasty(key: str) -> Iterator[Hasty]:
    with Stub() as stub:
        models = {
            "direct": row(stub, upstream="openai/gpt-4o"),
            "litellm": row(stub, upstream="openai/gpt-4.1", protocol="litellm"),
            "anthropic": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": stub.url},
        }
        with (
            running(key, models) as ask,
            openai.OpenAI(base_url=f"{ask.url}/v1", api_key=key, max_retries=0) as client,
        ):
            yield Hasty(ask, stub, client)


@contextlib.contextmanager
def behaving(stub: Stub, behaviour: Behaviour) -> Iterator[None]:
    """Let a provider misbehave for a while."""
    stub.default = behaviour
    try:
        yield
    finally:
        stub.default = Behaviour()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LEGAL_VARIANTS)
def test_a_legal_variant_gives_the_whole_answer(backend: Backend, name: str, kind: str, way: str) -> None:
    with behaving(backend.stub, LEGAL_VARIANTS[name]):
        assert say_hello(backend, way, kind) == LEGAL_VARIANTS[name].text


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(fault, kind, id=f"{name}-{kind}")
        for name, fault in FAULTS.items()
        for kind in KINDS
        if kind in fault.answers
    ],
)
def test_a_fault_gives_the_error_of_the_table_and_leaves_nothing_behind(
    request: pytest.FixtureRequest, fault: Fault, kind: str
) -> None:
    backend: Backend | Hasty = request.getfixturevalue("hasty" if fault.slow else "backend")
    waiting = backend.waiting(fault, kind) if isinstance(backend, Hasty) else contextlib.nullcontext()
    ways = [way for way in WAYS if fault.anthropic or way != "anthropic"]
    before, asked_at = len(backend.stub.requests), time.monotonic()
    with waiting, behaving(backend.stub, fault.behaviour), ThreadPoolExecutor(len(ways)) as pool:
        attempts = {way: pool.submit(say_hello, backend, way, kind) for way in ways}
    assert time.monotonic() - asked_at < SOON

    for way in ways:
        error = attempts[way].exception()
        assert isinstance(error, openai.APIError)
        check_error(error, fault, way, begun=fault.begun and kind == "stream")
        requests = [r for r in backend.stub.requests[before:] if r.body["model"] == backend.upstreams[way]]
        # LiteLLM asks some providers once more, by itself, when it gets no answer at all.
        assert len(requests) == 1 or (way != "direct" and fault.behaviour.status == 0)
        assert all(request.answered or request.closed.wait(SOON) for request in requests)
        assert say_hello(backend, way, kind) == TEXT


def check_error(error: openai.APIError, fault: Fault, way: str, *, begun: bool) -> None:
    """Hold an error against the fault's row of the table."""
    if begun:
        assert not isinstance(error, openai.APIStatusError), "the stream had begun"
    else:
        assert isinstance(error, openai.APIStatusError), "not a byte had been sent"
        assert error.status_code == fault.status
        assert _retry_after(error.response.headers, fault)
        assert (error.response.headers.get("x-should-retry") == "false") == (fault.code == "provider_misconfigured")
    assert error.code == fault.code
    assert error.type == {400: "invalid_request_error", 429: "rate_limit_error"}.get(fault.status, "server_error")
    assert isinstance(error.body, dict)
    if fault.status == 400 and fault.behaviour.body is None:
        assert error.body["message"] == Behaviour.message
    else:
        assert f"{way!r}" in error.body["message"]


def _retry_after(headers: Mapping[str, str], fault: Fault) -> bool:
    sent = headers.get("retry-after")
    if fault.retry_after is None:
        return sent is None
    return sent is not None and fault.retry_after / 2 < int(sent) <= fault.retry_after
