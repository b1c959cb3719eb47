"""A team's own endpoints stand on the same client, and get what the built-in ones get."""

import http.client
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from app import own
from app.config import ModelEntry, Settings
from app.dependencies import LLM, get_llm
from app.errors import OwnCallError, ProviderError, ProviderRateLimited
from app.http.routing import BytesRoute
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from app.main import create_app
from app.models import ChatChunk, ChatResponse, EmbeddingResponse
from tests.conftest import MakeSettings, WithFake
from tests.fakes import FakeLLM
from tests.serving import serve
from tests.stub import MODEL_SUFFIX, PROMPT_TOKENS, TEXT, Behaviour, Stub

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
SOON = 20
"""Seconds, generous."""


# The client's typed answers, on every way to a model.

WAYS = {"direct": "gpt-4o", "litellm": "gpt-4o", "anthropic": "claude-sonnet-4-5", "demo": "echo"}
SAID = {"demo": "You said: Hello"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def llm() -> AsyncIterator[LLMClient]:
    """A client with a model on each way, outside of any request."""
    with Stub() as stub:
        models = {
            "direct": ModelEntry(upstream="openai/gpt-4o", api_base=f"{stub.url}/v1"),
            "litellm": ModelEntry(upstream="openai/gpt-4o", api_base=f"{stub.url}/v1", protocol="litellm"),
            "anthropic": ModelEntry(upstream="anthropic/claude-sonnet-4-5", api_base=stub.url),
            "demo": ModelEntry(upstream="demo/echo"),
        }
        async with Upstreams(Settings(models=models, default_model="direct", retries=0)) as upstreams:
            yield LLMClient(upstreams)


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_complete_returns_a_chat_response(llm: LLMClient, way: str) -> None:
    answer = await llm.complete(model=way, messages=MESSAGES)
    assert type(answer) is ChatResponse
    assert answer.content == answer.choices[0].message.content == SAID.get(way, TEXT)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.id
    assert answer.model == WAYS[way] + ("" if way == "demo" else MODEL_SUFFIX)
    assert answer.usage.prompt_tokens == (1 if way == "demo" else PROMPT_TOKENS)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_stream_yields_chat_chunks(llm: LLMClient, way: str) -> None:
    asked: dict[str, Any] = {"model": way, "messages": MESSAGES, "stream_options": {"include_usage": True}}
    chunks = [chunk async for chunk in llm.stream(**asked)]
    assert {type(chunk) for chunk in chunks} == {ChatChunk}
    assert "".join(chunk.content for chunk in chunks) == SAID.get(way, TEXT)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["stop"]
    assert all(chunk.model.startswith(WAYS[way]) for chunk in chunks)
    assert chunks[-1].choices == []
    assert chunks[-1].usage
    assert chunks[-1].usage.prompt_tokens == (1 if way == "demo" else PROMPT_TOKENS)


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["direct", "litellm", "demo"])
async def test_embed_returns_an_embedding_response(llm: LLMClient, way: str) -> None:
    answer = await llm.embed(["Hello", "again"], model=way)
    assert type(answer) is EmbeddingResponse
    assert [row.index for row in answer.data] == [0, 1]
    assert all(isinstance(number, float) for row in answer.data for number in row.embedding)
    assert answer.usage.prompt_tokens > 0


@pytest.mark.anyio
async def test_an_answer_that_is_not_openais_is_an_error_of_the_provider(stub: Stub) -> None:
    stub.queue(Behaviour(body=b'{"choices": [{"message": {"content": {"no": "text"}}}]}'))
    models = {"m": ModelEntry(upstream="openai/m", api_base=f"{stub.url}/v1")}
    async with Upstreams(Settings(models=models, default_model="m", retries=0)) as upstreams:
        with pytest.raises(ProviderError, match="can't be read"):
            await LLMClient(upstreams).complete(messages=MESSAGES)


