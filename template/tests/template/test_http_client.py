"""The client that reaches providers: what it sends, which connections it keeps, and what it makes of odd responses."""

import asyncio
import contextlib
import gc
import gzip
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from app.config import ModelEntry, Timeouts
from app.errors import ProviderError
from app.llm import http_client, http_connection, http_response
from app.llm.call import Call
from app.llm.deadlines import Deadlines
from app.llm.direct import Direct
from app.llm.http_client import HttpClient
from app.llm.http_response import Disconnected, Response, Unreached, Unreadable
from app.llm.stream_state import StreamState
from app.llm.targets import Target

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nHello"
PATIENCE = 60.0


class Peer:
    """A server that answers every request with the same bytes.

    Attributes:
        received: the requests, one after the other.
        connections: how many were made.
        left: how many clients have closed theirs.
    """

    def __init__(self, *answers: bytes, ends: bool = False) -> None:
        self.answers = answers
        self.ends = ends
        self.received: list[bytes] = []
        self.connections = 0
        self.left = 0
        self.talks: list[asyncio.Task[None] | None] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.received.append(head + await reader.readexactly(length))
                for answer in self.answers:
                    writer.write(answer)
                    await writer.drain()
                    await asyncio.sleep(0.02)
                if self.ends:
                    break
        self.left += not self.ends

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.talks.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await self.talk(reader, writer)
            writer.close()
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(peer: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[HttpClient, str]]:
    """Serve a peer, with TLS if there is a context; yield a client, and the peer's host and port."""
    server = await asyncio.start_server(peer, "127.0.0.1", 0, ssl=tls)
    client = HttpClient(PATIENCE)
    try:
        async with asyncio.timeout(PATIENCE):
            yield client, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await client.close()
        server.close()
        await asyncio.gather(*filter(None, peer.talks))


@contextlib.asynccontextmanager
async def talking(peer: Peer) -> AsyncIterator[Callable[..., Awaitable[Response]]]:
    """Serve a peer; yield what sends it a request."""
    async with serving(peer) as (client, host):
        yield lambda body=b"{}", **headers: client.post(f"http://{host}/v1/chat", headers, body)


async def whole(response: Response) -> bytes:
    packets = []
    while packet := await response.read():
        packets.append(packet)
    response.close()
    return b"".join(packets)


def answered(peer: Peer, *, times: int = 1) -> list[bytes]:
    """Return the bodies that come back when it is asked so often, one request after the other."""

    async def run() -> list[bytes]:
        async with talking(peer) as post:
            return [await whole(await post()) for _ in range(times)]

    return uvloop.run(run())


# Connections


@pytest.mark.parametrize(
    "answer",
    [
        HELLO,
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nHello\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nHello\r\n0\r\nX-Sum: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + HELLO,
    ],
    ids=["length", "chunks", "a trailer", "interim responses"],
)
def test_a_connection_is_used_again(answer: bytes) -> None:
    peer = Peer(answer)
    assert answered(peer, times=3) == [b"Hello"] * 3
    assert peer.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nHello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nHello",
        HELLO + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEvil",
        HELLO + b"garbage",
    ],
    ids=["that is to be closed", "of HTTP/1.0", "with a second response", "with more bytes"],
)
def test_a_connection_is_not_used_again(answer: bytes) -> None:
    peer = Peer(answer)
    assert answered(peer, times=2) == [b"Hello"] * 2
    assert peer.connections == 2


def test_what_a_server_says_unasked_is_not_taken_for_the_next_answer() -> None:
    peer = Peer(HELLO, HELLO.replace(b"Hello", b"Evil!"))

    async def run() -> None:
        async with talking(peer) as post:
            assert await whole(await post()) == b"Hello"
            await asyncio.sleep(0.3)  # the second one arrives
            assert await whole(await post()) == b"Hello"

    uvloop.run(run())
    assert peer.connections == 2


def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    peer = Peer(HELLO, ends=True)

    async def run() -> None:
        async with talking(peer) as post:
            assert await whole(await post()) == b"Hello"
            await asyncio.sleep(0.3)
            assert await whole(await post()) == b"Hello"

    uvloop.run(run())


