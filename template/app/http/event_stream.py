"""EventStream: a model's stream as a response, with comments that keep the connection alive."""

import asyncio
from contextlib import AbstractAsyncContextManager

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import AppError, error_event
from app.http.exchange import exchange_of
from app.llm.client import OpenStream
from app.llm.sse import DONE
from app.llm.translator import Translator
from app.telemetry.logs import exception_fields

FIRST_EVENT = 10.0
"""Seconds that the response waits for the first event; then it starts without it, and pings."""
PING_EVERY = 15.0
"""Seconds of silence after which a comment is sent, so that proxies keep the connection open."""
PING = b": ping\n"
"""A comment without a blank line: after an `id:` line, OpenAI's SDKs take a blank line for the end of an event."""
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

log = structlog.get_logger("app.errors")


class EventStream(Response):
    """A model's stream as a response.

    An error before the first byte is raised, and so gets its own status. A later one becomes the last event.

    Args:
        opening: from `LLMClient.open_stream`; entered when the response begins.
        translator: of the dialect that the stream is in; None is chat.
    """

    def __init__(self, opening: AbstractAsyncContextManager[OpenStream], translator: Translator | None = None) -> None:
        self._opening = opening
        self._end = translator.end if translator else DONE
        self._error_event = translator.failed if translator else error_event
        self._start_headers = STREAM_HEADERS
        self._started = False
        self._done_sent = False
        self._sending = False
        self._ping: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._exchange = exchange_of(scope)
        self._send = send
        self._loop = asyncio.get_running_loop()
        # A task of its own, for speed: a packet then resumes only this task, and not every coroutine around a request.
        await asyncio.create_task(self._run())

    async def _run(self) -> None:
        failure: AppError | None = None
        self._sent_at = self._loop.time()
        self._timer = self._loop.call_later(FIRST_EVENT, self._on_timer)
        try:
            async with self._opening as stream:
                of_call = [(k.lower().encode(), v.encode("latin-1")) for k, v in stream.call.headers.items()]
                self._start_headers = STREAM_HEADERS + of_call
                await self._pass_on(stream.first)
                async for packet in stream.packets:
                    await self._pass_on(packet)
        except AppError as error:
            failure = error
        except asyncio.CancelledError:
            failure = self._exchange.aborted_by
            if failure is None or self._exchange.client_left:
                raise
        except Exception as error:
            log.error("unexpected", request_id=self._exchange.request_id, **exception_fields(error))
            failure = AppError()
        finally:
            self._timer.cancel()
        await self._until_pinged()
        if self._done_sent:
            return
        if failure is None:
            failure = AppError()  # a stream of the models always ends in `[DONE]` or an error
        if not self._started:
            raise failure
        self._exchange.error = failure.code
        await self._write(self._error_event(failure, self._exchange.request_id), is_last=True)

    async def _pass_on(self, packet: bytes) -> None:
        if self._ping:
            await self._until_pinged()
        self._sending = True
        await self._write(packet, is_last=packet.endswith(self._end))
        self._sending = False
        self._sent_at = self._loop.time()

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        """Send whole events or a comment, so that a ping can be sent between any two.

        The last event completes the response: what the client does after it is no leaving.
        """
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._start_headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        self._done_sent = is_last

    async def _until_pinged(self) -> None:
        if self._ping and not self._ping.done():
            await asyncio.wait([self._ping])

    def _on_timer(self) -> None:
        """Send a ping if nothing has been sent for long enough; set the timer again."""
        silence = self._loop.time() - self._sent_at
        if self._started and silence < PING_EVERY:
            self._timer = self._loop.call_later(PING_EVERY - silence, self._on_timer)
            return
        if not self._sending and (self._ping is None or self._ping.done()):
            self._ping = self._loop.create_task(self._write(PING))
        self._timer = self._loop.call_later(PING_EVERY, self._on_timer)
