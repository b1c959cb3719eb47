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
    """

    def __init__(self, adapter: ChatAdapter) -> None:
        self._adapter = adapter

    async def complete(self, call: Call, target: Target) -> dict[str, Any]:
        """Return a chat completion, and under TRANSLATED the dialect's answer; the rest is as in `Direct.complete`."""
        translator = _start(call, call.translator)
        body = await self._adapter.complete(call, target)
        try:
            return {**body, TRANSLATED: translator.answer(body)}
        except MISREAD:
            raise unreadable(target.name) from None
        except BrokenOff:
            raise cut_off(target.name) from None

    async def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, None]:
        """Yield the dialect's events; arguments and errors as in `Direct.stream`."""
        translator = _start(call, call.translator)
        async with aclosing(self._adapter.stream(call, target, state)) as packets:
            async for packet in packets:
                try:
                    events = translator.feed(packet)
                except MISREAD:
                    raise unreadable(target.name) from None
                except BrokenOff:
                    raise cut_off(target.name) from None
                if events:
                    yield events


def _start(call: Call, translator: Translator | None) -> Translator:
    if translator is None:
        raise TypeError("a bridge needs a translator")
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
    return translator
