"""A database that is slow or gone: what needs none goes on, what needs it is told so, and it comes back."""

import contextlib
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from sqlalchemy import make_url, text

from app import own
from app.config import Settings
from app.database import Session
from app.database.service import CONNECTIONS, UP
from app.main import create_app
from tests.database.fixtures import POSTGRES
from tests.serving import Process, serve
from tests.stub import TEXT, Behaviour, Stub
from tests.template.database.test_background import tables, until
from tests.template.database.test_state import KEYS, Json

RESPONSES = "/v1/responses"
needs_postgres = pytest.mark.skipif(not POSTGRES, reason="TEST_POSTGRES_URL is not set")


class Proxy:
    """A TCP proxy whose connections can be stalled, or closed and refused.

    Args:
        port: where it leads, on this machine.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.flows = threading.Event()
        self.flows.set()
        self.refuses = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close all connections, and refuse new ones."""
        self.refuses = True
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End."""
        self.flows.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._port))
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait()
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def upstream() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@contextlib.contextmanager
def served(url: str, stub: Stub) -> Iterator[httpx2.Client]:
    router = APIRouter()

    @router.get("/one")
    async def one(session: Session) -> int:
        return int(await session.scalar(text("SELECT 1")) or 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "routers", [router], raising=False)
        settings = Settings(database_url=url, database_timeout=0.5, **tables(stub))
        with (
            serve(create_app(settings)) as base,
            httpx2.Client(base_url=base, headers={"Authorization": f"Bearer {KEYS['web']}"}, timeout=60) as client,
        ):
            yield client


def ask(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    return client.post(RESPONSES, json={"input": "Hello"} | fields)


def said(response: httpx2.Response) -> str:
    body: Json = response.json()
    return str(body["output"][0]["content"][0]["text"])


def check_outage(client: httpx2.Client, stub: Stub, previous: str) -> None:
    """Check what works and what doesn't while the database does not answer."""
    until(lambda: ask(client).status_code == 503)
    until(lambda: UP._value.get() == 0)  # noqa: SLF001 - prometheus-client has no other way
    asked = len(stub.requests)
    started = time.monotonic()
    for fields in ({}, {"previous_response_id": previous}, {"background": True}, {"stream": True}):
        refused = ask(client, **fields)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")
        assert "does not answer" in refused.json()["error"]["message"]
    assert len(stub.requests) == asked  # no model was called for nothing
    assert time.monotonic() - started < 5
    assert client.get("/one").status_code == 503
    assert client.get(f"{RESPONSES}/{previous}").status_code == 503
    assert said(ask(client, store=False)) == TEXT
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert ready.json()["degraded"] == ["The database does not answer: nothing can be stored or continued."]


def check_recovery(client: httpx2.Client, previous: str) -> None:
    until(lambda: client.get("/ready").json() == {"status": "ready"})
    goes_on = ask(client, previous_response_id=previous)
    assert (goes_on.status_code, said(goes_on)) == (200, TEXT)
    made = ask(client, background=True).json()["id"]
    until(lambda: client.get(f"{RESPONSES}/{made}").json()["status"] == "completed")
    assert client.get("/one").json() == 1


@needs_postgres
@pytest.mark.parametrize("kind", ["stalled", "gone"])
def test_stateless_calls_go_on_while_the_database_does_not_answer(database: str, upstream: Stub, kind: str) -> None:
    url = make_url(database)
    proxy = Proxy(url.port or 5432)
    with contextlib.closing(proxy):
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        with served(through, upstream) as client:
            previous = ask(client).json()["id"]
            if kind == "stalled":
                proxy.flows.clear()
            else:
                proxy.cut()
            check_outage(client, upstream, previous)
            proxy.flows.set()
            proxy.refuses = False
            check_recovery(client, previous)


@needs_postgres
def test_a_service_starts_before_its_database(database: str, upstream: Stub) -> None:
    url = make_url(database)
    proxy = Proxy(url.port or 5432)
    with contextlib.closing(proxy):
        proxy.refuses = True
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        with served(through, upstream) as client:
            assert said(ask(client, store=False)) == TEXT
            assert ask(client).status_code == 503
            proxy.refuses = False
            until(lambda: client.get("/ready").json() == {"status": "ready"})
            check_recovery(client, ask(client).json()["id"])


@needs_postgres
def test_a_process_ends_although_its_database_is_gone(database: str, upstream: Stub) -> None:
    upstream.default = Behaviour(pace=0.2)
    url = make_url(database)
    proxy = Proxy(url.port or 5432)
    with contextlib.closing(proxy):
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        given = tables(upstream) | {"database_url": through, "database_timeout": 0.5, "shutdown_grace": 1}
        env = {f"APP_{k.upper()}": json.dumps(v) if isinstance(v, dict) else str(v) for k, v in given.items()}
        headers = {"Authorization": f"Bearer {KEYS['web']}"}
        with Process(env=env) as process, httpx2.Client(base_url=process.url, headers=headers, timeout=60) as client:
            assert ask(client, background=True).json()["status"] == "queued"
            until(lambda: upstream.requests)
            proxy.cut()
            until(upstream.requests[0].closed.is_set)  # it is made, and can't be stored
            process.terminate()
            process.wait(120)


@pytest.mark.skipif(bool(POSTGRES), reason="of SQLite alone")
def test_a_file_that_somebody_else_writes_is_waited_for_and_then_told_of(database: str, upstream: Stub) -> None:
    with served(database, upstream) as client, closing(sqlite3.connect(make_url(database).database or "")) as other:
        previous = ask(client).json()["id"]
        other.execute("BEGIN IMMEDIATE")
        assert ask(client).status_code == 503
        assert said(ask(client, store=False)) == TEXT
        other.rollback()
        check_recovery(client, previous)


def test_connections_are_given_back(database: str, upstream: Stub) -> None:
    with served(database, upstream) as client:
        for _ in range(30):
            assert ask(client).status_code == 200
            assert client.get("/one").json() == 1
            assert ask(client, previous_response_id="resp_none").status_code == 404
        until(lambda: CONNECTIONS._value.get() == 0)  # noqa: SLF001 - as above
