"""The load: clients cheap enough that a thousand of them share one core with the upstream.

`ClosedLoop` asks again as soon as it is answered; `PacedStreams` opens many streams and watches their chunks arrive.
Both check what they get: a status, a chunk or an ending that is missing fails the run.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import httptools

EVENT = b"data: {"
END = b"data: [DONE]\n\n"
# A server that hangs must fail the run, not hold it: far over the slowest contender's slowest answer.
PATIENCE_SECONDS = 60.0


class UnexpectedAnswer(Exception):
    """The server under test did not answer as the load asked."""


@dataclass(frozen=True)
class Request:
    """What to send, whole, and how many chunks must come back (none for an answer that isn't streamed)."""

    content: bytes
    chunks: int = 0


def chat_request(
    path: str, headers: Mapping[str, str], model: str, *, chunks: int = 0, pace: int = 0, characters: int = 700
) -> Request:
    """A chat completion request.

    Args:
        chunks: Asks for a stream of so many chunks; 0 for a whole answer.
        pace: Chunks a second; 0 for all at once.
        characters: Length of the prompt, which makes up most of the body.
    """
    wanted = f"chunks={chunks} pace={pace} "
    prompt = (wanted + "Say in a few plain words what a proxy is good for. " * (characters // 50 + 1))[:characters]
    body: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a careful assistant. Answer in plain English."},
            {"role": "user", "content": prompt},
        ],
    }
    if chunks:
        body["stream"] = True
    content = json.dumps(body).encode()
    head = {
        "Host": "127.0.0.1",
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
    } | dict(headers)
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    return Request("\r\n".join(lines).encode() + content, chunks)


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request in flight at the most."""

    def __init__(self, request: Request, failed: asyncio.Future[None], answered: Callable[["Connection"], None]):
        self.request = request
        self.failed = failed
        self.answered = answered
        self.waiting = False
        self.transport: asyncio.Transport
        self.times: list[float] = []
        """When each event of the answer arrived, for a stream; kept for the last answer only."""

    def send(self) -> None:
        self.pieces: list[bytes] = []
        self.times = []
        self.waiting = True
        self.sent = self.first = time.perf_counter()
        self.transport.write(self.request.content)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(repr(error))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self.fail("the connection was closed before the answer's end")

    def on_body(self, piece: bytes) -> None:
        if not self.pieces:
            self.first = time.perf_counter()
        self.pieces.append(piece)
        if self.request.chunks:
            now = time.perf_counter()
            self.times += [now] * piece.count(EVENT)

    def on_message_complete(self) -> None:
        self.done = time.perf_counter()
        self.waiting = False
        body = b"".join(self.pieces)
        status = self.parser.get_status_code()
        if status != 200:
            self.fail(f"status {status}: {body[:500]!r}")
        elif self.request.chunks and (body.count(EVENT) < self.request.chunks or not body.endswith(END)):
            self.fail(f"{body.count(EVENT)} chunks of {self.request.chunks}, ending in {body[-300:]!r}")
        else:
            self.answered(self)

    def fail(self, reason: str) -> None:
        self.waiting = False
        if not self.failed.done():
            self.failed.set_exception(UnexpectedAnswer(reason))


async def connect(
    port: int, request: Request, failed: asyncio.Future[None], answered: Callable[[Connection], None]
) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(request, failed, answered), "127.0.0.1", port)
    return connection


async def ended_or_failed(ended: asyncio.Future[None], failed: asyncio.Future[None], seconds: float) -> None:
    """Raises UnexpectedAnswer when a connection failed, or when `seconds` passed before the end."""
    done, _ = await asyncio.wait({ended, failed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if failed in done:
        failed.result()
    if not done:
        raise UnexpectedAnswer(f"no end after {seconds:.0f} s")


@dataclass
class Answers:
    """Seconds from sending a request to its answer's first byte of body and to its end, one each per answer."""

    elapsed: float = 0.0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


class ClosedLoop:
    """Clients that each send the next request when the last one has been answered."""

    def __init__(self, port: int, request: Request, clients: int) -> None:
        self.port, self.request, self.clients = port, request, clients
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.failed: asyncio.Future[None] = loop.create_future()
        self.answers = Answers()

    async def connect(self) -> None:
        self.connections = [
            await connect(self.port, self.request, self.failed, self.answered) for _ in range(self.clients)
        ]

    async def run(self, seconds: float) -> Answers:
        """Send for so long, wait for what is still in flight, and close the connections."""
        started = time.perf_counter()
        self.deadline = started + seconds
        self.busy = self.clients
        for connection in self.connections:
            connection.send()
        try:
            await ended_or_failed(self.ended, self.failed, seconds + PATIENCE_SECONDS)
        finally:
            for connection in self.connections:
                connection.waiting = False
                connection.transport.close()
        self.answers.elapsed = time.perf_counter() - started
        return self.answers

    def answered(self, connection: Connection) -> None:
        self.answers.first.append(connection.first - connection.sent)
        self.answers.whole.append(connection.done - connection.sent)
        if connection.done < self.deadline:
            connection.send()
        else:
            self.busy -= 1
            if not self.busy and not self.ended.done():
                self.ended.set_result(None)


class PacedStreams:
    """Streams open at the same time, of chunks that come at a steady pace."""

    def __init__(self, port: int, request: Request, streams: int) -> None:
        self.port, self.request, self.streams = port, request, streams
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.failed: asyncio.Future[None] = loop.create_future()
        self.open = streams

    async def connect(self) -> None:
        self.connections = [
            await connect(self.port, self.request, self.failed, self.answered) for _ in range(self.streams)
        ]

    def start(self, interval: float, rounds: int) -> None:
        """Send every request within `rounds` intervals, so that the chunks of all streams spread evenly over one."""
        loop = asyncio.get_running_loop()
        for n, connection in enumerate(self.connections):
            loop.call_later(n * interval * rounds / self.streams, connection.send)

    async def opened(self, interval: float) -> None:
        """Wait until every stream has begun, and one interval more."""
        while not all(connection.times for connection in self.connections):
            await self.wait(interval)
        await self.wait(interval)

    async def wait(self, seconds: float) -> None:
        """Let the streams run for so long; raises UnexpectedAnswer as soon as one fails."""
        await asyncio.wait({self.failed}, timeout=seconds)
        if self.failed.done():
            self.failed.result()

    def gaps(self, since: float, until: float) -> list[float]:
        """Seconds between neighbouring chunks of one stream, for all that arrived between the two times."""
        found = []
        for connection in self.connections:
            times = [at for at in connection.times if since <= at <= until]
            found += [later - earlier for earlier, later in pairwise(times)]
        return found

    def received(self) -> int:
        return sum(len(connection.times) for connection in self.connections)

    async def finish(self) -> None:
        try:
            await ended_or_failed(self.ended, self.failed, PATIENCE_SECONDS)
        finally:
            for connection in self.connections:
                connection.waiting = False
                connection.transport.close()

    def answered(self, connection: Connection) -> None:
        self.open -= 1
        if not self.open and not self.ended.done():
            self.ended.set_result(None)
