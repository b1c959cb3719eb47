"""The direct adapter: providers that speak OpenAI's protocol, over kept connections.

A whole answer is parsed once. A stream's events are checked, and passed on byte for byte.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic_core import to_json

from app.config import Timeouts
from app.errors import ProviderError
from app.llm.adapter import Adapter
from app.llm.call import Call
from app.llm.deadlines import Deadlines
from app.llm.embeddings import BASE64_PROVIDERS
from app.llm.failures import parse_body, provider_failure, unreachable, unreadable
from app.llm.http_client import HttpClient
from app.llm.http_response import HttpError, Response
from app.llm.packets import Packets, Write
from app.llm.provider_responses import AFTER_DONE, check_encoding, not_answered, parse_answer, read_body
from app.llm.relay import Relay
from app.llm.stream_state import StreamState
from app.llm.targets import Target
from app.telemetry.tracing import inject

MAX_ERROR_BYTES = 64 * 1024
ERROR_WITHIN = 2.0
"""Seconds that a provider may take to send an error's body."""

PROXY_REFUSES = 407
NO_HEADERS: Mapping[str, str] = {}


class Direct(Adapter):
    """Calls OpenAI-compatible providers.

    Args:
        timeouts: time limits, in seconds. HttpClient keeps `connect`; each call's deadlines keep the others.
        traced: pass the trace's context on to the provider.
    """

    def __init__(self, timeouts: Timeouts, *, traced: bool = False) -> None:
        self._timeouts = timeouts
        self._traced = traced

    async def start(self) -> None:
        """Open nothing yet, but be ready to; needs a running loop."""
        self._http = HttpClient(self._timeouts.connect)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()

    async def complete(self, call: Call, target: Target) -> dict[str, Any]:
        """Return a chat completion: OpenAI's object.

        Args:
            call: its fields, and its deadlines.
            target: the model; not always the call's own, but one of its fallbacks.

        Raises:
            ProviderError: the provider failed, in whatever way.
        """
        fields = target.fields(call.fields)
        return (await self._answer(target, "/chat/completions", fields, call.deadlines, needs="choices"))[0]

    async def embed(self, call: Call, target: Target) -> dict[str, Any]:
        """Return embeddings: OpenAI's object; arguments and errors as in `complete`."""
        fields = {**call.fields, "model": target.model}
        if target.provider not in BASE64_PROVIDERS:
            fields.pop("encoding_format", None)
        fields = target.in_vendors_terms(fields)
        return (await self._answer(target, "/embeddings", fields, call.deadlines, needs="data"))[0]

    def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, Write | None]:
        """Yield a stream's events, one or more whole ones at a time, `[DONE]` last.

        A function that is sent into the generator (`asend`) writes events as they come; what it can't write is yielded.
        Usage is asked for too, unless the model's row says not to.

        Args:
            call: as in `complete`.
            target: as in `complete`.
            state: records every chunk.

        Raises:
            ProviderError: the provider failed, before the first item or in mid-stream.
        """
        fields = call.fields
        if target.entry.stream_usage:
            fields = {**fields, "stream_options": {**(fields.get("stream_options") or {}), "include_usage": True}}
        relay = Relay(target, state)
        return self._relayed(call.deadlines, target, "/chat/completions", target.fields(fields), relay)

    async def _relayed(
        self,
        deadlines: Deadlines,
        target: Target,
        path: str,
        fields: dict[str, Any],
        relay: Relay,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[bytes, Write | None]:
        """Yield what a relay returns for a stream's packets."""
        deadlines.start_stream(target.name)
        response = await self._post(target, path, fields, deadlines, headers)
        if not 200 <= response.status < 300:
            raise await self._failure(target, response)
        check_encoding(target, response)
        packets = Packets(target, response, relay, deadlines)
        write: Write | None = None
        is_first = True
        try:
            while not relay.ended:
                if write:
                    out = await packets.pass_on(write)
                else:
                    packet = await packets.read()
                    if is_first and packet.lstrip()[:1] in (b"{", b"["):
                        response.watch(deadlines)
                        body = packet + await read_body(target, response)
                        yield relay.whole(parse_answer(target, body))
                        return
                    is_first = is_first and not packet.strip()
                    out = relay.feed(packet)
                if out:
                    write = yield out
            if relay.failure:
                raise relay.failure
            response.leave(AFTER_DONE)
        finally:
            response.close()
            relay.failure = None  # its traceback refers to this frame, and so to the request

    async def _answer(
        self,
        target: Target,
        path: str,
        fields: dict[str, Any],
        deadlines: Deadlines,
        needs: str,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> tuple[dict[str, Any], bytes]:
        """Return a whole answer, and its body as it came."""
        deadlines.start_answer(target.name)
        response = await self._post(target, path, fields, deadlines, headers)
        if not 200 <= response.status < 300:
            raise await self._failure(target, response)
        with contextlib.closing(response):
            body = await read_body(target, response)
        answer = parse_answer(target, body)
        if not isinstance(answer.get(needs), int if needs == "input_tokens" else list):
            raise unreadable(target.name)
        return answer, body

    async def _post(
        self, target: Target, path: str, fields: dict[str, Any], deadlines: Deadlines, more: Mapping[str, str]
    ) -> Response:
        """Return the response to a request; whoever gets it reads and closes it."""
        headers = {"Content-Type": "application/json", **more}
        if target.key:
            headers[target.key_header] = target.key if target.key_header != "Authorization" else f"Bearer {target.key}"
        if self._traced:
            inject(headers)
        url = f"{target.api_base}{path}"
        try:
            response = await self._http.post(url, headers, to_json(fields), target.proxy, deadlines)
            if response.status == PROXY_REFUSES and target.proxy:
                response.close()
                raise unreachable(target, "ProxyRefused", unreached=True)
            return response
        except HttpError as error:
            raise not_answered(target, error, self._timeouts.connect) from None

    async def _failure(self, target: Target, response: Response) -> ProviderError:
        body = None
        with contextlib.closing(response), contextlib.suppress(ProviderError, TimeoutError):
            async with asyncio.timeout(ERROR_WITHIN):  # without a body, the status says enough
                check_encoding(target, response)
                body = parse_body(await read_body(target, response, MAX_ERROR_BYTES))
        return provider_failure(target, response.status, body, response.headers)
