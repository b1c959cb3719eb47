"""Mistakes in a team's own code: who is told of them, and what; and the order in which its routes are looked at."""

import gc
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from app.config import SettingsError
from app.dependencies import LLM
from app.errors import InvalidRequest, OwnCallError
from app.http.application import App
from app.http.event_stream import EventStream
from app.http.exchange import Exchange
from app.llm.client import LLMClient
from app.main import create_app
from app.models import ChatRequest
from app.telemetry.logs import exception_fields
from tests.conftest import AsCaller, MakeSettings, WithFake
from tests.fakes import FakeLLM

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
Make = Callable[..., TestClient]


@pytest.fixture
def make(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]) -> Iterator[Make]:
    """Make a client, with a key, of an app with these names in app/own.py, and settings that are given."""
    clients: list[TestClient] = []

    def made(given: dict[str, Any] | None = None, **names: Any) -> TestClient:
        monkeypatch.setattr("app.main.own", SimpleNamespace(**names))
        client = TestClient(create_app(settings(**given or {})), headers=headers)
        clients.append(client)
        return client.__enter__()

    yield made
    for client in clients:
        client.__exit__(None, None, None)


def serving(path: str, answer: str) -> APIRouter:
    router = APIRouter()
    router.get(path)(lambda: answer)
    return router


# The order of routes.


def test_routes_behind_a_key_are_found_before_a_public_route_for_every_path(make: Make) -> None:
    client = make(routers=[serving("/orders", "keyed")], public_routers=[serving("/{path:path}", "a page")])
    assert client.get("/orders").json() == "keyed"
    assert client.get("/orders", headers={"Authorization": ""}).status_code == 401
    assert client.get("/anything").json() == "a page"
    assert client.get("/health").json() == {"status": "ok"}


def test_an_own_start_page_takes_the_place_of_the_playgrounds_redirect(make: Make) -> None:
    assert make({"playground": True}, public_routers=[serving("/", "ours")]).get("/").json() == "ours"
    assert make({"playground": True}).get("/", follow_redirects=False).headers["location"] == "/playground"


# Calls that can't work.

calls = APIRouter()


@calls.get("/calls/{kind}")
async def call(kind: str, llm: LLM) -> Any:
    if kind == "model":
        await llm.complete(model="gtp-4o", messages=MESSAGES)
    if kind == "messages":
        await llm.complete(messages="hi")  # type: ignore[arg-type]
    if kind == "limit":
        await llm.complete(messages=MESSAGES, max_tokens=2000)
    if kind == "embed":
        await llm.embed("a", model="gtp-4o")
    if kind == "parse":
        await llm.parse(ChatRequest, messages=MESSAGES, model="gtp-4o")
    return EventStream(llm.run(model="gtp-4o", messages=MESSAGES, tools=[]))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("model", "there is no model 'gtp-4o' in the model table"),
        ("messages", "messages.0"),
        ("limit", "max_tokens: at most 1000 (setting max_tokens_limit)."),
        ("embed", "there is no model 'gtp-4o' in the model table"),
        ("parse", "there is no model 'gtp-4o' in the model table"),
        ("run", "there is no model 'gtp-4o' in the model table"),
    ],
)
def test_a_wrong_call_of_an_endpoint_is_not_its_clients_mistake(
    make: Make, capsys: pytest.CaptureFixture[str], kind: str, reason: str
) -> None:
    models = {"gpt-4o": {"upstream": "demo/echo", "max_tokens_limit": 1000}}
    client = make({"models": models, "log_level": "error", "log_format": "json"}, routers=[calls])
    answer = client.get(f"/calls/{kind}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "gtp" not in answer.text
    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["event"], line["error"]) == ("unexpected", "OwnCallError")
    assert reason in line["message"]


def test_a_wrong_request_of_a_client_is_still_its_own_mistake(make: Make) -> None:
    client = make()
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages"):
        body = {"model": "gtp-4o", "messages": MESSAGES, "input": "Hello", "max_tokens": 5}
        assert client.post(path, json=body).json()["error"]["code" if path != "/v1/messages" else "type"] in (
            "model_not_found",
            "not_found_error",
        )
    assert client.post("/v1/chat/completions", json={"messages": "hi"}).status_code == 422


