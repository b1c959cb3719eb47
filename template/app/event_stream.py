"""Sends an answer of the models to the client: JSON at once, or a stream that is never silent for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.errors import AppError, error_event
from app.llm.sse import DONE
from app.llm.ways import Answer
from app.logs import where
from app.middleware import Exchange, exchange_of

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


class AnswerResponse(Response):
    """An answer as a response. An error before its first byte is raised, and so gets its own status.

    Args:
        answer: from `LLMClient.open`.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.status_code = 200
        self.background = None
        self.raw_headers = list(STREAM_HEADERS) if answer.streams else [(b"content-type", b"application/json")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.answer.body) as packets:
            if self.answer.streams:
                await EventStream(self, exchange_of(scope), send).run(packets)
                return
            body = await anext(packets)
            self.raw_headers.append((b"content-length", b"%d" % len(body)))
            await send(self.start())
            await send({"type": "http.response.body", "body": body})

    def start(self) -> Message:
        """Return the message that a response starts with; the answer's headers are complete only now."""
        headers = [(name.lower().encode(), value.encode()) for name, value in self.answer.headers.items()]
        return {"type": "http.response.start", "status": 200, "headers": self.raw_headers + headers}


class EventStream:
    """One stream on its way to the client."""

    def __init__(self, response: AnswerResponse, exchange: Exchange, send: Send) -> None:
        self._response = response
        self._exchange = exchange
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._started = False
        self._whole = False
        self._sending = False
        self._spoke_at = self._loop.time()
        self._ping: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(FIRST_EVENT, self._on_timer)

    async def run(self, packets: AsyncIterator[bytes]) -> None:
        """Send every packet; an error after the first byte becomes the stream's last event."""
        failure: AppError | None = None
        try:
            async for packet in packets:
                await self._write(packet)
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
        if self._ping:
            await self._until_pinged()
        self._sending = True
        await self._send_whole(data)
        self._whole = data.endswith(DONE)
        self._sending = False
        self._spoke_at = self._loop.time()

    async def _until_pinged(self) -> None:
        if self._ping and not self._ping.done():
            await asyncio.wait([self._ping])

    async def _send_whole(self, data: bytes) -> None:
        """Send whole events or a comment, so that a ping can stand between any two."""
        if not self._started:
            self._started = True
            await self._send(self._response.start())
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _on_timer(self) -> None:
        silence = self._loop.time() - self._spoke_at
        if self._started and silence < PING_EVERY:
            self._timer = self._loop.call_later(PING_EVERY - silence, self._on_timer)
            return
        if not self._sending and (self._ping is None or self._ping.done()):
            self._ping = self._loop.create_task(self._send_whole(PING))
        self._timer = self._loop.call_later(PING_EVERY, self._on_timer)
