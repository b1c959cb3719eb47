"""What a team registers in app/own.py is closed, seen and told of like the service's own routes."""

import asyncio
import contextlib
import http.client
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request, WebSocket
from fastapi.sse import EventSourceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, Counter, PlatformCollector, ProcessCollector
from pydantic import ValidationError
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from structlog.testing import capture_logs

from app.config import Group, SettingsError
from app.dependencies import LLM, Config
from app.environment import load_settings, unknown_variables, with_own
from app.errors import Draining, ProviderRateLimited
from app.http.event_stream import EventStream
from app.http.routing import BytesRoute
from app.llm.client import LLMClient
from app.main import create_app
from app.telemetry.tracing import Tracing
from tests.conftest import MakeSettings
from tests.serving import serve
from tests.stub import Behaviour, Stub
from tests.template.running import request_line

MESSAGES: Any = [{"role": "user", "content": "Hello"}]


def make(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], **names: Any) -> FastAPI:
    """Return an app with these names in app/own.py, and no others: as an older project's, it may lack any."""
    monkeypatch.setattr("app.main.own", SimpleNamespace(**names))
    return create_app(settings(**given))


async def ok(_: Any = None) -> Response:
    return PlainTextResponse("ok")


def several_kinds() -> APIRouter:
    """A router with every kind of route that there is."""
    router = APIRouter()
    router.get("/plain")(lambda: "ok")
    router.routes.append(Route("/starlette", ok))
    router.routes.append(Mount("/mounted", app=PlainTextResponse("ok")))
    fast = APIRouter(route_class=BytesRoute)
    fast.get("/bytes")(ok)
    router.include_router(fast)

    @router.websocket("/socket")
    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    return router


KINDS = ["/plain", "/starlette", "/mounted/x", "/bytes"]


