"""The typed client takes what the wire brings; what no one could read is the provider's error, never a 500 of ours."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from app.config import ModelEntry, Settings
from app.errors import ProviderError, UnfitAnswer
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from app.models import ChatChunk
from tests.stub import Behaviour, Stub

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
SSE = {"content-type": "text/event-stream"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def llm(stub: Stub) -> AsyncIterator[LLMClient]:
    models = {"m": ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1")}
    async with Upstreams(Settings(models=models, default_model="m", retries=0)) as upstreams:
        yield LLMClient(upstreams)


def whole(choice: Any, **more: Any) -> Behaviour:
    return Behaviour(body=json.dumps({"id": "a", "choices": [choice]} | more).encode())


def stream(*chunks: Any) -> Behaviour:
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return Behaviour(body="".join([*events, "data: [DONE]\n\n"]).encode(), headers=SSE)


def piece(delta: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "a", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} | more


GOOD = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
NULLS = dict.fromkeys(("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier"))
COUNTS = {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None, "prompt_tokens_details": None}

ANSWERS = {
    "nulls": whole(GOOD, **NULLS),
    "usage of nulls": whole(GOOD, usage=COUNTS),
    "no usage and no id": whole(GOOD),
    "an index of null": whole(GOOD | {"index": None, "logprobs": None}),
    "a role of null": whole(GOOD | {"message": {"role": None, "content": "Hello", "tool_calls": None}}),
    "a list of parts": whole(
        GOOD | {"message": {"content": [{"type": "text", "text": "Hel"}, {"type": "thinking"}, {"text": "lo"}]}}
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_may_lack_all_but_its_text(llm: LLMClient, stub: Stub, name: str) -> None:
    stub.queue(ANSWERS[name])
    answer = await llm.complete(messages=MESSAGES)
    assert answer.content == answer.choices[0].message.content == "Hello"
    assert answer.choices[0].message.role == "assistant"
    assert (answer.usage.prompt_tokens, answer.choices[0].index) == (0, 0)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "choice", [{"index": 0, "finish_reason": "content_filter"}, {"message": None}, {"message": {"content": None}}]
)
async def test_a_choice_may_have_no_message(llm: LLMClient, stub: Stub, choice: Any) -> None:
    stub.queue(whole(choice))
    answer = await llm.complete(messages=MESSAGES)
    assert answer.content is None
    assert answer.choices[0].message.content is None


class Greeting(BaseModel):
    word: str


@pytest.mark.anyio
async def test_a_list_of_parts_is_parsed_as_its_text(llm: LLMClient, stub: Stub) -> None:
    stub.queue(whole(GOOD | {"message": {"content": [{"type": "thinking"}, {"text": '{"word": '}, {"text": '"Hi"}'}]}}))
    assert await llm.parse(Greeting, messages=MESSAGES, repairs=0) == Greeting(word="Hi")


@pytest.mark.anyio
@pytest.mark.parametrize("choice", [{"index": 0, "finish_reason": "content_filter"}, {"message": None}])
async def test_a_choice_without_a_message_fits_no_type(llm: LLMClient, stub: Stub, choice: Any) -> None:
    stub.queue(whole(choice))
    with pytest.raises(UnfitAnswer):
        await llm.parse(Greeting, messages=MESSAGES, repairs=0)


STREAMS = {
    "nulls": stream(piece({"content": "Hello"}, **NULLS), piece({"content": None, "role": None}, "stop", **NULLS)),
    "deltas of null": stream(piece(None), piece({"content": "Hello"}), piece(None, "stop")),
    "trailing usage": stream(
        piece({"content": "Hello"}), piece({}, "stop"), {"usage": {"prompt_tokens": 7, "completion_tokens": None}}
    ),
    "trailing usage without choices": stream(
        piece({"content": "Hello"}), piece({}, "stop"), {"choices": None, "usage": {"prompt_tokens": 7}}
    ),
    "a list of parts": stream(
        piece({"content": [{"type": "text", "text": "Hel"}]}), piece({"content": [{"text": "lo"}]}, "stop")
    ),
    "an index of null": stream({"choices": [{"index": None, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_may_lack_all_but_its_text(llm: LLMClient, stub: Stub, name: str) -> None:
    stub.queue(STREAMS[name])
    options: Any = {"stream_options": {"include_usage": True}}
    chunks: list[ChatChunk] = [chunk async for chunk in llm.stream(messages=MESSAGES, **options)]
    assert "".join(chunk.content for chunk in chunks) == "Hello"
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["stop"]
    if "usage" in name:
        assert chunks[-1].usage
        assert chunks[-1].usage.prompt_tokens == 7


UNREADABLE = {
    "a choice of null": whole(None),
    "choices of null": whole(GOOD, choices=None),
    "no choices": whole(GOOD, choices=[]),
    "a choice that is a list": whole([]),
    "a message that is a text": whole({"message": "Hello"}),
    "a number for a text": whole({"message": {"content": 7}}),
    "an absurd count": whole(GOOD, usage={"prompt_tokens": "many"}),
    "a count of infinity": Behaviour(body=b'{"choices": [{"message": {"content": "x"}}], "created": 1e999}'),
    "a list": Behaviour(body=b"[]"),
    "null": Behaviour(body=b"null"),
    "lists 100,000 deep": Behaviour(body=b"[" * 100_000),
    "objects 5,000 deep": Behaviour(body=b'{"choices":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", UNREADABLE)
async def test_an_answer_that_can_not_be_read_is_the_providers_error(llm: LLMClient, stub: Stub, name: str) -> None:
    stub.queue(UNREADABLE[name])
    with pytest.raises(ProviderError, match="can't be read") as error:
        await llm.complete(messages=MESSAGES)
    assert error.value.code == "provider_error"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [None]},
        {"choices": ["Hello"]},
        {"choices": 7},
        {"choices": [{"index": 0, "delta": "Hello"}]},
        {"choices": [{"index": 0, "delta": {"content": 7}}]},
        {"choices": [{"index": [], "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": 7},
        {"choices": [], "usage": {"prompt_tokens": "many"}},
    ],
)
async def test_a_chunk_that_can_not_be_read_is_the_providers_error(llm: LLMClient, stub: Stub, chunk: Any) -> None:
    stub.queue(stream(piece({"content": "Hello"}), chunk, piece({}, "stop")))
    options: Any = {"stream_options": {"include_usage": True}}
    with pytest.raises(ProviderError, match="can't be read"):
        [chunk async for chunk in llm.stream(messages=MESSAGES, **options)]


async def greet(word: str) -> str:
    return word


@pytest.mark.anyio
@pytest.mark.parametrize("asked", [{"function": "greet"}, {"index": []}], ids=str)
async def test_a_call_of_a_tool_that_can_not_be_read_is_the_providers_error(
    llm: LLMClient, stub: Stub, asked: Any
) -> None:
    stub.queue(stream(piece({"tool_calls": [asked]}, "tool_calls")))
    with pytest.raises(ProviderError, match="can't be read"):
        [event async for event in llm.run(messages=MESSAGES, tools=[greet])]


NUMBERS = [10**400, 10**30, -(10**30), 2**64, -1, 1.5, "7", True, None, [], {}]


@pytest.mark.anyio
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: str(number)[-31:] + str(len(str(number))))
async def test_absurd_numbers_never_break_a_call(llm: LLMClient, stub: Stub, number: Any) -> None:
    usage = {"prompt_tokens": number, "completion_tokens": number, "total_tokens": number}
    for behaviour in (whole(GOOD, usage=usage, created=number), whole(GOOD | {"index": number})):
        stub.queue(behaviour)
        with contextlib.suppress(ProviderError):
            assert (await llm.complete(messages=MESSAGES)).content == "Hello"
    stub.queue(stream(piece({"content": "Hello"}, "stop", usage=usage, created=number)))
    with contextlib.suppress(ProviderError):
        assert [chunk.content async for chunk in llm.stream(messages=MESSAGES)] == ["Hello"]


@pytest.mark.anyio
async def test_embeddings_may_lack_all_but_their_vectors(llm: LLMClient, stub: Stub) -> None:
    rows = [{"embedding": [0.5, 1], "index": None}, {"embedding": [1, 2], "object": None}]
    stub.queue(Behaviour(body=json.dumps({"data": rows} | NULLS).encode()))
    answer = await llm.embed(["a", "b"])
    assert [row.embedding for row in answer.data] == [[0.5, 1], [1, 2]]
    assert answer.usage.prompt_tokens == 0


@pytest.mark.anyio
@pytest.mark.parametrize("data", [None, [None], [{}], [{"embedding": {}}], [{"embedding": ["x"]}], {}], ids=str)
async def test_embeddings_that_can_not_be_read_are_the_providers_error(llm: LLMClient, stub: Stub, data: Any) -> None:
    stub.queue(Behaviour(body=json.dumps({"data": data}).encode()))
    with pytest.raises(ProviderError, match="can't be read"):
        await llm.embed(["a"])
