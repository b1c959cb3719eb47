"""OpenAI's own client can't tell this server from OpenAI, but for what the table of errors says."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from app.config import Settings
from app.main import create_app
from tests.serving import Backend, Process, serve
from tests.stub import MODEL_SUFFIX, PROMPT_TOKENS, TEXT, Behaviour, Stub

WAYS = ("direct", "litellm", "anthropic")
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
HELLO: dict[str, Any] = {"model": "direct", "messages": MESSAGES}
WEATHER = '{"city": "Zürich"}'
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def backend(backends: tuple[Backend, Backend]) -> Backend:
    return backends[0]


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


@pytest.fixture(scope="module")
def strict(key: str) -> Iterator[openai.OpenAI]:
    """A client of a server that is easily offended."""
    with Stub(Behaviour(pace=0.1)) as stub:
        at_stub = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}
        callers: dict[str, dict[str, Any]] = {
            key: {"requests_per_minute": 1000},
            "sk-app-narrow": {"models": ["demo"]},
            "sk-app-rare": {"requests_per_minute": 1},
        }
        hashes = {name: {"key_sha256": hashlib.sha256(name.encode()).hexdigest()} for name in callers}
        settings = Settings.model_validate(
            {
                "models": {
                    "direct": at_stub,
                    "keyless": {"upstream": "openai/gpt-4o"},
                    "demo": {"upstream": "demo/echo"},
                },
                "default_model": "demo",
                "callers": {name: callers[name] | hashes[name] for name in callers},
                "max_body_bytes": 2000,
                "max_in_flight": 1,
            }
        )
        app = create_app(settings)

        @app.get("/v1/broken")
        def broken() -> None:
            raise RuntimeError("the secret of this failure")

        with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            yield client


def _as(key: str) -> Callable[[openai.OpenAI], object]:
    return lambda client: client.with_options(api_key=key).chat.completions.create(**HELLO)


def _chat(**fields: Any) -> Callable[[openai.OpenAI], object]:
    return lambda client: client.chat.completions.create(**(HELLO | fields))


def _twice(client: openai.OpenAI) -> None:
    for _ in range(2):
        client.with_options(api_key="sk-app-rare").chat.completions.create(model="demo", messages=MESSAGES)


def _while_another_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.create(**HELLO, stream=True) as stream:
        next(stream)
        client.models.list()


ERRORS: dict[str, tuple[Callable[[openai.OpenAI], object], int, str, str]] = {
    "no key": (
        lambda client: client.chat.completions.create(**HELLO, extra_headers={"Authorization": openai.omit}),
        401,
        "invalid_api_key",
        "invalid_request_error",
    ),
    "a wrong key": (_as("sk-app-nobody"), 401, "invalid_api_key", "invalid_request_error"),
    "a model that isn't theirs": (_as("sk-app-narrow"), 403, "model_not_allowed", "invalid_request_error"),
    "no such model": (_chat(model="gpt-99"), 404, "model_not_found", "invalid_request_error"),
    "no such path": (
        lambda client: client.get("/nothing", cast_to=object),
        404,
        "not_found",
        "invalid_request_error",
    ),
    "responses, which aren't there yet": (
        lambda client: client.responses.create(model="direct", input="Hello"),
        404,
        "not_found",
        "invalid_request_error",
    ),
    "a wrong method": (
        lambda client: client.get("/chat/completions", cast_to=object),
        405,
        "method_not_allowed",
        "invalid_request_error",
    ),
    "a body too large": (_chat(user="x" * 3000), 413, "request_too_large", "invalid_request_error"),
    "headers too large": (
        _chat(extra_headers={"X-Large": "x" * 100_000}),
        431,
        "request_too_large",
        "invalid_request_error",
    ),
    "no JSON": (
        lambda client: client.post("/chat/completions", cast_to=object, content=b'{"model": NaN}'),
        400,
        "invalid_json",
        "invalid_request_error",
    ),
    "out of bounds": (_chat(temperature=9), 422, "invalid_request", "invalid_request_error"),
    "no messages": (_chat(messages=[]), 422, "invalid_request", "invalid_request_error"),
    "a caller's limit": (_twice, 429, "rate_limit_exceeded", "rate_limit_error"),
    "too much in flight": (_while_another_streams, 503, "overloaded", "server_error"),
    "no provider key": (_chat(model="keyless"), 503, "provider_not_configured", "server_error"),
    "a mistake of ours": (
        lambda client: client.get("/broken", cast_to=object),
        500,
        "internal_error",
        "server_error",
    ),
}


@pytest.mark.parametrize(("provoke", "status", "code", "kind"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_read_by_openais_client(
    strict: openai.OpenAI, provoke: Callable[[openai.OpenAI], object], status: int, code: str, kind: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        provoke(strict)
    _check(caught.value, status, code, kind)


def test_a_draining_server_says_so(key: str) -> None:
    callers = {"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}}
    with Stub(Behaviour(pace=0.1)) as stub:
        models = {"direct": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}}
        env = {"APP_CALLERS": json.dumps(callers), "APP_MODELS": json.dumps(models), "APP_DEFAULT_MODEL": "direct"}
        with (
            Process(env=env) as process,
            openai.OpenAI(base_url=f"{process.url}/v1", api_key=key, max_retries=0) as client,
            client.chat.completions.create(**HELLO, stream=True) as stream,
        ):
            next(stream)
            process.terminate()
            with pytest.raises(openai.InternalServerError) as caught:
                _ask_until_refused(client)
            _check(caught.value, 503, "draining", "server_error")
            assert caught.value.response.headers["retry-after"]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
            assert process.wait() == 0


def _ask_until_refused(client: openai.OpenAI) -> None:
    """Ask for the models until that is refused: a signal takes a moment."""
    for _ in range(100):
        client.models.list()


def _check(error: openai.APIStatusError, status: int, code: str, kind: str) -> None:
    assert (error.status_code, error.code, error.type) == (status, code, kind)
    assert isinstance(error.body, dict)
    assert len(error.body["message"]) > 10
    assert "secret" not in error.response.text
    assert error.request_id
    problem = error.response.json()
    assert error.response.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["detail"]) == (status, error.body["message"])
    assert problem["instance"] == f"urn:request:{error.request_id}"
