"""The direct way: a provider that speaks OpenAI's protocol, over one pooled aiohttp session.

A whole answer is parsed once. A stream's events are looked at, and passed on as they came.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any

import aiohttp
from pydantic_core import from_json, to_json
from yarl import URL

from app.config import Timeouts
from app.errors import ProviderError, ProviderTimeout
from app.llm.clock import Clock, Watchdog
from app.llm.failures import cut_off, failure_in_body, provider_failure, unreachable, unreadable
from app.llm.relay import Relay, StreamWatch
from app.llm.targets import Target
from app.tracing import inject

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
ERROR_WITHIN = 2.0
"""Seconds that a provider gets to send an error's body."""
AFTER_DONE = 1.0
"""Seconds that a provider gets to end its response after `[DONE]`."""

READ_ERRORS = (aiohttp.ClientError, OSError)

_url = cache(URL)


class Direct:
    """Calls OpenAI-compatible providers.

    Args:
        timeouts: limits; `connect` is kept by the session, the others by each call's clock.
        traced: pass the trace's context on.
    """

    def __init__(self, timeouts: Timeouts, *, traced: bool = False) -> None:
        self._timeouts = timeouts
        self._traced = traced

    async def start(self) -> None:
        """Open the session; needs a running loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def complete(self, target: Target, fields: dict[str, Any], clock: Clock) -> dict[str, Any]:
        """Return a chat completion.

        Args:
            target: the model.
            fields: the request's fields, in OpenAI's terms.
            clock: the call's time limits.

        Raises:
            ProviderError: the provider failed, in any of the ways there are.
        """
        return await self._answer(target, "/chat/completions", target.fields(fields), clock, needs="choices")

    async def embed(self, target: Target, fields: dict[str, Any], clock: Clock) -> dict[str, Any]:
        """Return embeddings; as `complete`."""
        return await self._answer(target, "/embeddings", {**fields, "model": target.model}, clock, needs="data")

    async def stream(
        self, target: Target, fields: dict[str, Any], clock: Clock, watch: StreamWatch
    ) -> AsyncGenerator[bytes, None]:
        """Yield a stream's events, one or more whole ones at a time, `[DONE]` last.

        Args:
            target: the model.
            fields: the request's fields; usage is asked for besides, unless the model's row says not to.
            clock: the call's time limits.
            watch: told of every chunk.

        Raises:
            ProviderError: the provider failed, before the first item or in mid-stream.
        """
        fields = target.fields(fields)
        if target.entry.stream_usage:
            fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
        clock.start_stream(target.name)
        try:
            async with clock.limit():
                response = await self._post(target, "/chat/completions", fields)
                if response.status == 200 and response.content_type == "application/json":
                    with contextlib.closing(response):
                        self._parse(target, await self._read(target, response))
                        raise unreadable(target.name)
        except TimeoutError:
            raise clock.expired() from None
        if response.status != 200:
            raise await self._refusal(target, response)
        watchdog = Watchdog(clock, response.content.set_exception)
        try:
            relay = Relay(target.name, watch)
            while not relay.ended:
                if relay.spoke:
                    clock.next_event()
                watchdog.wait()
                try:
                    packet = await response.content.readany()
                except READ_ERRORS:
                    raise cut_off(target.name) from None
                watchdog.rest()
                if out := relay.feed(packet):
                    yield out
            if relay.failure:
                raise relay.failure
            await _read_to_end(response)
        finally:
            watchdog.stop()
            response.close()

    async def _answer(
        self, target: Target, path: str, fields: dict[str, Any], clock: Clock, needs: str
    ) -> dict[str, Any]:
        clock.start_answer(target.name)
        try:
            async with clock.limit():
                response = await self._post(target, path, fields)
                if response.status == 200:
                    with contextlib.closing(response):
                        answer = self._parse(target, await self._read(target, response))
                        if not isinstance(answer.get(needs), list):
                            raise unreadable(target.name)
                        return answer
        except TimeoutError:
            raise clock.expired() from None
        raise await self._refusal(target, response)

    async def _post(self, target: Target, path: str, fields: dict[str, Any]) -> aiohttp.ClientResponse:
        """Return a response, for the caller to read and close."""
        headers = {"Content-Type": "application/json"}
        if target.key:
            headers["Authorization"] = f"Bearer {target.key}"
        if self._traced:
            inject(headers)
        try:
            return await self._session.post(
                _url(f"{target.api_base}{path}"),
                data=to_json(fields),
                headers=headers,
                proxy=target.proxy,
                allow_redirects=False,  # a key goes to its own host only
            )
        except aiohttp.ConnectionTimeoutError:
            message = f"The provider of model {target.name!r} took no connection within {self._timeouts.connect:g} s"
            raise ProviderTimeout(f"{message} (timeouts.connect).", retry=True) from None
        except READ_ERRORS as error:
            raise unreachable(target, type(error).__name__) from None

    async def _refusal(self, target: Target, response: aiohttp.ClientResponse) -> ProviderError:
        error = None
        with contextlib.closing(response), contextlib.suppress(ProviderError, TimeoutError, ValueError):
            async with asyncio.timeout(ERROR_WITHIN):  # the status says enough
                body = from_json(await self._read(target, response, MAX_ERROR_BYTES))
            error = body.get("error") if isinstance(body, dict) else None
        return provider_failure(target.name, response.status, error, response.headers, [target.key])

    @staticmethod
    async def _read(target: Target, response: aiohttp.ClientResponse, limit: int = MAX_ANSWER_BYTES) -> bytes:
        packets, size = [], 0
        try:
            while packet := await response.content.readany():
                packets.append(packet)
                size += len(packet)
                if size > limit:
                    raise unreadable(target.name)
        except READ_ERRORS:
            raise cut_off(target.name) from None
        return b"".join(packets)

    @staticmethod
    def _parse(target: Target, body: bytes) -> dict[str, Any]:
        try:
            answer = from_json(body, allow_inf_nan=False)
        except ValueError:
            raise unreadable(target.name) from None
        if isinstance(answer, dict) and answer.get("error"):
            raise failure_in_body(target.name, answer["error"], [target.key])
        if not isinstance(answer, dict):
            raise unreadable(target.name)
        return answer


async def _read_to_end(response: aiohttp.ClientResponse) -> None:
    """Read what follows a stream's `[DONE]`, which is nothing, so that the connection can be used again."""
    with contextlib.suppress(*READ_ERRORS):
        if not response.content.at_eof():
            async with asyncio.timeout(AFTER_DONE):
                while await response.content.readany():
                    pass
