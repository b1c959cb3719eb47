"""Nobody gets a model without a key that opens it, and no provider's key goes anywhere but to its provider."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import ValidationError

from app.access.callers import CallerKeys, hash_key
from app.config import CallerEntry, ModelEntry, Settings
from app.main import create_app
from tests.serving import serve
from tests.stub import TEXT, Stub

HELLO: Any = [{"role": "user", "content": "Hello"}]
HOW_TO_ADD = "python -m app callers add"
PUBLIC = "api.example.com"


def chat(url: str, model: str | None = "gpt-4o", key: str | None = None, **headers: str) -> httpx2.Response:
    """Say hello to a model; underscores in the names of headers stand for hyphens."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key:
        sent["Authorization"] = f"Bearer {key}"
    body = {"messages": HELLO} | ({"model": model} if model else {})
    return httpx2.post(f"{url}/v1/chat/completions", json=body, headers=sent, timeout=60)


def models(url: str, key: str | None = None) -> set[str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {model["id"] for model in httpx2.get(f"{url}/v1/models", headers=headers, timeout=60).json()["data"]}


def code_of(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@contextlib.contextmanager
def serving(**given: Any) -> Iterator[str]:
    with Stub() as stub:
        table = {
            "gpt-4o": ModelEntry(upstream="openai/gpt-4o", api_base=f"{stub.url}/v1"),
            "other": ModelEntry(upstream="openai/other", api_base=f"{stub.url}/v1"),
            "demo": ModelEntry(upstream="demo/echo"),
        }
        with serve(create_app(Settings(models=table, retries=0, **given))) as url:
            yield url


@pytest.fixture(scope="module")
def closed() -> Iterator[str]:
    """A server as it is without callers."""
    with serving() as url:
        yield url


@pytest.fixture(scope="module")
def keyed() -> Iterator[str]:
    """A server with a caller who has two keys and may use all, and one who may use `demo` and `other`."""
    callers: Any = {
        "web": {"key_sha256": [hash_key("old"), hash_key("new")]},
        "batch": {"key_sha256": hash_key("batch"), "models": ["demo", "other"]},
    }
    with serving(callers=callers) as url:
        yield url


@pytest.fixture(scope="module")
def dev() -> Iterator[str]:
    """A server under `--dev`, which has a caller too."""
    callers: Any = {"web": {"key_sha256": hash_key("key")}}
    with serving(dev=True, callers=callers) as url:
        yield url


# Closed by default.


@pytest.mark.parametrize("key", [None, "whatever"])
def test_without_callers_the_demo_model_answers_anyone(closed: str, key: str | None) -> None:
    assert chat(closed, "demo", key).status_code == 200


@pytest.mark.parametrize("model", ["gpt-4o", "other", None, "no-such-model"])
def test_without_callers_any_other_model_says_how_to_add_one(closed: str, model: str | None) -> None:
    response = chat(closed, model)
    assert code_of(response) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert HOW_TO_ADD in response.json()["detail"]


def test_without_callers_only_the_demo_model_is_listed(closed: str) -> None:
    assert models(closed) == {"demo"}


def test_without_callers_no_embedding_is_made_but_by_the_demo_model(closed: str) -> None:
    for model, status in [("gpt-4o", 401), ("demo", 200)]:
        asked = {"model": model, "input": "Hello"}
        assert httpx2.post(f"{closed}/v1/embeddings", json=asked, timeout=60).status_code == status


# Keys.


def test_a_right_key_is_let_in(keyed: str) -> None:
    assert chat(keyed, key="new").json()["content"] == TEXT


def test_while_keys_are_rotated_both_are_let_in(keyed: str) -> None:
    assert [chat(keyed, key=key).status_code for key in ("old", "new")] == [200, 200]


def test_a_key_ends_on_its_day_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [{"sha256": hash_key("ends"), "expires": "2027-01-31"}, {"sha256": hash_key("stays")}]
    table: Any = {"web": CallerEntry.model_validate_json(json.dumps({"key_sha256": hash_key("first"), "keys": keys}))}

    def known(now: str) -> set[str]:
        clock = SimpleNamespace(now=lambda zone: datetime.fromisoformat(now).astimezone(zone))
        monkeypatch.setattr("app.access.callers.datetime", clock)
        return {key for key in ("first", "ends", "stays", "another") if CallerKeys(table).find(key)}

    assert known("2027-01-30T23:59:59+00:00") == {"first", "ends", "stays"}
    assert known("2027-01-31T00:00:00+00:00") == {"first", "stays"}
    assert known("2027-01-31T00:30:00+01:00") == {"first", "ends", "stays"}


def test_a_caller_may_have_ending_keys_alone_but_not_none() -> None:
    digest = hash_key("key")
    assert CallerEntry.model_validate({"keys": [{"sha256": digest}]}).key_sha256 == []
    with pytest.raises(ValidationError, match="a caller needs key_sha256 or keys"):
        CallerEntry.model_validate({"models": ["demo"]})


@pytest.mark.parametrize("model", ["gpt-4o", "demo"])
def test_a_missing_key_is_refused(keyed: str, model: str) -> None:
    response = chat(keyed, model)
    assert code_of(response) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert HOW_TO_ADD in response.json()["detail"]


@pytest.mark.parametrize(
    "authorization",
    ["Bearer wrong", f"Bearer {hash_key('new')}", "Bearer new2", "Bearer ne", "Basic new", "new", "Bearer"],
)
def test_a_wrong_key_is_refused(keyed: str, authorization: str) -> None:
    assert code_of(chat(keyed, "demo", authorization=authorization)) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/demo"])
def test_models_are_listed_to_nobody_without_a_key(keyed: str, path: str) -> None:
    assert httpx2.get(keyed + path, timeout=60).status_code == 401


def test_a_caller_may_use_its_own_models(keyed: str) -> None:
    assert chat(keyed, "other", "batch").status_code == 200


@pytest.mark.parametrize("model", ["gpt-4o", None])
def test_a_caller_may_not_use_another_model(keyed: str, model: str | None) -> None:
    assert code_of(chat(keyed, model, "batch")) == (403, "model_not_allowed")


def test_a_caller_sees_the_models_that_it_may_use(keyed: str) -> None:
    assert models(keyed, "new") == {"gpt-4o", "other", "demo"}
    assert models(keyed, "batch") == {"other", "demo"}


def test_a_model_that_a_caller_may_not_use_is_not_found(keyed: str) -> None:
    for key, status in [("new", 200), ("batch", 404)]:
        response = httpx2.get(f"{keyed}/v1/models/gpt-4o", headers={"Authorization": f"Bearer {key}"}, timeout=60)
        assert response.status_code == status


# --dev.


@pytest.mark.parametrize("model", ["gpt-4o", "other", "demo"])
def test_dev_serves_any_model_to_this_machine_without_a_key(dev: str, model: str) -> None:
    assert chat(dev, model).status_code == 200
    assert models(dev) == {"gpt-4o", "other", "demo"}


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "app.localhost"])
def test_dev_serves_every_name_of_this_machine(dev: str, host: str) -> None:
    assert chat(dev, host=host, origin=f"http://{host}").status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        # A name that an attacker has rebound to this machine.
        {"host": PUBLIC},
        {"host": f"{PUBLIC}:8000"},
        {"host": "127.0.0.1.example.com"},
        {"host": "localhost.example.com"},
        {"host": "127.0.0.1:8000@example.com"},
        {"host": ""},
        # A website that the developer visits.
        {"origin": "https://example.com"},
        {"origin": "http://localhost.example.com"},
        {"origin": "null"},
        {"origin": ""},
        # A proxy that says so.
        {"forwarded": "for=192.0.2.1"},
        {"via": "1.1 proxy"},
        {"x_forwarded_for": "127.0.0.1"},
        {"x_forwarded_host": "localhost"},
        {"x_forwarded_proto": "https"},
        {"x_real_ip": "127.0.0.1"},
        {"cf_connecting_ip": "127.0.0.1"},
    ],
    ids=lambda header: "-".join(*header.items()),
)
def test_dev_serves_nobody_else_without_a_key(dev: str, header: dict[str, str]) -> None:
    response = chat(dev, "demo", **header)
    assert code_of(response) == (401, "invalid_api_key")
    assert HOW_TO_ADD in response.json()["detail"]