def test_a_connection_that_the_server_has_closed_is_not_held() -> None:
    async def run() -> int:
        async with talking(Peer(HELLO, ends=True)) as post:
            assert await whole(await post()) == b"Hello"
            await asyncio.sleep(0.3)
            gc.collect()
            return sum(type(each) is http_connection.Connection for each in gc.get_objects())

    assert uvloop.run(run()) == 0


def test_an_idle_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "KEEP", 0.2)
    peer = Peer(HELLO)

    async def run() -> None:
        async with talking(peer) as post:
            await whole(await post())
            while not peer.left:  # noqa: ASYNC110 - it is the peer that waits
                await asyncio.sleep(0.02)

    uvloop.run(run())


@pytest.mark.parametrize("answer", [b"", OK, OK + b"Content-Length: 50\r\n\r\nHello"], ids=["head", "headers", "body"])
def test_a_call_that_is_cancelled_ends_its_connection(answer: bytes) -> None:
    peer = Peer(answer)

    async def run() -> None:
        async with talking(peer) as post:

            async def call() -> None:
                response = await post()
                try:
                    await whole(response)
                finally:
                    response.close()

            task = asyncio.create_task(call())
            await asyncio.sleep(0.3)
            task.cancel()
            while not peer.left:  # noqa: ASYNC110 - it is the peer that waits
                await asyncio.sleep(0.02)

    uvloop.run(run())


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Return what a server needs to be llm.example, whom the client trusts."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "llm.example")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("llm.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "pem").write_bytes(private + certificate.public_bytes(Encoding.PEM))
    trusting = ssl.create_default_context(cafile=tmp_path / "pem")
    monkeypatch.setattr(http_client, "_tls", lambda: trusting)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    return context


def resolve(monkeypatch: pytest.MonkeyPatch, lookup: Callable[..., Awaitable[list[Any]]]) -> None:
    """Have a running loop look up every name like this."""
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)


async def here(_host: str, port: int, **_: Any) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_response_before_the_body_was_sent_is_read_and_its_connection_is_not_used_again(
    scheme: str, certified: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hasty(Peer):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            await asyncio.sleep(0.3)

    peer = Hasty()

    async def run() -> None:
        async with serving(peer, certified if scheme == "https" else None) as (client, host):
            resolve(monkeypatch, here)
            url = f"{scheme}://llm.example:{host.partition(':')[2]}/"
            for _ in range(2):
                response = await client.post(url, {}, b"x" * 20_000_000)
                assert (response.status, await whole(response)) == (413, b"big")

    uvloop.run(run())
    assert peer.connections == 2


def test_a_server_that_ends_its_side_while_a_request_is_sent_is_not_waited_for() -> None:
    class Leaving(Peer):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK + b"\r\nBye")
            writer.write_eof()
            await done.wait()

    done = asyncio.Event()

    async def run() -> None:
        async with talking(Leaving()) as post:
            asyncio.get_running_loop().call_later(PATIENCE, done.set)
            assert await whole(await post(b"x" * 20_000_000)) == b"Bye"
            done.set()

    uvloop.run(run())


def test_a_server_that_speaks_before_it_is_asked_is_no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    class MailServer(Peer):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")

    async def run() -> None:
        async with talking(MailServer()) as post:
            for _ in range(5):
                with pytest.raises(http_response.HttpError):
                    await post()

    uvloop.run(run())
    assert caplog.messages == []


def test_a_call_that_is_over_after_its_client_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "KEEP", 0.2)
    peer = Peer(OK + b"Content-Length: 5\r\n\r\n", b"Hello")

    async def run() -> None:
        async with serving(peer) as (client, host):
            responses = [await client.post(f"http://{host}/", {}, b"{}") for _ in range(2)]
            assert await whole(responses[0]) == b"Hello"
            await client.close()
            assert await whole(responses[1]) == b"Hello"
            while peer.left < 2:  # noqa: ASYNC110 - it is the peer that waits
                await asyncio.sleep(0.02)

    uvloop.run(run())


