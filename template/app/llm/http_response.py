"""A provider's response, which is read packet by packet; and what may go wrong with one."""

import asyncio
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

MAX_UNREAD_BYTES = 128 * 1024
"""Of a body: no more is received until they are read."""
MAX_DECODED_BYTES = 1024 * 1024
"""Of a compressed body, at once: a few bytes may become a thousand times as many."""
DECODED = frozenset({"", "deflate", "gzip", "identity", "x-gzip"})
"""Values of Content-Encoding whose bodies are decoded. None is asked for."""


class HttpError(Exception):
    """A request got no response, or not the whole of it."""


class Unreached(HttpError):
    """No connection could be made: nothing has been sent. Its text is the name of the exception that tells why."""


class Disconnected(HttpError):
    """The connection was lost before the response was complete."""


class Unreadable(HttpError):
    """The response is no HTTP, its head is too large, or its body is not in the encoding that it names."""


class Limit(Protocol):
    """Until when a response may take."""

    deadline: float
    """A time of the event loop's clock; it may move to later."""

    def expired(self) -> Exception: ...


@dataclass(slots=True)
class Rest:
    """Until when a response may take to end that nobody reads any more."""

    deadline: float

    def expired(self) -> Exception:
        """Return an error that nobody sees."""
        return Disconnected()


class Source(Protocol):
    """The connection that a response arrives by."""

    loop: asyncio.AbstractEventLoop

    def watch(self, response: "Response", limit: Limit | None) -> None: ...
    def drop(self, response: "Response") -> None: ...
    def resume(self, response: "Response") -> None: ...


class Response:
    """A response whose head has arrived.

    Args:
        connection: where it comes from.
        status: its status.
        headers: its headers, with names in lower case; of several with one name, the last.

    Attributes:
        on_arrival: called when something has arrived that can be read, an error and the end included.
        is_left: whether the rest is read no more.
    """

    __slots__ = (
        *("_connection", "_decoder", "_error", "_is_complete", "_packets", "_unread", "_waiter"),
        *("headers", "is_left", "on_arrival", "status"),
    )

    def __init__(self, connection: "Source", status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers
        self.on_arrival: Callable[[], None] | None = None
        self._connection = connection
        self._packets: deque[bytes] = deque()
        self._unread = 0
        self._is_complete = False
        self.is_left = False
        self._error: Callable[[], Exception] | None = None
        self._waiter: asyncio.Future[None] | None = None
        is_coded = headers.get("content-encoding", "identity").lower() in DECODED - {"", "identity"}
        self._decoder = zlib.decompressobj(32 + zlib.MAX_WBITS) if is_coded else None

    @property
    def at_end(self) -> bool:
        """Whether the whole body has been read."""
        return self._is_complete and not self._packets

    async def read(self) -> bytes:
        """Return what has arrived of the body and was not read yet; wait for it. Nothing more comes after `b""`.

        Raises:
            Disconnected: the connection was lost before the body's end.
            Unreadable: the rest is no HTTP, or not in the encoding that the headers name.
            Exception: the limit's, when it has passed.
        """
        while not (packet := self.read_nowait()) and not self.at_end:
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return packet

    def read_nowait(self) -> bytes:
        """Return what has arrived of the body and was not read yet, `b""` if nothing has; errors as in `read`."""
        while self._packets:
            packet = self._packets.popleft() if len(self._packets) == 1 else b"".join(self._packets)
            self._packets.clear()
            unread, self._unread = self._unread, 0
            if self._decoder:
                packet = self._decoded(self._decoder, packet)
            if unread > MAX_UNREAD_BYTES >= self._unread:
                self._connection.resume(self)
            if packet:
                return packet
        if self._error:
            raise self._error()
        if self._is_complete and self._decoder and not self._decoder.eof:
            raise Unreadable
        return b""

    def watch(self, limit: Limit | None) -> None:
        """Fail further reads, and the one that is waiting, if a limit passes before the response is complete."""
        self._connection.watch(self, limit)

    def _decoded(self, decoder: "zlib._Decompress", packet: bytes) -> bytes:
        try:
            decoded = decoder.decompress(packet, MAX_DECODED_BYTES)
        except zlib.error:
            raise Unreadable from None
        if decoder.unused_data:
            raise Unreadable  # more than one member, or no encoding: it would be lost
        if decoder.unconsumed_tail:
            self._packets.append(decoder.unconsumed_tail)
            self._unread = len(decoder.unconsumed_tail)
        return decoded

    def fail(self, error: Callable[[], Exception]) -> None:
        """Make further reads raise an error, and the one that is waiting.

        Args:
            error: makes it. Nobody keeps it: with its traceback it would refer to whoever does, and be freed late.
        """
        if not self._is_complete:
            self._error = error
            self.tell()

    def feed(self, part: bytes) -> bool:
        """Take a part of the body; return whether it is enough for now."""
        self._packets.append(part)
        self._unread += len(part)
        return self._unread > MAX_UNREAD_BYTES

    def complete(self) -> None:
        """The body has arrived."""
        self._is_complete = True

    def tell(self) -> None:
        """Tell whoever waits for it that something has arrived."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
        elif self.on_arrival:
            self.on_arrival()

    def leave(self, within: float) -> None:
        """Read no more of it. Its connection is used again if the response ends within so many seconds."""
        self.is_left = True
        self.watch(Rest(self._connection.loop.time() + within))

    def close(self) -> None:
        """Read no more of it. Its connection ends, unless the response is complete, or was left."""
        self.on_arrival = None
        if not self.is_left:
            self._connection.drop(self)
