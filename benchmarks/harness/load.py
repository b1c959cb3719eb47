"""The load: clients cheap enough that thousands of them share one core with the stub upstream.

`ClosedLoop` asks again as soon as it is answered; `PacedStreams` opens many streams and watches their chunks arrive.
Both check what they get: a status, a chunk or an ending that is missing fails the run.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import cast

import httptools

from harness import packets
from harness.answers import MARK
from harness.requests import Request
from harness.upstream import Stub

# A server that hangs must fail the run, not hold it: far over the slowest contender's slowest answer.
PATIENCE_SECONDS = 60.0


class UnexpectedAnswer(Exception):
    """The server under test did not answer as the load asked."""


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request in flight at the most.

    Attributes:
        times: when each event with text of the last answer arrived, for a stream.
    """

    def __init__(
        self, request: Request, stub: Stub, failed: asyncio.Future[None], answered: Callable[["Connection"], None]
    ) -> None:
        self.request, self.stub = request, stub
        self.number = stub.number()
        self.content = request.content(self.number)
        self.failed = failed
        self.answered = answered
        self.waiting = False
        self.transport: asyncio.Transport
        self.times: list[float] = []

    def send(self) -> None:
        self.pieces: list[bytes] = []
        self.times = []
        self.waiting = True
        self.sent = self.first = time.perf_counter()
        self.transport.write(self.content)

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
        if self.request.chunks and (marks := piece.count(MARK)):
            self.times += [time.perf_counter()] * marks
            self.stub.got(self.number, len(self.times))

    def on_message_complete(self) -> None:
        self.done = time.perf_counter()
        self.waiting = False
        body = b"".join(self.pieces)
        status = self.parser.get_status_code()
        if status != 200:
            self.fail(f"status {status}: {body[:500]!r}")
        elif self.request.chunks and (len(self.times) < self.request.texts or self.request.end not in body):
            self.fail(f"{len(self.times)} events of {self.request.texts}, ending in {body[-300:]!r}")
        else:
            self.answered(self)

    def fail(self, reason: str) -> None:
        self.waiting = False
        if not self.failed.done():
            self.failed.set_exception(UnexpectedAnswer(reason))


async def connect(
    port: int, request: Request, stub: Stub, failed: asyncio.Future[None], answered: Callable[[Connection], None]
) -> Connection:
    loop = asyncio.get_running_loop()
    make = partial(Connection, request, stub, failed, answered)
    _, connection = await loop.create_connection(make, "127.0.0.1", port)
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
    """What came back.

    Attributes:
        elapsed: seconds that all took together.
        first: seconds from sending each request to its answer's first byte of body.
        whole: seconds from sending each request to its answer's end.
        packets_in: packets that the stub sent to the server under test meanwhile.
        packets_out: packets that the server sent to the clients.
    """

    elapsed: float = 0.0
    packets_in: int = 0
    packets_out: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


class ClosedLoop:
    """Clients that each send the next request when the last one has been answered."""

    def __init__(self, port: int, request: Request, clients: int, stub: Stub) -> None:
        self.port, self.request, self.clients, self.stub = port, request, clients, stub
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.failed: asyncio.Future[None] = loop.create_future()
        self.answers = Answers()

    async def connect(self) -> None:
        self.connections = [
            await connect(self.port, self.request, self.stub, self.failed, self.answered) for _ in range(self.clients)
        ]

    async def run(self, seconds: float) -> Answers:
        """Send for so long, wait for what is still in flight, and close the connections."""
        started = time.perf_counter()
        self.deadline = started + seconds
        self.busy = self.clients
        packets_in = self.stub.packets_sent()
        for connection in self.connections:
            connection.send()
        try:
            await ended_or_failed(self.ended, self.failed, seconds + PATIENCE_SECONDS)
            self.answers.packets_in = self.stub.packets_sent() - packets_in
            self.answers.packets_out = packets.received(connection.transport for connection in self.connections)
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

    def __init__(self, port: int, request: Request, streams: int, stub: Stub) -> None:
        self.port, self.request, self.streams, self.stub = port, request, streams, stub
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.failed: asyncio.Future[None] = loop.create_future()
        self.open = streams

    async def connect(self) -> None:
        self.connections = [
            await connect(self.port, self.request, self.stub, self.failed, self.answered) for _ in range(self.streams)
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
        """Wait for the ends of all streams."""
        try:
            await ended_or_failed(self.ended, self.failed, PATIENCE_SECONDS)
        finally:
            self.leave()

    def leave(self) -> None:
        """Close all connections, whether their streams have ended or not."""
        for connection in self.connections:
            connection.waiting = False
            connection.transport.close()

    def answered(self, connection: Connection) -> None:
        self.open -= 1
        if not self.open and not self.ended.done():
            self.ended.set_result(None)