async def wrong(_request: ChatRequest, llm: LLMClient) -> AsyncGenerator[Any, None]:
    async for chunk in llm.stream(model="gtp-4o", messages=MESSAGES):
        yield chunk


def test_a_wrong_call_of_an_own_model_is_not_its_clients_mistake(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"gpt-4o": {"upstream": "own/wrong"}}
    answer = make({"models": models}, models={"wrong": wrong}).post("/v1/chat/completions", json={"messages": MESSAGES})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "own_model_failed")
    assert "there is no model 'gtp-4o'" in capsys.readouterr().out


async def choosy(_request: ChatRequest, _llm: LLMClient) -> AsyncGenerator[str, None]:
    raise InvalidRequest("Ask about orders.")
    yield ""


def test_what_an_own_model_says_of_a_request_reaches_the_client_through_an_endpoint(make: Make) -> None:
    router = APIRouter()

    @router.get("/asked")
    async def asked(llm: LLM) -> Any:
        return await llm.complete(messages=MESSAGES)

    models = {"gpt-4o": {"upstream": "own/choosy"}}
    answer = make({"models": models}, models={"choosy": choosy}, routers=[router]).get("/asked")
    assert (answer.status_code, answer.json()["detail"]) == (422, "Ask about orders.")


@pytest.mark.anyio
async def test_a_wrong_call_says_so_to_the_code_that_makes_it() -> None:
    with pytest.raises(OwnCallError, match="temperature"):
        await FakeLLM().complete(messages=MESSAGES, temperature=3)


# What is logged of an exception.

failing = APIRouter()


@failing.get("/chained")
async def chained() -> None:
    try:
        int("secret")
    except ValueError as error:
        raise RuntimeError("outer words") from error


@failing.get("/grouped")
async def grouped() -> None:
    raise ExceptionGroup("two", [LookupError("one words"), ExceptionGroup("inner", [OSError("OTHER WORDS".lower())])])


@pytest.mark.parametrize("dev", [True, False])
@pytest.mark.parametrize(
    ("path", "shown", "others", "words"),
    [
        ("/chained", "RuntimeError", ["ValueError"], "invalid literal"),
        ("/grouped", "LookupError", ["ExceptionGroup", "ExceptionGroup", "OSError"], "other words"),
    ],
)
def test_all_causes_and_all_of_a_group_are_logged(
    make: Make,
    capsys: pytest.CaptureFixture[str],
    path: str,
    shown: str,
    others: list[str],
    words: str,
    dev: bool,
) -> None:
    make({"dev": dev, "log_format": "json"}, public_routers=[failing]).get(path)
    [line] = [line for line in map(json.loads, capsys.readouterr().out.splitlines()) if line["event"] == "unexpected"]
    assert line["error"] == shown
    assert [each.partition(":")[0] for each in line["causes"]] == others
    assert (words in json.dumps(line)) == dev
    assert line["stack"].count("test_own_mistakes.py") == (2 if path == "/chained" else 1)


@dataclass
class Unhashable(Exception):
    reason: str


def test_exceptions_of_any_kind_and_in_a_circle_are_logged() -> None:
    one, other = Unhashable("a"), Unhashable("b")
    one.__context__, other.__context__ = other, one
    fields = exception_fields(ExceptionGroup("many", [one] * 1000))
    assert (fields["error"], fields["causes"]) == ("ExceptionGroup", ["Unhashable", "Unhashable"])


# Calls outside a request.


