"""Bad input is refused with the right status and code. It is never repeated, breaks nothing, keeps nobody waiting."""

import contextlib
import hashlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from app.config import ModelEntry, Settings
from app.main import create_app
from tests.serving import serve
from tests.stub import Stub
from tests.template.bad_input import BAD, CANARY, EMBEDDINGS, LIMIT, PLAIN, RAW, Bad
from tests.wire import CHAT

SOON = 60
"""Seconds, generous, within which everything is answered."""


@pytest.fixture(scope="module")
def url(key: str) -> Iterator[str]:
    with Stub() as stub:
        models = {
            "demo": ModelEntry(upstream="demo/echo"),
            "gpt-4o": ModelEntry(upstream="openai/gpt-4o", api_base=f"{stub.url}/v1"),
        }
        callers: Any = {"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}}
        settings = Settings(models=models, default_model="demo", callers=callers, max_body_bytes=LIMIT, retries=0)
        with serve(create_app(settings)) as url:
            yield url


def exchange(url: str, request: bytes) -> tuple[int, str, bytes]:
    """Send bytes on a connection of their own; return the answer's status, its headers and its body."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port or 0), timeout=SOON) as connection:
        with contextlib.suppress(ConnectionError):  # a refusal may come before all is sent
            connection.sendall(request)
        answer = http.client.HTTPResponse(connection, method=request.split(b" ")[0].decode("latin-1"))
        answer.begin()
        return answer.status, str(answer.headers), answer.read()


def wire(bad: Bad, key: str) -> bytes:
    headers: dict[str, str | bytes | None] = {
        "Host": "localhost",
        "Authorization": f"Bearer {key}",
        "Connection": "close",
        **({} if bad.body is None else {"Content-Type": "application/json", "Content-Length": str(len(bad.body))}),
        **bad.headers,
    }
    lines = [f"{bad.method} {bad.path} HTTP/1.1".encode()]
    for name, value in headers.items():
        if value is not None:
            lines.append(name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()))
    return b"\r\n".join([*lines, b"", bad.body or b""])


def test_there_are_at_least_200_bad_inputs() -> None:
    assert len(BAD) + len(RAW) >= 200
    assert max([bad.status for bad in BAD.values()] + [status for status, _ in RAW.values()]) < 500


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_or_does_no_harm(url: str, key: str, name: str) -> None:
    bad = BAD[name]
    status, headers, body = exchange(url, wire(bad, key))
    assert status == bad.status
    assert CANARY not in headers
    assert CANARY.encode() not in body
    if bad.code is None or bad.method == "HEAD":
        assert b'"error"' not in body
    else:
        problem = json.loads(body)
        assert problem["error"]["code"] == bad.code
        assert problem["status"] == status
        assert "content-type: application/problem+json" in headers.lower()


@pytest.mark.parametrize("name", RAW)
def test_what_is_hardly_http_is_refused_or_does_no_harm(url: str, name: str) -> None:
    status, request = RAW[name]
    assert exchange(url, request)[0] == status


def test_after_all_of_it_the_server_is_well_and_has_met_nothing_unexpected(url: str, key: str) -> None:
    with capture_logs() as lines:
        for bad in BAD.values():
            exchange(url, wire(bad, key))
        for _, request in RAW.values():
            exchange(url, request)
        assert exchange(url, wire(Bad(200, None, body=PLAIN), key))[0] == 200
    assert not [line for line in lines if line["log_level"] not in ("info", "debug")]


@pytest.fixture(scope="module")
def page() -> Any:
    with TestClient(create_app(Settings(api_docs=True))) as client:
        return client.get("/openapi.json").json()


@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS])
def test_every_status_of_bad_input_is_told(page: Any, path: str) -> None:
    told = page["paths"][path]["post"]["responses"]
    for status in {str(bad.status) for bad in BAD.values() if bad.path == path and bad.status != 405} | {"429", "503"}:
        if status != "200":
            assert told[status]["content"].keys() == {"application/problem+json"}
    assert told["200"]["content"].keys() >= {"application/json"}
    assert ("text/event-stream" in told["200"]["content"]) == (path == CHAT)