def test_a_stream_that_failed_does_not_keep_its_request_in_memory() -> None:
    prompt = "x" * 100_000

    def requests() -> int:
        return sum(type(each) is dict and each.get("user") is prompt for each in gc.get_objects())

    async def run() -> None:
        failing = Peer(OK + b'Connection: close\r\n\r\ndata: {"error": {"message": "no"}}\n\n', ends=True)
        async with serving(failing) as (_, host):
            direct = Direct(Timeouts())
            await direct.start()
            target = Target("m", "openai", "m", "direct", ModelEntry(upstream="openai/m"), api_base=f"http://{host}/v1")
            call = Call("chat", target, {"user": prompt}, Deadlines(Timeouts()))
            with contextlib.suppress(ProviderError):
                async for _ in direct.stream(call, target, StreamState()):
                    pass
            del call
            await direct.close()
            assert requests() == 0

    gc.disable()
    try:
        uvloop.run(run())
    finally:
        gc.enable()


def test_a_request_that_failed_is_not_kept_in_memory() -> None:
    def requests() -> int:
        return sum(type(each) is tuple and b"x" * 100_000 in each for each in gc.get_objects())

    async def run() -> None:
        async with talking(Peer(b"SSH\r\n\r\n")) as post:
            with contextlib.suppress(Unreadable):  # pytest.raises keeps the error
                await post(b"x" * 100_000)
            await asyncio.sleep(0)  # until then, the event loop knows the error
            assert requests() == 0

    gc.disable()  # which would clear a circle of references at some later time
    try:
        uvloop.run(run())
    finally:
        gc.enable()


# What is sent


def test_a_request_is_sent_as_http_says() -> None:
    peer = Peer(HELLO)

    async def run() -> None:
        async with talking(peer) as post:
            await whole(await post('{"a": "é"}'.encode(), Authorization="Bearer k"))

    uvloop.run(run())
    [request] = peer.received
    head, _, body = request.partition(b"\r\n\r\n")
    assert body == '{"a": "é"}'.encode()
    line, *headers = head.split(b"\r\n")
    assert line == b"POST /v1/chat HTTP/1.1"
    assert headers[0].startswith(b"Host: 127.0.0.1:")
    assert {b"Authorization: Bearer k", b"Content-Length: 11", b"Accept-Encoding: identity"} <= set(headers)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b"])
def test_a_header_can_not_bring_another(value: str) -> None:
    peer = Peer(HELLO)

    async def run() -> None:
        async with talking(peer) as post:
            with pytest.raises(ValueError, match="X_Own"):
                await post(X_Own=value)

    uvloop.run(run())
    assert peer.received == []


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://localhost/v1", "POST /v1 HTTP/1.1", "Host: localhost"),
        ("https://example.com", "POST / HTTP/1.1", "Host: example.com"),
        ("http://[::1]:8000/v1/a b/é", "POST /v1/a%20b/%C3%A9 HTTP/1.1", "Host: [::1]:8000"),
        ("http://bücher.example/v1%2Fx?a=b", "POST /v1%2Fx?a=b HTTP/1.1", "Host: xn--bcher-kva.example"),
    ],
)
def test_an_address_becomes_a_request_line_and_a_host(url: str, line: str, host: str) -> None:
    assert http_client._place(url, None)[1].split("\r\n")[:2] == [line, host]  # noqa: SLF001 - what is sent for it


# What is read


CUT = [
    b"",
    b"HTTP/1.1 2",
    OK,
    OK + b"Content-Length: 50\r\n\r\nHello",
    OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nHel",
]


@pytest.mark.parametrize("answer", CUT)
def test_a_response_that_breaks_off_is_an_error(answer: bytes) -> None:
    with pytest.raises(Disconnected):
        answered(Peer(answer, ends=True))


def test_what_came_before_a_break_is_read_first() -> None:
    async def run() -> None:
        async with talking(Peer(CUT[-1], ends=True)) as post:
            response = await post()
            await asyncio.sleep(0.3)
            assert await response.read() == b"Hel"
            for _ in range(2):
                with pytest.raises(Disconnected):
                    await response.read()

    uvloop.run(run())