@pytest.mark.anyio
async def test_a_call_of_the_application_itself_writes_a_log_line_and_is_not_kept(
    settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(settings())
    async with app.router.lifespan_context(app):
        for _ in range(2):
            await app.state.llm.complete(model="demo", messages=MESSAGES)
    assert capsys.readouterr().out.count("call caller=None") == 2
    totals = app.state.llm._totals  # noqa: SLF001
    assert totals
    assert totals.tried == []


# Models that are not a caller's.


def test_an_endpoint_may_use_a_model_that_its_caller_may_not(as_caller: AsCaller, monkeypatch: Any) -> None:
    router = APIRouter()

    @router.get("/inner")
    async def inner(llm: LLM, all_models: bool) -> str | None:
        return (await (llm.with_all_models() if all_models else llm).complete(model="demo", messages=MESSAGES)).content

    monkeypatch.setattr("app.main.own", SimpleNamespace(routers=[router]))
    client = as_caller("web", models=["gpt-4o"])
    assert client.get("/inner?all_models=true").json() == "You said: Hello"
    assert client.get("/inner?all_models=false").status_code == 403


def test_who_has_no_key_gets_no_further_model(make: Make) -> None:
    router = APIRouter()

    @router.get("/inner")
    async def inner(llm: LLM) -> str | None:
        return (await llm.with_all_models().complete(model="gpt-4o", messages=MESSAGES)).content

    assert make({"callers": {}}, public_routers=[router]).get("/inner").status_code == 401


# Events for browsers.


def test_a_browser_is_not_sent_the_conversation_behind_an_answer(with_fake: WithFake) -> None:
    router = APIRouter()

    @router.get("/agent")
    async def agent(llm: LLM) -> EventStream:
        system = {"role": "system", "content": "a secret prompt"}
        return EventStream(llm.run(messages=[system, *MESSAGES], tools=[]))

    client = with_fake(FakeLLM("Good day."))
    client.app.include_router(router)  # type: ignore[attr-defined]
    text = client.get("/agent").text
    assert '"type":"done"' in text
    assert '"text":"Good day."' in text
    assert "secret" not in text


# Own models.


async def no_generator(_request: ChatRequest, _llm: LLMClient) -> str:
    return "x"


def not_async(_request: ChatRequest, _llm: LLMClient) -> Iterator[str]:
    yield "x"


async def too_few(_request: ChatRequest) -> AsyncGenerator[str, None]:
    yield "x"


@pytest.mark.parametrize("function", [no_generator, not_async, too_few, "a text"])
def test_a_function_that_can_be_no_model_stops_the_start(make: Make, function: Any) -> None:
    with pytest.raises(SettingsError, match=r"`models` of app/own.py: 'm' must be an async function that yields"):
        make({"models": {"gpt-4o": {"upstream": "own/m"}}}, models={"m": function})


def text_of(client: TestClient, model: str = "gpt-4o") -> Any:
    answer = client.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES}).json()
    return answer.get("content") or answer["error"]["code"]


async def informed(_request: ChatRequest, llm: LLMClient, app: App) -> AsyncGenerator[str, None]:
    yield f"{llm.caller_name} {app.state.settings.own.shop} {app.state.opened}"


def test_an_own_model_knows_its_caller_and_the_application(make: Make) -> None:
    from contextlib import asynccontextmanager

    from app.config import Group

    class OwnSettings(Group):
        shop: str = "here"

    @asynccontextmanager
    async def lifespan(app: App) -> Any:
        app.state.opened = "opened"
        yield

    own = {"models": {"informed": informed}, "OwnSettings": OwnSettings, "lifespan": lifespan}
    assert text_of(make({"models": {"gpt-4o": {"upstream": "own/informed"}}}, **own)) == "test here opened"


async def endless(_request: ChatRequest, llm: LLMClient) -> AsyncGenerator[Any, None]:
    async for chunk in llm.stream(model="gpt-4o", messages=MESSAGES):
        yield chunk


def test_an_own_model_that_calls_itself_without_end_is_ended(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    client = make({"models": {"gpt-4o": {"upstream": "own/endless"}}}, models={"endless": endless})
    assert text_of(client) == "own_model_failed"
    assert "own models call each other without end" in capsys.readouterr().out
    assert client.app.state.upstreams.limiter.in_flight == {}  # type: ignore[attr-defined]


class Refusing:
    """A middleware that refuses every request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raise InvalidRequest("no")
        await self.app(scope, receive, send)


def test_an_error_of_a_middleware_leaves_no_work_to_the_collector(make: Make) -> None:
    client = make(middleware=[Middleware(Refusing)])
    client.get("/")
    gc.collect()
    gc.disable()
    try:
        assert client.get("/").status_code == 422
        assert not [thing for thing in gc.get_objects() if type(thing) is Exchange]
    finally:
        gc.enable()
