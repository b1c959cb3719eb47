"""The adapter that bridges another dialect onto chat."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from app.llm.adapter import ChatAdapter
from app.llm.call import Call
from app.llm.failures import cut_off, unreadable
from app.llm.stream_state import StreamState
from app.llm.targets import Target
from app.llm.translator import BrokenOff, Translator

TRANSLATED = "translated"
"""The name of the dialect's answer in the body of an `Answer`: an object, or JSON as it came from an upstream."""
MISREAD = (AttributeError, LookupError, TypeError, ValueError)
"""What a translator raises at an answer that does not follow OpenAI's protocol."""
LEFT_OUT = "X-Left-Out"
"""The header that tells what could not be translated."""


class Bridge:
    """An adapter that lets a model of chat answer another dialect.

    Args:
        adapter: the model's own adapter.
        translator: of the dialect that is asked for.
    """

    def __init__(self, adapter: ChatAdapter, translator: Translator) -> None:
        self._adapter = adapter
        self._translator = translator

    async def complete(self, call: Call, target: Target) -> dict[str, Any]:
        """Return a chat completion, and under TRANSLATED the dialect's answer; the rest is as in `Direct.complete`."""
        self._start(call)
        body = await self._adapter.complete(call, target)
        try:
            return {**body, TRANSLATED: self._translator.answer(body)}
        except MISREAD:
            raise unreadable(target.name) from None
        except BrokenOff:
            raise cut_off(target.name) from None

    async def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, None]:
        """Yield the dialect's events; arguments and errors as in `Direct.stream`."""
        self._start(call)
        async with aclosing(self._adapter.stream(call, target, state)) as packets:
            async for packet in packets:
                try:
                    events = self._translator.feed(packet)
                except MISREAD:
                    raise unreadable(target.name) from None
                except BrokenOff:
                    raise cut_off(target.name) from None
                if events:
                    yield events

    def _start(self, call: Call) -> None:
        translator = self._translator
        if call.is_outlined:  # by the model that was tried before
            call.fields, call.is_outlined = dict(translator.fields), False
            call.fields.pop("stream", None)
            if call.stream:
                call.fields["stream"] = True
        translator.check()
        translator.restart()
        call.left_out = translator.left_out
        if call.left_out:
            call.headers[LEFT_OUT] = ", ".join(call.left_out)
