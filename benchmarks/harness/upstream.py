"""A stub of a provider that costs little, and decides what each packet holds.

A streaming request says in its prompt what it wants (`wish`): how many chunks, at which pace, how many events a packet.
At a steady pace, time alone decides when the next packet goes out. Without one, it goes out when this stream's client
has received all events of the packets before. So the server under test never finds two packets of a stream waiting,
however slow it is: it has to read each by itself, and to write each by itself. An acknowledgement by TCP would not do,
because the kernel acknowledges what the server has not read yet.

The stub and the clients run in one process, on one event loop, so that a client's word costs a function call.
"""

import asyncio
import re
from collections.abc import Callable
from itertools import count
from typing import cast

import httptools

from harness import packets
from harness.answers import NOT_FOUND, whole
from harness.answers import packets as packets_of

WISH = re.compile(rb"chunks=(\d+) pace=(\d+) each=(\d+) client=(\d+)")
INCLUDE_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
PATHS = {b"/v1/chat/completions": "chat", b"/v1/responses": "responses", b"/v1/messages": "messages"}


def wish(chunks: int, pace: int, each: int, client: int) -> str:
    """What a prompt says to the stub.

    Args:
        chunks: of the stream.
        pace: chunks a second; 0 waits for the client instead.
        each: events a packet.
        client: number of the client; see Stub.number.
    """
    return f"chunks={chunks} pace={pace} each={each} client={client} "


class Stub:
    """The upstream: its address, and what it knows of clients and connections."""

    def __init__(self) -> None:
        self.numbers = count(1)
        self.waiting: dict[int, Callable[[int], None]] = {}
        """By client: tells a stream how many events the client has."""
        self.connections: set[Connection] = set()
        self.sent_by_closed = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Connection(self), "127.0.0.1", 0, backlog=4096)
        self.port: int = self.server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self.server.close()
        for connection in self.connections:
            connection.transport.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def number(self) -> int:
        """A number for one more client."""
        return next(self.numbers)

    def got(self, client: int, events: int) -> None:
        """A client says how many events of its stream it has."""
        if told := self.waiting.get(client):
            told(events)

    def packets_sent(self) -> int:
        return self.sent_by_closed + packets.sent(connection.transport for connection in self.connections)


class Connection(asyncio.Protocol):
    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.next: asyncio.Handle | None = None
        self.client = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.stub.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stub.connections.discard(self)
        self.stub.sent_by_closed += packets.sent([self.transport])
        self.stub.waiting.pop(self.client, None)
        if self.next:
            self.next.cancel()

    def on_message_begin(self) -> None:
        self.pieces: list[bytes] = []
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        body = b"".join(self.pieces)
        self.pieces.clear()
        dialect = PATHS.get(self.url.partition(b"?")[0])
        if dialect is None:
            self.transport.write(NOT_FOUND)
            return
        # Not parsed as JSON: with bodies of megabytes that would cost more than the server under test.
        at = body.find(b'"stream"')
        wanted = WISH.search(body) if at >= 0 and b"true" in body[at : at + 14] else None
        if not wanted:
            self.transport.write(whole(dialect))
            return
        chunks, pace, self.each, self.client = map(int, wanted.groups())
        if not chunks:  # the client wants a whole answer, which the server under test makes of a stream
            chunks = self.each = 100
        self.packets = packets_of(dialect, chunks, self.each, INCLUDE_USAGE.search(body) is not None)
        self.sent = 0
        if pace:
            self.write_at_pace(1 / pace, self.loop.time())
        else:
            self.stub.waiting[self.client] = self.client_has
            self.client_has(0)

    def client_has(self, events: int) -> None:
        """Write the next packet, unless events of those before are still on their way."""
        if events < self.sent * self.each:
            return
        self.transport.write(self.packets[self.sent])
        self.sent += 1
        if self.sent == len(self.packets):
            del self.stub.waiting[self.client]

    def write_at_pace(self, interval: float, due: float) -> None:
        self.transport.write(self.packets[self.sent])
        self.sent += 1
        self.next = None
        if self.sent < len(self.packets):
            # Counted from the start and not from now, so that a late packet delays no other.
            due += interval
            self.next = self.loop.call_at(due, self.write_at_pace, interval, due)