def test_a_body_may_end_with_its_connection() -> None:
    assert answered(Peer(OK + b"\r\n", b"Hel", b"lo", ends=True)) == [b"Hello"]


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_that_has_no_body_ends_with_its_head(status: int) -> None:
    peer = Peer(b"HTTP/1.1 %d Nothing\r\n\r\n" % status)
    assert answered(peer, times=2) == [b"", b""]
    assert peer.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"X: " + b"a" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",
        OK + b"".join(b"X-%d: a\r\n" % n for n in range(10_000)) + b"Content-Length: 0\r\n\r\n",
        OK + b"a" * 70_000,
        OK + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * 1_000_000 + b"\r\nHello\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 200_000 + b"\r\n",
    ],
    ids=["no HTTP", "an upgrade", "no length", "two lengths", "a length and chunks", "a long header", "many headers",
         "a head without an end", "a long extension", "long trailers"],
)  # fmt: skip
def test_what_is_no_response_is_an_error(answer: bytes) -> None:
    with pytest.raises(Unreadable):
        answered(Peer(answer))


def compressed(text: bytes, encoding: bytes) -> bytes:
    body = zlib.compress(text) if encoding == b"deflate" else gzip.compress(text)
    return OK + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body)) + body


@pytest.mark.parametrize("encoding", [b"gzip", b"x-gzip", b"GZIP", b"deflate"])
def test_a_compressed_body_that_nobody_asked_for_is_read(encoding: bytes) -> None:
    answer = compressed(b"Hello " * 1000, encoding)
    assert answered(Peer(answer[:-300], answer[-300:], b"")) == [b"Hello " * 1000]


def test_a_compressed_body_that_breaks_off_is_an_error() -> None:
    answer = compressed(b"Hello", b"gzip").replace(b"Content-Length: 25", b"Content-Length: 15")[:-10]
    with pytest.raises(Unreadable):
        answered(Peer(answer))


def test_a_compressed_body_with_more_behind_it_is_an_error() -> None:
    body = gzip.compress(b"Hello ") + gzip.compress(b"you")
    with pytest.raises(Unreadable):
        answered(Peer(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body))


def test_a_server_is_held_back_while_what_it_sent_is_decoded() -> None:
    sent = 0

    class Pouring(Peer):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK + b"Content-Encoding: gzip\r\n\r\n")
            for _ in range(300):
                writer.write(packet)
                await writer.drain()
                sent += len(packet)

    encoder = zlib.compressobj(wbits=31)
    packet = encoder.compress(bytes(100_000_000))[:90_000]

    async def run() -> None:
        async with talking(Pouring()) as post:
            response = await post()
            for _ in range(50):
                assert await response.read()
                await asyncio.sleep(0.01)
            response.close()

    uvloop.run(run())
    assert sent < 12_000_000


def test_a_little_that_becomes_much_is_read_in_parts() -> None:
    async def run() -> None:
        async with talking(Peer(compressed(bytes(20_000_000), b"gzip"))) as post:
            response = await post()
            sizes = []
            while packet := await response.read():
                sizes.append(len(packet))
            assert sum(sizes) == 20_000_000
            assert max(sizes) <= http_response.MAX_DECODED_BYTES

    uvloop.run(run())


def test_a_server_is_held_back_while_nobody_reads() -> None:
    sent = 0

    class Pouring(Peer):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK + b"Content-Length: 100000000\r\n\r\n")
            for _ in range(100):
                writer.write(bytes(1_000_000))
                await writer.drain()
                sent += 1_000_000

    async def run() -> None:
        async with talking(Pouring()) as post:
            response = await post()
            before = -1
            while sent > before:
                before = sent
                await asyncio.sleep(0.3)
            assert sent < 30_000_000
            assert len(await whole(response)) == 100_000_000

    uvloop.run(run())


def test_a_response_ends_though_more_comes_in_its_last_packet() -> None:
    assert answered(Peer(OK + b"Content-Length: 5\r\n\r\nHel", b"lo" + OK, ends=True)) == [b"Hello"]


# Time limits


class Late(Exception):
    pass


