"""The packets of a provider's stream: read one by one, or passed on at once, without a switch to another task."""

import asyncio
from collections.abc import Callable

from app.llm.deadlines import Deadlines
from app.llm.http_response import HttpError, Response
from app.llm.provider_responses import broken_body
from app.llm.relay import Relay
from app.llm.targets import Target

Write = Callable[[bytes], bool]
"""Sends bytes to the client at once; returns whether that was possible."""


class Packets:
    """Reads a stream's packets, each before the deadline.

    Args:
        target: the model, for errors.
        response: its status and headers have been read.
        relay: checks the packets; it tells when the stream has ended.
        deadlines: tells until when the next packet may take.
    """

    __slots__ = ("_deadlines", "_relay", "_response", "_target", "_waiter", "_write")

    def __init__(self, target: Target, response: Response, relay: Relay, deadlines: Deadlines) -> None:
        self._target = target
        self._response = response
        self._relay = relay
        self._deadlines = deadlines

    async def read(self) -> bytes:
        """Return the next packet; an empty one means that the connection has ended.

        Raises:
            ProviderError: it has not come before the deadline, or the response is broken.
        """
        self._wait()
        try:
            packet = await self._response.read()
        except HttpError as error:
            raise broken_body(self._target, error) from None
        self._response.watch(None)  # time that passes now is not the provider's
        return packet

    async def pass_on(self, write: Write) -> bytes:
        """Write what the relay returns for each packet as soon as it arrives, without waking the task that awaits this.

        Returns:
            What could not be written so, or is the stream's end.

        Raises:
            ProviderError: as in `read`.
        """
        self._write = write
        self._waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._wait()
        self._on_arrival()
        try:
            out = await self._waiter
        except HttpError as error:
            raise broken_body(self._target, error) from None
        finally:
            del self._waiter  # it has the error, whose traceback has this frame: they would be freed late
        self._response.watch(None)
        return out

    def _on_arrival(self) -> None:
        """Pass on what has arrived, and wait for more; or wake the task."""
        self._response.on_arrival = None  # reading may bring more at once, which must not overtake this
        try:
            while not self._waiter.done():
                packet = self._response.read_nowait()
                if not packet and not self._response.at_end:
                    self._response.on_arrival = self._on_arrival
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
        self._response.watch(self._deadlines)
