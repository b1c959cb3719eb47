"""Any bytes, cut anywhere: the server's edge breaks at none, reads them as h11 does, and alike however they are cut."""

import asyncio
import itertools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import h11
import pytest
import uvicorn
from starlette.exceptions import HTTPException
from structlog.testing import capture_logs
from uvicorn.server import ServerState

from app.http.draining import Drain
from app.http.heads import MAX_HEAD_BYTES
from app.http.server_protocol import ServerProtocol
from app.middleware import LoadShedding, RequestContext
from app.telemetry.metrics import Metrics

SECONDS = float(os.environ.get("FUZZ_SECONDS", "2"))
"""Of this process's time. The template's .ci/run gives it two minutes."""
SEED = int(os.environ.get("FUZZ_SEED", "0"))
"""Where the sequence of connections starts. The nightly run takes another each night: what it finds stops nobody."""
STEPS = 12
"""Turns of the loop in which the application answers a request."""

METHODS = [*[b"POST"] * 20, b"GET", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"BREW", b"get", b""]
TARGETS = [
    *[b"/"] * 20,
    b"/a?b=c",
    b"/%00%ff",
    b"*",
    b"http://h/a",
    b"//x",
    b"h:1",
    b"/\xff",
    b"/ b",
    b"",
    b"/#f",
    b"/\t",
]
VERSIONS = [*[b"HTTP/1.1"] * 20, b"HTTP/1.0", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/11", b""]
ENDS = [*[b"\r\n"] * 60, b"\n", b"\r", b"\r\r\n"]
GOOD = [
    *(b"X-A: 1", b"X-A:", b"X-A: \xff", b"Connection: close", b"Connection: keep-alive", b"Connection: up\tgrade"),
    *(b"Connection: Upgrade", b"Connection: upgrade, close", b"Connection: ,,Upgrade ,", b"connection: upgradeupgrade"),
    *(b"Proxy-Connection: upgrade", b"Upgrade: h2c", b"Upgrade: websocket", b"Upgrade:", b"HTTP2-Settings: AAMAAABk"),
    *(b"Expect: 100-continue", b"TE: trailers", b"Trailer: X-T"),
]
BAD = [
    *(b"Host: b", b"host:", b"Host : a", b"X-A: a\x00b", b"X-A", b": x", b" folded", b"Content-Length: 0"),
    *(b"Content-Length: 5", b"Content-Length: +5", b"Content-Length: 5, 5", b"Content-Length: -1", b"Content-Length:"),
    *(b"Content-Length: 0x5", b"Content-Length: 99999999999999999999", b"Content-Length : 3"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity"),
    *(b"Transfer-Encoding: xchunked", b"Transfer-Encoding:\tchunked", b"Transfer-Encoding : chunked"),
]
TRAILERS = [b"X-T: 1", b"Authorization: Bearer x", b"Host: t", b"Content-Length: 9", b"bad"]
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
ENDS = [b"\r\n"] * 30 + [b"\n", b"\r", b"\r\r\n"]


@dataclass(frozen=True)
class Seen:
    """A request as the application has seen it, or as h11 reads it."""

    method: str
    target: bytes
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def target(path: bytes, query: bytes) -> bytes:
    """Return what was asked for. ASGI doesn't tell an empty query from none."""
    return path + b"?" + query if query else path


@dataclass
class Connection:
    """A transport: what the server does with a connection, and the requests of it that reached the application."""

    seen: list[Seen] = field(default_factory=list)
    written: bytes = b""
    closing: bool = False
    paused: bool = False
    protocol: Any = None

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, parts: list[bytes]) -> None:
        self.written += b"".join(parts)

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.protocol.loop.call_soon(self.protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return None


class Server:
    """The protocol with an application that keeps what it is asked, on a loop that goes on step by step."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._failed)
        self.failures: list[Any] = []
        self.state = ServerState()
        around = RequestContext(LoadShedding(self._app, Drain(0), 10), Drain(0), Metrics(), MAX_HEAD_BYTES)
        self.config = uvicorn.Config(
            around, interface="asgi3", proxy_headers=False, access_log=False, log_config=None, ws="none"
        )
        self.config.load()
        self.now: Connection | None = None

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failures.append(context)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        connection = self.now
        assert connection is not None
        asked = target(scope["raw_path"], scope["query_string"])
        body, more, given = b"", True, tuple(scope["headers"])
        status = 200
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                more = message["more_body"]
            assert tuple(scope["headers"]) == given, "trailers"
            connection.seen.append(Seen(scope["method"], asked, scope["http_version"], given, body))
        except HTTPException as error:
            status = error.status_code
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def turn(self, times: int) -> None:
        for _ in range(times):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def converse(self, requests: list[list[bytes]]) -> Connection:
        """Send requests one after the other, each in its pieces; return what came of them."""
        connection = self.now = Connection()
        protocol = connection.protocol = ServerProtocol(self.config, self.state, {}, self.loop)
        protocol.connection_made(connection)
        for pieces in requests:
            for piece in pieces:
                if connection.closing:
                    break
                protocol.data_received(piece)
                held = len(getattr(protocol, "url", b""))
                held += sum(len(name) + len(value) for name, value in protocol.headers or ())
                assert held <= 2 * MAX_HEAD_BYTES
                self.turn(1)
            self.turn(STEPS)
        if not connection.closing:
            protocol.eof_received()
            connection.close()
        self.turn(STEPS)
        assert not self.state.tasks
        assert not self.state.connections
        assert not protocol.receiving.is_set
        assert not protocol.sending.is_set
        assert not self.failures
        return connection


def chunked(rng: random.Random, body: bytes, ends: list[bytes]) -> bytes:
    """Return a body in chunks with trailers."""
    wire = b""
    while body:
        size = rng.randint(1, len(body))
        extension = rng.choice([b""] * 12 + [b";a=b", b";" + b"x" * 50])
        wire += b"%x" % size + extension + rng.choice(ends) + body[:size] + rng.choice(ends)
        body = body[size:]
    wire += rng.choice([*[b"0"] * 10, b"00", b"0;x"]) + rng.choice(ends)
    return wire + b"".join(one + b"\r\n" for one in [*rng.choices(TRAILERS, k=rng.choice([0, 0, 0, 1, 2])), b""])


def request(rng: random.Random) -> bytes:
    """Return a request: a good one, or one that is nearly so, or any bytes."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randint(1, 200))
    bad = rng.random() < 0.6
    ends = ENDS if bad else ENDS[:1]
    body = rng.choice([b"", b"hello", b"hello" * 20, HIDDEN, HIDDEN, rng.randbytes(20)])
    headers = [*rng.choices(GOOD, k=rng.randint(0, 4)), *rng.choices(BAD, k=bad * rng.choice([0, 0, 1, 2]))]
    headers += [b"Host: a"] * (not bad or rng.random() < 0.95)
    framing = rng.random()
    if framing < 0.4:
        headers.append(b"Content-Length: %d" % max(0, len(body) + bad * rng.choice([*[0] * 10, -1, 1])))
    elif framing < 0.8:
        headers.append(b"Transfer-Encoding: chunked")
        body = chunked(rng, body, ends)
    if rng.random() < 0.01:
        headers.append(b"X-Big: " + b"x" * rng.choice([MAX_HEAD_BYTES - 300, MAX_HEAD_BYTES, 3 * MAX_HEAD_BYTES]))
    rng.shuffle(headers)
    line = [rng.choice(words if bad else words[:22]) for words in (METHODS, TARGETS, VERSIONS)]
    wire = rng.choice([*[b""] * 20, b"\r\n"])
    wire += b"".join(line + rng.choice(ends) for line in [b" ".join(line), *headers, b""]) + body
    for _ in range(bad * rng.choice([0, 0, 0, 1, 2])):
        place, other = rng.randint(0, len(wire)), rng.randint(0, min(len(wire), 500))
        new = rng.choice([b"", rng.randbytes(1), b"\r\n", b" ", wire[other : other + 9]])
        wire = wire[:place] + new + wire[place + 1 :]
    return wire


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """Cut bytes into pieces, sometimes into single bytes."""
    if len(data) < 400 and rng.random() < 0.05:
        return [data[i : i + 1] for i in range(len(data))]
    places = sorted({0, len(data), *(rng.randint(0, len(data)) for _ in range(rng.choice([1, 1, 2, 3, 6])))})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def by_h11(data: bytes) -> Seen | None:
    """Return the first request as h11 reads it; None if it refuses it, or waits for more."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=10 * MAX_HEAD_BYTES)
    # A server may take empty lines before a request, and more blanks in its first line (RFC 9112, 2.2 and 3).
    reader.receive_data(re.sub(rb"^(\S+) +(\S+) +(?=HTTP/)", rb"\1 \2 ", data.lstrip(b"\r\n")))
    head, body = None, b""
    try:
        while True:
            event = reader.next_event()
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = tuple((bytes(name), bytes(value)) for name, value in head.headers)
                version = head.http_version.decode()
                path, _, query = re.sub(rb"^\w+://[^/?#]*|#.*", b"", bytes(head.target)).partition(b"?")
                return Seen(head.method.decode(), target(path, query), version, headers, body)
            else:
                return None
    except h11.RemoteProtocolError:
        return None


def meaning(seen: Seen) -> Seen:
    """Return a request without blanks behind its headers, and without the offer of an upgrade, which is ignored."""
    headers = [(n, v.lower().replace(b"upgrade", b"") if n.endswith(b"connection") else v) for n, v in seen.headers]
    return replace(seen, headers=tuple((name, value.strip(b" \t")) for name, value in headers))


def statuses(written: bytes) -> Iterator[int]:
    """Yield the status of each response, which all together must be well-formed."""
    while written:
        head, end, written = written.partition(b"\r\n\r\n")
        assert end
        line, *fields = head.split(b"\r\n")
        status = int(line.removeprefix(b"HTTP/1.1 ")[:3])
        if status == 100:
            continue
        [length] = [int(one.partition(b":")[2]) for one in fields if one.startswith(b"content-length:")]
        if written and not written.startswith(b"HTTP/1.1 "):  # the answer to a HEAD has no body
            assert len(written) >= length
            written = written[length:]
        yield status


def check(server: Server, requests: list[bytes], rng: random.Random) -> int:
    """Hold what comes of requests against what must; return how many the application has seen."""
    whole = server.converse([[data] for data in requests])
    pieces = server.converse([cut(rng, data) for data in requests])
    # What follows a request in one packet with it is refused, and taken where it comes after the answer.
    assert whole.seen == pieces.seen[: len(whole.seen)] or pieces.seen == whole.seen[: len(pieces.seen)]
    assert bool(whole.seen) == bool(pieces.seen)
    for connection in (whole, pieces):
        found = list(statuses(connection.written))
        assert found.count(200) == len(connection.seen)
        assert set(found) <= {200, 400, 413, 431, 505}
    assert len(requests) > 1 or not [seen for seen in whole.seen if seen.target == b"/hidden"]
    first = whole.seen[0] if whole.seen else None
    if first and len(whole.seen) == len(requests):
        expected = by_h11(requests[0])
        assert expected
        assert meaning(first) == meaning(expected)
    return len(whole.seen)


def test_no_bytes_break_the_server_or_mean_two_things(record_property: Callable[[str, int], None]) -> None:
    server, seed = Server(), SEED
    end, asked, seen = time.process_time() + SECONDS, 0, 0
    logging.disable()
    try:
        while time.process_time() < end:
            seed += 1
            rng = random.Random(seed)  # noqa: S311 - no secret
            requests = [request(rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
            with capture_logs():
                try:
                    seen += check(server, requests, rng)
                except Exception as error:
                    error.add_note(f"seed {seed}: {requests!r}")
                    raise
            asked += len(requests)
    finally:
        logging.disable(logging.NOTSET)
        server.loop.close()
    record_property("requests", asked)
    assert seen > asked / 10


@pytest.mark.parametrize("cuts", [(), (100,), (MAX_HEAD_BYTES + 50,)])
def test_a_head_just_above_its_bound_ends_the_connection_however_it_comes(cuts: tuple[int, ...]) -> None:
    """Within some bytes, the packets decide whether the server refuses it, or the application."""
    large = b"POST / HTTP/1.1\r\nHost: a\r\nX-Big: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n"
    pieces = [large[start:end] for start, end in itertools.pairwise((0, *cuts, len(large)))]
    server = Server()
    logging.disable()
    try:
        with capture_logs():
            connection = server.converse([pieces, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".splitlines(keepends=True)])
    finally:
        logging.disable(logging.NOTSET)
        server.loop.close()
    assert list(statuses(connection.written)) == [431]
    assert not connection.seen