@pytest.mark.anyio
async def test_a_call_that_does_not_fit_is_a_mistake_of_the_code(llm: LLMClient) -> None:
    with pytest.raises(OwnCallError, match="temperature"):
        await llm.complete(messages=MESSAGES, temperature=3)


# What an endpoint gets besides.

routes = APIRouter()


class Text(BaseModel):
    text: str


@routes.api_route("/own/whole", methods=["GET", "POST"])
async def whole(llm: LLM) -> str | None:
    return (await llm.complete(messages=MESSAGES)).content


@routes.post("/own/read")
async def read(body: Text, llm: LLM) -> str | None:
    return (await llm.complete(messages=[{"role": "user", "content": body.text}])).content


@routes.post("/own/streamed")
async def streamed(llm: LLM) -> StreamingResponse:
    async def words() -> AsyncIterator[str]:
        async for chunk in llm.stream(messages=MESSAGES):
            yield chunk.content

    return StreamingResponse(words())


@pytest.fixture
def own_app(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """An app with these endpoints."""
    monkeypatch.setattr(own, "routers", [routes], raising=False)
    return create_app(settings())


def test_an_endpoint_streams(own_app: FastAPI, headers: dict[str, str]) -> None:
    with TestClient(own_app, headers=headers) as client:
        assert client.post("/own/streamed").text == TEXT


def test_an_error_of_the_client_is_the_endpoints_answer(own_app: FastAPI, headers: dict[str, str], stub: Stub) -> None:
    stub.queue(Behaviour(status=429, headers={"retry-after": "7"}))
    with TestClient(own_app, headers=headers) as client:
        answer = client.get("/own/whole")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"]["code"] == "provider_rate_limited"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/own/whole", None),
        ("POST", "/own/whole", b""),
        ("POST", "/own/read", b'{"text": "Hello"}'),
        ("POST", "/own/streamed", b""),
    ],
)
def test_a_call_is_cancelled_when_the_endpoints_client_leaves(
    own_app: FastAPI, headers: dict[str, str], stub: Stub, method: str, path: str, body: bytes | None
) -> None:
    stub.default = Behaviour(repeat=10_000, pace=0.01) if path == "/own/streamed" else Behaviour(delay_headers=60)
    with serve(own_app) as url, closing(http.client.HTTPConnection(urlsplit(url).netloc)) as connection:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        if path == "/own/streamed":
            with connection.getresponse() as response:
                assert response.read(5) == b"Hello"
        assert stub.wait_until(lambda: len(stub.requests) == 1)
        assert not stub.requests[0].closed.is_set()
        connection.close()
        assert stub.requests[0].closed.wait(SOON)
    assert not stub.requests[0].answered


class Query(BaseModel):
    query: str


@routes.post("/own/query")
async def query(body: Query) -> str:
    return body.query


@routes.get("/own/status/{status}")
async def status(status: int) -> None:
    raise HTTPException(status, "Not today.")


def test_a_field_may_be_called_as_fastapi_calls_its_places(own_app: FastAPI, headers: dict[str, str]) -> None:
    with TestClient(own_app, headers=headers) as client:
        error = client.post("/own/query", json={}).json()["error"]
    assert (error["message"], error["param"]) == ("query: Field required", "query")


