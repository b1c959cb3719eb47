"""The packets of a provider's stream: read one by one, or passed on at once, without a switch to another task."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from app.llm.deadlines import Deadlines
from app.llm.provider_responses import READ_ERRORS, broken_body
from app.llm.relay import Relay
from app.llm.targets import Target

Write = Callable[[bytes], bool]
"""Sends bytes to the client at once; returns whether that was possible."""


class ProviderConnection(ResponseHandler):
    """aiohttp's connection to a provider, which tells at once that something has arrived, or that it is lost."""

    on_arrival: Callable[[], None] | None = None
    _is_paused = False

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, and tell of it."""
        super().data_received(data)
        if self.on_arrival:
            self.on_arrival()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the response, and tell of it."""
        super().connection_lost(exc)
        if self.on_arrival:
            self.on_arrival()

    def pause_reading(self) -> None:
        """Read no further: too much waits to be taken."""
        self._is_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Read on. aiohttp asks for it after each piece that was taken; only after a pause is there anything to do."""
        if self._is_paused:
            self._is_paused = False
            super().resume_reading(resume_parser)


def connector(**options: Any) -> aiohttp.TCPConnector:
    """Return aiohttp's connector, with connections that are ProviderConnections; arguments are its own."""
    made = aiohttp.TCPConnector(**options)
    factory: Any = partial(ProviderConnection, loop=asyncio.get_running_loop())
    made._factory = factory  # noqa: SLF001
    return made


class Packets:
    """Reads a stream's packets, each before the deadline.

    One timer serves all reads of a stream: an `asyncio.timeout` around each costs more than the rest of a read.

    Args:
        target: the model, for errors.
        response: its status and headers have been read.
        relay: checks the packets; it tells when the stream has ended.
        deadlines: tells until when the next packet may take.
    """

    __slots__ = (
        *("_connection", "_content", "_deadlines", "_loop"),
        *("_relay", "_target", "_timer", "_timer_at", "_waiter", "_waiting", "_write"),
    )

    def __init__(self, target: Target, response: aiohttp.ClientResponse, relay: Relay, deadlines: Deadlines) -> None:
        protocol: Any = response.connection.protocol if response.connection else None  # none if all of it has come
        self._connection = protocol if isinstance(protocol, ProviderConnection) else None
        self._target = target
        self._content = response.content
        self._relay = relay
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    async def read(self) -> bytes:
        """Return the next packet; an empty one means that the connection has ended.

        Raises:
            ProviderError: it has not come before the deadline, or the response is broken.
        """
        self._wait()
        try:
            packet = await self._content.readany()
        except READ_ERRORS as error:
            raise broken_body(self._target, error) from None
        self._waiting = False  # time that passes now is not the provider's
        return packet

    async def pass_on(self, write: Write) -> bytes:
        """Write what the relay returns for each packet as soon as it arrives, without waking the task that awaits this.

        Returns:
            What could not be written so, or is the stream's end.

        Raises:
            ProviderError: as in `read`.
        """
        if self._connection is None:
            return self._relay.feed(await self.read())
        self._write = write
        self._waiter: asyncio.Future[bytes] = self._loop.create_future()
        self._wait()
        self._on_arrival()
        try:
            out = await self._waiter
        except READ_ERRORS as error:
            raise broken_body(self._target, error) from None
        self._waiting = False
        return out

    def stop(self) -> None:
        """Read no more."""
        if self._timer:
            self._timer.cancel()
        self._listen(None)

    def _listen(self, callback: Callable[[], None] | None) -> None:
        if self._connection is not None:  # it has a length, which may be 0
            self._connection.on_arrival = callback

    def _on_arrival(self) -> None:
        """Pass on what has arrived, and wait for more; or wake the task."""
        self._listen(None)  # reading may bring more at once, which must not overtake this
        try:
            while not self._waiter.done():
                packet = self._content.read_nowait()
                if not packet and not self._content.is_eof():
                    self._listen(self._on_arrival)
                    return
                out = self._relay.feed(packet)
                if self._relay.ended or (out and not self._write(out)):
                    self._waiter.set_result(out)
                elif self._relay.spoke:
                    self._deadlines.next_event()
        except Exception as error:  # noqa: BLE001 - whoever awaits it gets it
            self._waiter.set_exception(error)

    def _wait(self) -> None:
        if self._relay.spoke:
            self._deadlines.next_event()
        self._waiting = True
        if self._deadlines.deadline < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer_at = self._deadlines.deadline
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_at = float("inf")
        if not self._waiting:
            return  # the next read sets the timer again
        if self._loop.time() < self._deadlines.deadline - 0.001:
            self._set_timer()
            return
        self._content.set_exception(self._deadlines.expired())
        if self._connection is not None and self._connection.on_arrival:
            self._connection.on_arrival()