@pytest.mark.parametrize("path", KINDS)
def test_every_kind_of_own_route_needs_a_key(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], path: str
) -> None:
    with TestClient(make(settings, monkeypatch, {}, routers=[several_kinds()])) as client:
        refused = client.get(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get(path, headers=headers).status_code == 200


def test_an_own_front_end_needs_a_key(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("a page")
    router = APIRouter()
    router.frontend("/ui", directory=tmp_path)
    with TestClient(make(settings, monkeypatch, {}, routers=[router])) as client:
        assert client.get("/ui/").status_code == 401
        assert client.get("/ui/", headers=headers).text == "a page"


def test_an_own_socket_needs_a_key(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    with TestClient(make(settings, monkeypatch, {}, routers=[several_kinds()])) as client:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket"):
            pass
        with client.websocket_connect("/socket", headers=headers) as socket, pytest.raises(WebSocketDisconnect):
            socket.receive_text()


def test_own_routes_are_closed_while_there_are_no_callers(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(make(settings, monkeypatch, {"callers": {}}, routers=[several_kinds()])) as client:
        assert client.get("/plain").status_code == 401


@pytest.mark.parametrize("path", KINDS)
def test_public_routes_are_open(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    with TestClient(make(settings, monkeypatch, {}, public_routers=[several_kinds()])) as client:
        assert client.get(path).status_code == 200


def test_the_openapi_page_says_which_own_routes_need_a_key(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = APIRouter(prefix="/public")
    public.get("/plain")(lambda: "ok")
    names = {"routers": [several_kinds()], "public_routers": [public]}
    with TestClient(make(settings, monkeypatch, {"api_docs": True}, **names)) as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert "security" not in paths["/plain"]["get"]
    assert paths["/public/plain"]["get"]["security"] == []


def test_the_routes_of_an_own_router_are_told_apart_in_metrics(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    outer, inner = APIRouter(), APIRouter()
    inner.get("/items/{item}")(lambda item: item)
    outer.include_router(inner, prefix="/shop")
    app = make(settings, monkeypatch, {}, routers=[outer, several_kinds()])
    with TestClient(app, headers=headers) as client:
        client.get("/shop/items/7")
        client.get("/mounted/x")
        text = app.state.metrics.render().decode()
    assert 'route="/shop/items/{item}"' in text
    assert 'route="/mounted"' in text


# Middleware, resources and settings.


def test_an_own_lifespan_surrounds_the_app(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        app.state.pool = "a pool"
        answer = await app.state.llm.complete(model="demo", messages=MESSAGES)
        happened.append(answer.content)
        yield
        happened.append("closed")

    router = APIRouter()
    router.get("/pool")(lambda request: request.app.state.pool)
    router = APIRouter()

    @router.get("/pool")
    async def pool(request: Request) -> str:
        return str(request.app.state.pool)

    with TestClient(make(settings, monkeypatch, {}, public_routers=[router], lifespan=lifespan)) as client:
        assert client.get("/pool").json() == "a pool"
    assert happened == ["You said: Hello", "closed"]


class OwnSettings(Group):
    greeting: str = "Hello"
    size: int = 3


def test_own_settings_are_validated_and_asked_for(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    router = APIRouter()

    @router.get("/greeting")
    async def greeting(config: Config) -> str:
        return str(config.own.greeting * config.own.size)

    names: dict[str, Any] = {"public_routers": [router], "OwnSettings": OwnSettings}
    with TestClient(make(settings, monkeypatch, {"own": {"size": 2}}, **names)) as client:
        assert client.get("/greeting").json() == "HelloHello"


def test_own_settings_come_from_the_file_and_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('[own]\ngreeting = "Hi"\nsize = 1\n')
    monkeypatch.setenv("APP_SETTINGS_FILE", str(tmp_path / "settings.toml"))
    monkeypatch.setenv("APP_OWN__SIZE", "2")
    settings = with_own(load_settings(), OwnSettings)
    assert (settings.own.greeting, settings.own.size) == ("Hi", 2)
    assert unknown_variables() == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("APP_OWN__SIZE", "many", "setting own.size: Input should be a valid integer"),
        ("APP_OWN__SIZES", "1", "own.sizes is not a setting; did you mean size?"),
    ],
)
def test_a_wrong_own_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setattr("app.main.own", SimpleNamespace(OwnSettings=OwnSettings))
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=re.escape(said)):
        create_app()


def test_embeddings_have_a_default_model_of_their_own(settings: MakeSettings, headers: dict[str, str]) -> None:
    with TestClient(create_app(settings(default_embedding_model="demo")), headers=headers) as client:
        answer = client.post("/v1/embeddings", json={"input": "Hello"})
        assert answer.headers["x-model"] == "demo"
    with pytest.raises(ValidationError, match="default_embedding_model names 'nothing'"):
        settings(default_embedding_model="nothing")


def test_own_metrics_and_no_others_stand_beside_ours(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    monkeypatch.setattr("app.telemetry.metrics.REGISTRY", registry)
    Counter("parcels_sent", "Parcels.", registry=registry).inc()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    text = create_app(settings()).state.metrics.render().decode()
    assert "parcels_sent_total 1.0" in text
    assert "http_requests_in_flight" in text
    assert "python_info" not in text


def test_a_models_span_is_within_the_teams(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    router = APIRouter()

    async def events(llm: LLMClient) -> AsyncIterator[str]:
        with provider.get_tracer("ours").start_as_current_span("ours"):
            async for chunk in llm.stream(model="demo", messages=MESSAGES):
                yield chunk.content

    @router.get("/span")
    async def span(llm: LLM) -> EventStream:
        return EventStream(events(llm))

    app = make(settings, monkeypatch, {}, routers=[router])
    upstreams = app.state.upstreams
    upstreams.accounting = replace(upstreams.accounting, tracing=Tracing(provider.get_tracer("llm")))
    with TestClient(app, headers=headers) as client:
        assert "[DONE]" in client.get("/span").text
    llm, ours = exporter.get_finished_spans()
    assert (llm.name, ours.name) == ("chat demo", "ours")
    assert llm.parent
    assert ours.context
    assert llm.parent.span_id == ours.context.span_id


# Errors.

errors = APIRouter()


@errors.get("/detail")
async def detail() -> None:
    raise HTTPException(409, {"message": "The order is shipped.", "code": "shipped", "order": 7})


@errors.get("/listed")
async def listed() -> None:
    raise HTTPException(409, ["a", "b"])


@errors.get("/bug")
async def bug() -> None:
    raise LookupError(f"order {3 + 4} is not there")


def test_a_detail_that_is_an_object_is_kept(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(make(settings, monkeypatch, {}, public_routers=[errors])) as client:
        answer = client.get("/detail")
        body = answer.json()
        assert (answer.status_code, body["detail"]) == (409, "The order is shipped.")
        assert (body["error"]["message"], body["error"]["code"]) == ("The order is shipped.", "shipped")
        assert body["details"] == {"message": "The order is shipped.", "code": "shipped", "order": 7}
        body = client.get("/listed").json()
        assert (body["detail"], body["error"]["code"], body["details"]) == ("Conflict", "conflict", ["a", "b"])
        assert "details" not in client.get("/nowhere").json()


@pytest.mark.parametrize(("dev", "shown"), [(True, True), (False, False)])
def test_an_exceptions_message_is_logged_in_development_alone(
    settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dev: bool,
    shown: bool,
) -> None:
    with TestClient(make(settings, monkeypatch, {"dev": dev}, public_routers=[errors])) as client:
        answer = client.get("/bug")
    assert answer.status_code == 500
    assert "order 7" not in answer.text
    logged = capsys.readouterr().out
    assert "LookupError" in logged
    assert ("order 7 is not there" in logged) == shown


# Streams that the template didn't make.

streams = APIRouter()


@streams.get("/native", response_class=EventSourceResponse)
async def native(fail: str, first: bool = False) -> AsyncIterator[str]:
    if not first:
        yield "Hello"
    raise {
        "ours": ProviderRateLimited("Too many.", retry_after=7),
        "http": HTTPException(409, "Shipped."),
        "bug": LookupError("a secret"),
    }[fail]


@streams.get("/starlette")
async def by_starlette(fail: str) -> StreamingResponse:
    return StreamingResponse(native(fail), media_type="text/event-stream")


@streams.get("/text")
async def as_text() -> StreamingResponse:
    return StreamingResponse(native("bug"), media_type="text/plain")


@streams.get("/model", response_class=EventSourceResponse)
async def of_a_model(llm: LLM) -> AsyncIterator[str]:
    async for chunk in llm.stream(messages=MESSAGES):
        yield chunk.content


@pytest.fixture
def served(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FastAPI, str]]:
    app = make(settings, monkeypatch, {}, public_routers=[streams])
    with serve(app) as url:
        yield app, url


def read(url: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Return a response's status, and its text up to its end or to its being cut off."""
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        try:
            return answer.status, answer.read().decode()
        except http.client.IncompleteRead as cut:
            return answer.status, cut.partial.decode() + "<cut>"


CODES = {"ours": "provider_rate_limited", "http": "conflict", "bug": "internal_error"}


@pytest.mark.parametrize("fail", CODES)
@pytest.mark.parametrize("kind", ["native", "starlette"])
def test_an_error_amid_another_event_stream_is_its_last_event(
    served: tuple[FastAPI, str], kind: str, fail: str
) -> None:
    with capture_logs() as lines:
        status, text = read(served[1], f"/{kind}?fail={fail}")
        line = request_line(lines)
    assert status == 200
    assert text.endswith("\n\ndata: [DONE]\n\n")
    assert f'"code":"{CODES[fail]}"' in text
    assert "a secret" not in text
    assert line["error"] == CODES[fail]
    assert [entry["error"] for entry in lines if entry["event"] == "unexpected"] == ["LookupError"] * (fail == "bug")


def test_an_error_amid_a_text_is_logged_and_cuts_it_off(served: tuple[FastAPI, str]) -> None:
    with capture_logs() as lines:
        assert read(served[1], "/text")[1].endswith("<cut>")
        assert request_line(lines)["error"] == "internal_error"


def counted(app: FastAPI, name: str) -> Sequence[str]:
    return [line for line in app.state.metrics.render().decode().splitlines() if line.startswith(name)]


def test_errors_amid_streams_are_counted(served: tuple[FastAPI, str]) -> None:
    app, url = served
    read(url, "/native?fail=bug")
    deadline = time.monotonic() + 20
    while not (lines := counted(app, "http_stream_errors_total")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lines == ['http_stream_errors_total{code="internal_error",route="/native"} 1.0']


def test_a_models_error_under_fastapis_event_stream_is_an_event(
    served: tuple[FastAPI, str], stub: Stub, headers: dict[str, str]
) -> None:
    stub.queue(Behaviour(status=500))
    status, text = read(served[1], "/model", headers)
    assert (status, text.count("data: ")) == (200, 2)
    assert '"code":"provider_error"' in text


def test_draining_ends_another_event_stream_with_an_event(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter()

    @router.get("/aborted", response_class=EventSourceResponse)
    async def aborted(request: Request) -> AsyncIterator[str]:
        yield "Hello"
        request.scope["app.exchange"].abort(Draining("Bye."))
        await asyncio.sleep(60)

    with serve(make(settings, monkeypatch, {}, public_routers=[router])) as url:
        assert '"code":"draining"' in read(url, "/aborted")[1]


def test_a_root_path_of_the_application_is_that_of_every_request(settings: MakeSettings) -> None:
    app = create_app(settings())
    app.root_path = "/api"
    app.add_api_route("/where", _root_path)
    with TestClient(app) as client:
        assert [client.get("/where").json() for _ in range(2)] == ["/api", "/api"]


def _root_path(request: Request) -> str:
    return str(request.scope["root_path"])