def test_dev_lists_models_to_nobody_else(dev: str) -> None:
    assert httpx2.get(f"{dev}/v1/models", headers={"Origin": "https://example.com"}, timeout=60).status_code == 401


def test_dev_serves_a_key_from_anywhere(dev: str) -> None:
    assert chat(dev, key="key", host=PUBLIC, origin="https://example.com", x_forwarded_for="192.0.2.1").is_success


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on, headers and all, and says nowhere that it does."""

    upstream = ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        connection = http.client.HTTPConnection(self.upstream)
        with contextlib.closing(connection):
            connection.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxy(dev: str) -> Iterator[str]:
    """A proxy on this machine before the server under `--dev`."""
    kind = type("ProxyToDev", (Proxy,), {"upstream": urlsplit(dev).netloc})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_dev_serves_nobody_behind_a_proxy_that_does_not_say_so(proxy: str) -> None:
    assert chat(proxy, "demo").status_code == 200
    response = chat(proxy, "demo", host=PUBLIC)
    assert response.status_code == 401
    assert HOW_TO_ADD in response.json()["detail"]


def test_dev_serves_nobody_behind_a_proxy_that_speaks_http_1_0(dev: str) -> None:
    address = urlsplit(dev)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"GET /v1/models HTTP/1.0\r\nHost: {address.netloc}\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            assert b" 401 " in answer.readline()
            assert HOW_TO_ADD.encode() in answer.read()