class Until:
    """A limit in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.deadline = asyncio.get_running_loop().time() + seconds

    def expired(self) -> Exception:
        return Late()


@pytest.mark.parametrize("answers", [[], [OK], [OK + b"Content-Length: 50\r\n\r\n", b"Hello"]])
def test_a_response_that_does_not_end_before_its_limit_raises_the_limits_error(answers: list[bytes]) -> None:
    peer = Peer(*answers)

    async def run() -> None:
        async with serving(peer) as (client, host):
            with pytest.raises(Late):
                await whole(await client.post(f"http://{host}/", {}, b"{}", limit=Until(0.2)))
            while not peer.left:  # noqa: ASYNC110 - it is the peer that waits
                await asyncio.sleep(0.02)

    uvloop.run(run())


def test_a_limit_passes_while_a_connection_is_made_too(full: int) -> None:
    async def run() -> None:
        client = HttpClient(PATIENCE)
        with pytest.raises(Late):
            await client.post(f"http://127.0.0.1:{full}/", {}, b"{}", limit=Until(0.2))
        await client.close()

    uvloop.run(run())


def test_a_limit_may_move_while_it_is_waited_for() -> None:
    async def run() -> bytes:
        async with serving(Peer(OK + b"Content-Length: 5\r\n\r\n", *(b"%c" % each for each in b"Hello"))) as (
            client,
            host,
        ):
            limit = Until(0.05)
            asyncio.get_running_loop().call_later(0.03, setattr, limit, "deadline", Until(PATIENCE).deadline)
            return await whole(await client.post(f"http://{host}/", {}, b"{}", limit=limit))

    assert uvloop.run(run()) == b"Hello"


def test_the_limit_of_one_request_is_not_the_next_one_s() -> None:
    peer = Peer(HELLO)

    async def run() -> list[bytes]:
        async with serving(peer) as (client, host):
            first = await whole(await client.post(f"http://{host}/", {}, b"{}", limit=Until(0.1)))
            await asyncio.sleep(0.2)
            return [first, await whole(await client.post(f"http://{host}/", {}, b"{}"))]

    assert uvloop.run(run()) == [b"Hello"] * 2
    assert peer.connections == 1


@pytest.mark.parametrize("ends", [True, False])
def test_a_response_that_is_left_gives_its_connection_back_if_it_ends_in_time(ends: bool) -> None:
    peer = Peer(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nHello\r\n", *([b"0\r\n\r\n"] if ends else []))

    async def run() -> None:
        async with talking(peer) as post:
            for _ in range(2):
                response = await post()
                assert await response.read() == b"Hello"
                response.leave(PATIENCE if ends else 0.1)
                response.close()
                await asyncio.sleep(0.3)

    uvloop.run(run())
    assert (peer.connections, peer.left) == ((1, 1) if ends else (2, 2))


def test_a_response_that_is_left_does_not_outlive_the_client() -> None:
    peer = Peer(OK + b"Content-Length: 50\r\n\r\n")

    async def run() -> None:
        async with serving(peer) as (client, host):
            response = await client.post(f"http://{host}/", {}, b"{}")
            response.leave(PATIENCE)
            await client.close()
            while not peer.left:  # noqa: ASYNC110 - it is the peer that waits
                await asyncio.sleep(0.02)

    uvloop.run(run())


def test_a_read_that_is_failed_raises_the_error_and_ends_the_connection() -> None:
    peer = Peer(OK + b"Content-Length: 50\r\n\r\n")

    async def run() -> None:
        async with talking(peer) as post:
            response = await post()
            asyncio.get_running_loop().call_later(0.1, response.fail, KeyError)
            with pytest.raises(KeyError):
                await response.read()
            response.close()
            while not peer.left:  # noqa: ASYNC110 - it is the peer that waits
                await asyncio.sleep(0.02)

    uvloop.run(run())


# What can't be reached


@pytest.fixture
def full() -> Iterator[int]:
    """Yield the port of a server that accepts no further connection: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as clients:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def reason(url: str, proxy: str | None = None, within: float = PATIENCE) -> str:
    async def run() -> str:
        client = HttpClient(within)
        try:
            with pytest.raises(Unreached) as caught:
                await client.post(url, {}, b"{}", proxy)
            return str(caught.value)
        finally:
            await client.close()

    return uvloop.run(run())


