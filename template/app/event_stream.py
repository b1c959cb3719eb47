"""Sends a stream of the models to the client, so that it is never silent for long."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import AppError, error_event
from app.exchange import exchange_of
from app.llm.sse import DONE
from app.logs import where

FIRST_EVENT = 10.0
"""Seconds that a stream's first event is waited for before the response starts without it."""
PING_EVERY = 15.0
"""Seconds of silence after which a comment keeps proxies awake."""
PING = b": ping\n\n"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

log = structlog.get_logger("app.errors")


class EventStream(Response):
    """A stream of the models as a response. An error before its first byte is raised, and so gets its own status.

    Args:
        packets: from `LLMClient.events`: one or more whole events at a time, `[DONE]` last.
        headers: further response headers, complete when the first packet is there.
    """

    def __init__(self, packets: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        self._packets = packets
        self._further = headers
        self._started = False
        self._whole = False
        self._sending = False
        self._ping: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._exchange = exchange_of(scope)
        self._send = send
        self._loop = asyncio.get_running_loop()
        async with aclosing(self._packets) as packets:
            # in a task of its own: each packet wakes that alone, and not all the coroutines around a request too
            await asyncio.create_task(self._run(packets))

    async def _run(self, packets: AsyncIterator[bytes]) -> None:
        """Send every packet; an error after the first byte becomes the stream's last event."""
        failure: AppError | None = None
        self._spoke_at = self._loop.time()
        self._timer = self._loop.call_later(FIRST_EVENT, self._on_timer)
        try:
            async for packet in packets:
                if self._ping:
                    await self._until_pinged()
                self._sending = True
                await self._write(packet)
                self._sending = False
                self._spoke_at = self._loop.time()
        except AppError as error:
            failure = error
        except asyncio.CancelledError:
            failure = self._exchange.aborted_by
            if failure is None or self._exchange.client_left:
                raise
        except Exception as error:
            log.error("unexpected", request_id=self._exchange.request_id, **where(error))
            failure = AppError()
        finally:
            self._timer.cancel()
        await self._until_pinged()
        if failure and not self._whole:
            if not self._started:
                raise failure
            self._exchange.error = failure.code
            await self._write(error_event(failure, self._exchange.request_id))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, data: bytes) -> None:
        """Send whole events or a comment, so that a ping can stand between any two."""
        if not self._started:
            self._started = True
            headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in self._further.items()]
            start = {"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS + headers}
            await self._send(start)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._whole = self._whole or data.endswith(DONE)

    async def _until_pinged(self) -> None:
        if self._ping and not self._ping.done():
            await asyncio.wait([self._ping])

    def _on_timer(self) -> None:
        silence = self._loop.time() - self._spoke_at
        if self._started and silence < PING_EVERY:
            self._timer = self._loop.call_later(PING_EVERY - silence, self._on_timer)
            return
        if not self._sending and (self._ping is None or self._ping.done()):
            self._ping = self._loop.create_task(self._write(PING))
        self._timer = self._loop.call_later(PING_EVERY, self._on_timer)
