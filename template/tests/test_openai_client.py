"""OpenAI's own client can't tell this server from OpenAI, but for what the table of errors says."""

import json
from typing import Any

import openai
import pytest
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.serving import Backend
from tests.stub import MODEL_SUFFIX, PROMPT_TOKENS, TEXT, Behaviour

WAYS = ("direct", "litellm", "anthropic")
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
WEATHER = '{"city": "Zürich"}'
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize("way", WAYS)
def test_a_completion_is_an_openai_answer_with_its_content_beside(backend: Backend, way: str) -> None:
    answer = backend.client.chat.completions.create(model=way, messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == backend.upstreams[way] + MODEL_SUFFIX
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, len(TEXT.split()) + 1)
    assert answer.model_extra
    assert answer.model_extra["content"] == TEXT
    assert backend.stub.requests[-1].path == ("/v1/messages" if way == "anthropic" else "/v1/chat/completions")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_says_the_text_and_its_usage_only_if_asked(backend: Backend, way: str, asked: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    stream = backend.client.chat.completions.create(model=way, messages=MESSAGES, stream=True, **options)
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    if asked:
        assert last.choices == []
        assert last.usage
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (PROMPT_TOKENS, len(TEXT.split()) + 1)
    else:
        assert last.choices[0].finish_reason == "stop"
    assert not any(chunk.usage for chunk in chunks)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(backend: Backend, way: str, stream: bool) -> None:
    backend.stub.queue(Behaviour(tool_calls=(("weather", WEATHER),)))
    if stream:
        with backend.client.chat.completions.stream(model=way, messages=MESSAGES, tools=TOOLS) as events:
            answer: Any = events.get_final_completion()
    else:
        answer = backend.client.chat.completions.create(model=way, messages=MESSAGES, tools=TOOLS)
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "weather",
        json.loads(WEATHER),
    )
    assert call.id


@pytest.mark.parametrize(("way", "choices"), [*((way, 1) for way in WAYS), ("direct", 2)])
@pytest.mark.parametrize("calls", [(), (("weather", WEATHER), ("weather", "{}"))], ids=["text", "tools"])
def test_every_answer_and_every_chunk_is_valid_by_openais_types(
    backend: Backend, way: str, calls: Any, choices: int
) -> None:
    behaviour, create = Behaviour(tool_calls=calls), backend.client.chat.completions.with_streaming_response.create
    options: Any = {"n": choices} | ({"tools": TOOLS} if calls else {})

    backend.stub.queue(behaviour)
    with create(model=way, messages=MESSAGES, **options) as response:
        whole = ChatCompletion.model_validate_json(response.read(), strict=True)
    assert len(whole.choices) == choices

    backend.stub.queue(behaviour)
    with create(
        model=way, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **options
    ) as response:
        *events, done, end = response.read().split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    chunks = [ChatCompletionChunk.model_validate_json(event.removeprefix(b"data: "), strict=True) for event in events]
    assert {choice.index for chunk in chunks for choice in chunk.choices} == set(range(choices))
    assert [chunk.choices == [] for chunk in chunks] == [bool(chunk.usage) for chunk in chunks]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


@pytest.mark.parametrize("way", ["litellm", "anthropic"])
def test_several_choices_are_refused_by_name_where_they_would_be_lost(backend: Backend, way: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        backend.client.chat.completions.create(model=way, messages=MESSAGES, n=2, stream=True)
    assert caught.value.param == "n"


def test_the_direct_way_passes_chunks_byte_for_byte(backend: Backend) -> None:
    with openai.OpenAI(base_url=f"{backend.stub.url}/v1", api_key="sk-stub") as provider:
        bodies = []
        for client, model in ((provider, backend.upstreams["direct"]), (backend.client, "direct")):
            create = client.chat.completions.with_streaming_response.create
            with create(
                model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            ) as response:
                bodies.append(response.read())
    assert bodies[0] == bodies[1]


def test_models_are_listed_and_described(backend: Backend) -> None:
    page = backend.client.models.with_raw_response.list()
    rows = [Model.model_validate(row, strict=True) for row in json.loads(page.text)["data"]]
    assert {row.id for row in rows} == backend.upstreams.keys()
    assert backend.client.models.retrieve("direct") == next(row for row in rows if row.id == "direct")


@pytest.mark.parametrize("way", ["direct", "litellm-embeddings"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_come_as_numbers_or_base64(backend: Backend, way: str, encoding: Any) -> None:
    create = backend.client.embeddings.with_raw_response.create
    response = create(model=way, input=["a", "b"], dimensions=3, encoding_format=encoding)
    body = json.loads(response.text)
    if encoding == "float":
        CreateEmbeddingResponse.model_validate(body, strict=True)
    assert all(isinstance(row["embedding"], str if encoding == "base64" else list) for row in body["data"])
    # The client asks for base64 by itself, and decodes it.
    answer = backend.client.embeddings.create(model=way, input=["a", "b"], dimensions=3)
    assert [row.embedding for row in answer.data] == [[1, 0.5, 0.25], [2, 1, 0.5]]
    assert answer.usage.prompt_tokens == PROMPT_TOKENS