def test_why_a_server_was_not_reached_is_told(full: int) -> None:
    assert reason("http://127.0.0.1:1/") == "ConnectionRefusedError"
    assert reason("http://llm.invalid/") == "gaierror"
    assert reason(f"http://{'a' * 64}.example/") == "UnicodeError"
    assert reason(f"http://127.0.0.1:{full}/", within=0.3) == "TimeoutError"


def test_a_server_that_speaks_no_tls_was_not_reached() -> None:
    class MailServer(Peer):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")

    async def run() -> str:
        async with serving(MailServer()) as (client, host):
            with pytest.raises(Unreached) as caught:
                await client.post(f"https://{host}/", {}, b"{}")
            return str(caught.value)

    assert uvloop.run(run()) in {"SSLError", "ConnectionResetError", "ConnectionAbortedError", "Disconnected"}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Who are you?\r\n\r\n",
        b"HTTP/1.1 502 No\r\n\r\n",
        b"",
        b"SSH\r\n\r\n",
        OK + b"Content-Length: 0\r\n\r\nAnd now?",
    ],
)
def test_a_proxy_that_leads_nowhere_is_told(answer: bytes) -> None:
    class Proxy(Peer):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.received.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)

    proxy = Proxy()

    async def run() -> str:
        async with serving(proxy) as (client, host):
            asked = client.post("https://example.com/v1", {"X": "secret"}, b"secret", f"http://me:p%40ss@{host}")
            with pytest.raises(Unreached) as caught:
                await asked
            return str(caught.value)

    assert uvloop.run(run()) in {"ProxyRefused", "Disconnected", "Unreadable"}
    [request] = proxy.received
    assert request.startswith(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n")
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==" in request
    assert b"secret" not in request


def test_a_proxy_whose_name_can_be_none_is_told() -> None:
    reasons = {"UnicodeError", "UnicodeEncodeError", "gaierror"}
    assert {reason("http://llm.example/", f"http://{name}:3128") for name in ("a..b", "a" * 64)} <= reasons


def test_a_name_with_a_dot_at_its_end_is_the_certificates(
    certified: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with serving(Peer(HELLO), certified) as (client, host):
            resolve(monkeypatch, here)
            port = host.partition(":")[2]
            assert await whole(await client.post(f"https://llm.example.:{port}/", {}, b"{}")) == b"Hello"
            with pytest.raises(Unreached, match="SSLCertVerificationError"):
                await client.post(f"https://other.example:{port}/", {}, b"{}")

    uvloop.run(run())


def test_a_lookup_that_failed_after_its_caller_had_left_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = asyncio.Event()

    async def flaky(host: str, port: int, **_: Any) -> list[Any]:
        if not failed.is_set():
            await asyncio.sleep(0.2)
            failed.set()
            raise socket.gaierror
        return await here(host, port)

    async def run() -> None:
        async with serving(Peer(HELLO)) as (client, host):
            resolve(monkeypatch, flaky)
            url = f"http://llm.example:{host.partition(':')[2]}/"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.post(url, {}, b"{}")
            await failed.wait()
            await asyncio.sleep(0.05)
            assert await whole(await client.post(url, {}, b"{}")) == b"Hello"

    uvloop.run(run())


def test_many_calls_at_once_look_a_host_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, hosts = Peer(HELLO), []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        original = loop.getaddrinfo

        async def noted(host: str, *args: Any, **kwargs: Any) -> list[Any]:
            hosts.append(host)
            return await original(host, *args, **kwargs)

        monkeypatch.setattr(loop, "getaddrinfo", noted)
        async with serving(peer) as (client, host):
            url = f"http://localhost:{host.partition(':')[2]}/"
            for response in await asyncio.gather(*(client.post(url, {}, b"{}") for _ in range(20))):
                await whole(response)

    uvloop.run(run())
    assert (peer.connections, hosts.count("localhost")) == (20, 1)
