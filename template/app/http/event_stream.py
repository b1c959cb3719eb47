"""EventStream: a stream of events as a response, with comments that keep the connection alive."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import AppError
from app.http.exchange import exchange_of
from app.http.json_response import raw
from app.http.own_events import OwnStream, named_error_event, open_events
from app.http.problems import error_event, told_error
from app.llm.call import OpenStream
from app.llm.sse import DONE
from app.llm.translator import Translator

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


class EventStream(Response):
    """A model's stream, or one of your own events, as a response; from any route.

    An error before the first byte is raised, and so gets its own status. A later one becomes the last event. When the
    client leaves, the iterator is closed; a `finally` in it may still await something.

    Args:
        events: texts, dicts, Pydantic models, `ServerSentEvent`s or bytes of whole events: each becomes an event. Or
            what `LLMClient.open_stream` returns, which is entered when the response begins.
        translator: of the dialect that a model's stream is in; None is chat.
        headers: further response headers.
        error: makes the event that an error becomes, from the error and the request id; `[DONE]` follows it.
    """

    def __init__(
        self,
        events: AbstractAsyncContextManager[OpenStream] | AsyncIterator[Any],
        translator: Translator | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        error: Callable[[AppError, str], bytes] | None = None,
    ) -> None:
        self._opening: AbstractAsyncContextManager[OpenStream | OwnStream]
        if isinstance(events, AbstractAsyncContextManager):
            self._opening, self._error = events, translator.failed if translator else error or error_event
        else:
            self._opening, self._error = open_events(events), error or named_error_event
        self._end = translator.end if translator else DONE
        self.raw_headers = [*STREAM_HEADERS, *raw(headers or {})]
        self.background: BackgroundTask | None = None
        self._started = False
        self._done_sent = False
        self._sending = False
        self._ping: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._exchange = exchange_of(scope)
        self._exchange.cancel_on_disconnect()
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._silence = self._exchange.silence()
        await self._run()
        if self.background:
            await self.background()

    async def _run(self) -> None:
        failure: AppError | None = None
        # Most packets are written as they arrive, without this task, unless a middleware wants to see them.
        write = self._write_now if self._send == self._exchange.send else None
        self._sent_at = self._loop.time()
        self._silence.call = self._on_silence
        self._silence.start(FIRST_EVENT)
        try:
            async with self._opening as stream:
                self.raw_headers += raw(stream.headers)
                await self._pass_on(stream.first, stream)
                with suppress(StopAsyncIteration):
                    while True:
                        await self._pass_on(await stream.packets.asend(write), stream)
        except asyncio.CancelledError:
            failure = self._exchange.aborted_by
            if failure is None or self._exchange.client_left:
                raise
        except Exception as error:
            failure = told_error(error, self._exchange.request_id)
        finally:
            self._silence.stop()
            self._silence.call = None
        await self._until_pinged()
        if self._done_sent:
            return
        if failure is None:
            failure = AppError()  # a stream of the models always ends in `[DONE]` or an error
        if not self._started:
            raise failure
        failure.__traceback__ = None  # it refers to this frame, and so would be freed late, with the request's body
        self._exchange.error = failure.code
        await self._write(self._error(failure, self._exchange.request_id), is_last=True)

    async def _pass_on(self, packet: bytes, stream: OpenStream | OwnStream) -> None:
        if self._ping:
            await self._until_pinged()
        if is_last := packet.endswith(self._end):
            stream.ending()
        self._sending = True
        await self._write(packet, is_last=is_last)
        self._sending = False
        self._sent_at = self._loop.time()

    def _write_now(self, packet: bytes) -> bool:
        self._sent_at = self._loop.time()
        return self._exchange.write(packet)

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        """Send whole events or a comment, so that a ping can be sent between any two.

        The last event completes the response: what the client does after it is no leaving.
        """
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self.raw_headers = []  # a stream may be open for long
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        self._done_sent = is_last

    async def _until_pinged(self) -> None:
        if self._ping and not self._ping.done():
            await asyncio.wait([self._ping])

    def _on_silence(self) -> None:
        """Send a ping if nothing has been sent for long enough; set the timer again."""
        silence = self._loop.time() - self._sent_at
        is_over = not self._started or silence >= PING_EVERY
        if is_over and not self._sending and (self._ping is None or self._ping.done()):
            self._ping = self._loop.create_task(self._write(PING))
        self._silence.start(PING_EVERY if is_over else PING_EVERY - silence)
