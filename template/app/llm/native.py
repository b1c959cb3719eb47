"""The adapter that passes another dialect through to an upstream that speaks it itself."""

import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from app.llm.bridge import LEFT_OUT, TRANSLATED
from app.llm.call import Call
from app.llm.deadlines import Deadlines
from app.llm.direct import Direct
from app.llm.failures import cut_off, failure_in_body, unreadable
from app.llm.json_text import read_json
from app.llm.packets import Write
from app.llm.relay import Relay
from app.llm.sse import BYTE_ORDER_MARK, DONE, event_data
from app.llm.stream_state import StreamState
from app.llm.targets import Target
from app.llm.translator import Translator

ANTHROPIC_VERSION = "2023-06-01"
"""What a request gets that names none (Anthropic's reference, versions)."""
BEFORE_VALUE = re.compile(rb'"(?:(?:delta|text|thinking|partial_json|obfuscation)": ?"|sequence_number": ?(?=[0-9]))')
"""What stands before a text that is new in each delta, or before its number."""
DELTAS = (".delta", "content_block_delta")
"""Ends of the types of events that only add to the answer."""


class Native(Direct):
    """Calls upstreams in the dialect of the request. The answer is passed on as it came, and checked as chat's is."""

    async def complete(self, call: Call, target: Target) -> dict[str, Any]:
        """Return the outlines of a chat completion, and under TRANSLATED the upstream's answer, as JSON."""
        translator, upstream = _start(call, target)
        fields = translator.native(target.entry.defaults) | {"model": upstream.model}
        fields.pop("stream", None)
        headers = _headers(translator)
        body, came = await self._answer(upstream, translator.path, fields, call.deadlines, translator.needs, headers)
        if (error := translator.error_in(body)) is not None:
            raise failure_in_body(target, error)
        outlines = translator.as_chat(body)
        outlines["choices"][0]["message"]["said"] = body[translator.needs]  # its tokens are estimated, if need be
        return {**outlines, TRANSLATED: came.removeprefix(BYTE_ORDER_MARK)}

    async def count_tokens(self, translator: Translator, target: Target, deadlines: Deadlines) -> dict[str, Any]:
        """Return the upstream's count of a request's tokens; errors as in `Direct.complete`."""
        target.check_configured()
        upstream = target.native or target
        fields = {**translator.native({}), "model": upstream.model}
        path = f"{translator.path}/count_tokens"
        return (await self._answer(upstream, path, fields, deadlines, "input_tokens", _headers(translator)))[0]

    def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, Write | None]:
        """Yield the upstream's events; arguments and errors as in `Direct.stream`."""
        translator, upstream = _start(call, target)
        fields = {**translator.native(target.entry.defaults), "model": upstream.model, "stream": True}
        relay = NativeRelay(target, state, translator)
        return self._relayed(call.deadlines, upstream, translator.path, fields, relay, _headers(translator))


def _start(call: Call, target: Target) -> tuple[Translator, Target]:
    if call.translator is None:
        raise TypeError("nothing to pass through: this is chat")
    call.translator.restart()
    call.left_out = []
    call.headers.pop(LEFT_OUT, None)
    return call.translator, target.native or target


def _headers(translator: Translator) -> Mapping[str, str]:
    default = {"anthropic-version": ANTHROPIC_VERSION} if translator.dialect == "messages" else {}
    return default | translator.versions


class NativeRelay(Relay):
    """Passes on the events of a dialect's own stream. Left out are pings and what has no data.

    Args:
        target: the model, for errors.
        state: records what the events say.
        translator: knows the dialect's events.
    """

    def __init__(self, target: Target, state: StreamState, translator: Translator) -> None:
        super().__init__(target, state)
        self.end = translator.end
        self._translator = translator

    def whole(self, answer: dict[str, Any]) -> bytes:
        """Raise our error: no server is known that answers a dialect's stream so."""
        raise unreadable(self._target.name)

    def _count(self, plain: bytes, count: int) -> None:
        super()._count(plain, count)
        self._translator.last_deltas = plain

    def _passed(self, event: bytes) -> bytes:
        data = (event_data(event.removeprefix(BYTE_ORDER_MARK)) or b"").strip()
        if not data or data == b"[DONE]":
            return b""
        try:
            told = read_json(data)
            if not isinstance(told, dict) or (kind := str(told.get("type"))) == "ping":
                return b""
            if (error := self._translator.error_in(told)) is not None:
                raise failure_in_body(self._target, error)
            if kind.endswith(DELTAS) and event == b"event: %b\ndata: %b\n\n" % (kind.encode(), data):
                self._plain_chunks.remember(event, BEFORE_VALUE)
                self._count(event, 1)  # as the next ones that are like it
                return event
            self.spoke = True
            self.ended = self._translator.pass_on(told, self._state)
        except (ValueError, AttributeError, KeyError, TypeError):
            raise unreadable(self._target.name) from None
        return b"" if self.ended and self.end != DONE else event

    def _end(self, *, said_done: bool) -> None:
        """End a stream whose last event has not come."""
        raise cut_off(self._target.name)
