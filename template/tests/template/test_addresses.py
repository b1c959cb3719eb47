"""Images and files are fetched from the web alone: nobody makes this server read its own disk or its own network."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from app.config import ModelEntry, Settings
from app.errors import AppError, InvalidRequest
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from app.models import addresses
from tests.stub import TEXT, Stub

pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM runs in this process, and warns of itself

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f00050001ff89993d1d0000000049454e44ae426082"
)


class Web:
    """A server within the own network, with an image at every path.

    Attributes:
        host: where it is.
        connections: how often somebody connected.
        hits: the paths that were asked for.
        leads_to: where it redirects to instead.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.hits: list[str] = []
        self.leads_to: str | None = None
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.hits.append(self.path)
                self.send_response(302 if web.leads_to else 200)
                if web.leads_to:
                    self.send_header("Location", web.leads_to)
                self.send_header("Content-Type", "image/png")
                self.send_header("Content-Length", str(len(PIXEL)))
                self.end_headers()
                self.wfile.write(PIXEL)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            def get_request(self) -> tuple[socket.socket, Any]:
                web.connections += 1
                return super().get_request()

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.stop()


DIRECT = "openai/gpt-4o-mini"
VIA_LITELLM = "anthropic/claude-sonnet-4-5"

Ask = Callable[[dict[str, Any]], str | None]


@contextlib.contextmanager
def asking(stub: Stub, upstream: str, *image_hosts: str) -> Iterator[Ask]:
    """Yield what asks a model about a part of a message and returns its answer."""
    entry: dict[str, Any] = {"upstream": upstream, "api_base": f"{stub.url}/v1" if upstream == DIRECT else stub.url}
    if upstream != DIRECT:
        entry["protocol"] = "litellm"
    settings = Settings(models={"m": ModelEntry(**entry)}, default_model="m", retries=0, image_hosts=list(image_hosts))

    async def complete(part: dict[str, Any]) -> str | None:
        return (await LLMClient(upstreams).complete(messages=[{"role": "user", "content": [part]}])).content

    with asyncio.Runner() as runner:
        upstreams = Upstreams(settings)
        runner.run(upstreams.__aenter__())
        try:
            yield lambda part: runner.run(complete(part))
        finally:
            runner.run(upstreams.__aexit__())


def ask(stub: Stub, upstream: str, part: dict[str, Any], *image_hosts: str) -> str | None:
    """Ask a model about a part of a message; return its answer."""
    with asking(stub, upstream, *image_hosts) as ask:
        return ask(part)


@pytest.fixture(scope="module")
def anthropic() -> Iterator[tuple[Ask, Stub]]:
    """A model via LiteLLM, for which `images.example` is named, and its provider."""
    with Stub() as stub, asking(stub, VIA_LITELLM, "images.example") as ask:
        yield ask, stub


def image(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


@pytest.mark.parametrize(
    "address",
    [
        "http://{host}/a.png",
        "HTTP://{host}/a.png",
        " http://{host}/a.png",
        "ht\ntp://{host}/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://example.com/a.png",
        "http://images.example@{host}/a.png",
        "http://images.example:80@{host}/a.png",
        "http://images.example\\@{host}/a.png",
        "http://images.example.evil.example/a.png",
    ],
)
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "URL"}},
        {"type": "image_url", "image_url": "URL"},
        {"type": "file", "file": {"file_id": "URL"}},
        {"type": "document", "source": {"type": "url", "url": "URL"}},
    ],
    ids=["image", "text", "file", "document"],
)
def test_litellm_is_given_no_address_without_encryption(
    anthropic: tuple[Ask, Stub], web: Web, address: str, part: dict[str, Any]
) -> None:
    ask, stub = anthropic
    part = json.loads(json.dumps(part).replace('"URL"', json.dumps(address.format(host=web.host))))
    with pytest.raises(InvalidRequest, match="image_hosts"):
        ask(part)
    assert (web.connections, stub.requests) == (0, [])


@pytest.mark.parametrize("upstream", ["gemini/gemini-2.5-flash", "ollama/llava", "openai/gpt-4o"])
@pytest.mark.parametrize("host", ["{host}", "localhost:{port}"])
def test_litellm_fetches_nothing_within_the_own_network(stub: Stub, web: Web, upstream: str, host: str) -> None:
    """This is LiteLLM's own check, which we turn on and rely on."""
    url = f"https://{host.format(host=web.host, port=web.host.partition(':')[2])}/a.pdf"
    part = {"type": "file", "file": {"file_id": url}} if upstream.startswith("openai/") else image(url)
    with pytest.raises(AppError) as refusal:
        ask(stub, upstream, part)
    assert refusal.value.status == 400
    assert url not in refusal.value.message
    assert web.connections == 0
    with pytest.raises(AppError):  # where it may, it does, though this host has no certificate
        ask(stub, upstream, part, web.host, f"localhost:{web.host.partition(':')[2]}")
    assert web.connections > 0


def test_a_host_that_is_named_may_be_fetched_from(stub: Stub, web: Web) -> None:
    assert ask(stub, VIA_LITELLM, image(f"http://{web.host}/a.png"), web.host) == TEXT
    assert web.hits == ["/a.png"]
    assert "iVBORw0KGgo" in json.dumps(stub.requests[-1].body), "the image goes to the provider as it was"


def test_a_host_that_is_named_leads_nowhere_else(stub: Stub, web: Web) -> None:
    other = Web()
    try:
        web.leads_to = f"http://{other.host}/secret.png"
        with pytest.raises(AppError):
            ask(stub, VIA_LITELLM, image(f"http://{web.host}/a.png"), web.host)
        assert web.hits
        assert other.connections == 0
    finally:
        other.stop()


@pytest.mark.parametrize("upstream", [VIA_LITELLM, DIRECT])
def test_an_image_that_is_sent_along_is_taken(stub: Stub, upstream: str) -> None:
    assert ask(stub, upstream, image("data:image/png;base64,iVBORw0KGgo=")) == TEXT


@pytest.mark.parametrize("address", ["http://example.com/a.png", "https://127.0.0.1/a.png"])
def test_on_the_direct_way_the_provider_fetches(stub: Stub, address: str) -> None:
    assert ask(stub, DIRECT, image(address)) == TEXT
    assert stub.requests[0].body["messages"][0]["content"] == [image(address)]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "file:///etc/passwd is a file"},
        {"type": "thinking", "thinking": "http://example.com is a site"},
        {"type": "file", "file": {"filename": "a: b.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "document", "context": "File: notes. See http://example.com"},
    ],
    ids=str,
)
def test_what_is_no_address_is_not_taken_for_one(part: dict[str, Any]) -> None:
    assert list(addresses(part)) == []