@pytest.mark.parametrize(
    ("status", "code"), [(403, "forbidden"), (401, "unauthorized"), (409, "conflict"), (499, "client_error")]
)
def test_an_endpoints_own_status_is_kept(own_app: FastAPI, headers: dict[str, str], status: int, code: str) -> None:
    with TestClient(own_app, headers=headers) as client:
        answer = client.get(f"/own/status/{status}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["detail"] == "Not today."


# The team's own middleware.


class KeyFromElsewhere:
    """Takes the key from a header of the team's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            keys = [(b"authorization", b"Bearer " + value) for name, value in scope["headers"] if name == b"api-key"]
            scope = {**scope, "headers": [*scope["headers"], *keys]}
        await self.app(scope, receive, send)


class Broken:
    """Fails at every request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raise LookupError("a secret")
        await self.app(scope, receive, send)


def test_a_key_that_own_middleware_brings_lets_in(
    settings: MakeSettings, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "middleware", [Middleware(KeyFromElsewhere)], raising=False)
    with TestClient(create_app(settings())) as client:
        key = headers["Authorization"].removeprefix("Bearer ")
        assert client.get("/v1/models", headers={"api-key": key}).status_code == 200


def test_an_error_in_own_middleware_has_the_one_body(
    settings: MakeSettings, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "middleware", [Middleware(Broken)], raising=False)
    with TestClient(create_app(settings()), headers=headers) as client:
        answer = client.get("/v1/models")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"] == f"urn:request:{answer.headers['x-request-id']}"
    assert "secret" not in answer.text


def test_a_route_that_would_drop_its_dependencies_is_not_made() -> None:
    router = APIRouter(route_class=BytesRoute)
    with pytest.raises(ValueError, match="dependencies"):
        router.get("/own", dependencies=[Depends(get_llm)])(whole)


# The fake.


@pytest.fixture
def fake() -> FakeLLM:
    return FakeLLM("First.", "Then the second.")


@pytest.fixture
def faked(own_app: FastAPI, fake: FakeLLM, headers: dict[str, str]) -> Iterator[TestClient]:
    """A client of an app whose models are the fake."""
    own_app.dependency_overrides[get_llm] = lambda: fake
    with TestClient(own_app, headers=headers) as client:
        yield client


def test_the_fake_answers_in_place_of_the_models(faked: TestClient, fake: FakeLLM, stub: Stub) -> None:
    assert faked.post("/own/read", json={"text": "Hello"}).json() == "First."
    assert faked.post("/own/streamed").text == "Then the second."
    assert faked.get("/own/whole").json() == "Then the second."
    assert [call["messages"][0]["content"] for call in fake.calls] == ["Hello"] * 3
    assert stub.requests == []


def test_an_error_of_the_fake_is_the_endpoints_answer(own_app: FastAPI, headers: dict[str, str]) -> None:
    own_app.dependency_overrides[get_llm] = lambda: FakeLLM(ProviderRateLimited("Too many.", retry_after=7))
    with TestClient(own_app, headers=headers) as client:
        answer = client.get("/own/whole")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


@pytest.mark.anyio
async def test_the_fake_parses_and_embeds() -> None:
    fake = FakeLLM('{"text": "Hello"}')
    assert await fake.parse(Text, messages=MESSAGES) == Text(text="Hello")
    assert [row.embedding for row in (await fake.embed(["a", "bc"])).data] == [[1.0, 1.0], [2.0, 1.0]]


@pytest.mark.anyio
async def test_the_fake_embeds_as_it_is_told_and_fails_as_it_is_told() -> None:
    fake = FakeLLM(embeddings=lambda text: [float("closed" in text)])
    assert (await fake.embed(["We are closed.", "Hello"])).vectors == [[1.0], [0.0]]
    with pytest.raises(ProviderError, match="Too many"):
        await FakeLLM(embeddings=ProviderRateLimited("Too many.")).embed("a")


@pytest.mark.anyio
async def test_the_fake_falls_back() -> None:
    fake = FakeLLM(ProviderError("Down."), "From the other.", fallbacks=["other"])
    answer = await fake.complete(messages=MESSAGES, model="best")
    assert (answer.content, answer.model) == ("From the other.", "other")
    assert fake.with_all_models() is fake


def test_the_start_and_jobs_have_a_fake_of_their_own(with_fake: WithFake) -> None:
    outside = FakeLLM()
    app: Any = with_fake(FakeLLM(), outside).app
    assert app.state.llm is app.llm_for("jobs") is outside
    assert not isinstance(with_fake(FakeLLM()).app.state.llm, FakeLLM)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["complete", "stream", "parse", "parse_with_usage", "run", "embed"])
def test_the_fake_is_called_as_the_client_is(method: str) -> None:
    assert inspect.signature(getattr(FakeLLM, method)) == inspect.signature(getattr(LLMClient, method))
