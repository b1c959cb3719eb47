"""Streams for `useChat` of Vercel's AI SDK: its UI message stream, version 1.

Source: the AI SDK's documentation, "Stream Protocols", and its schema of UI message chunks.
"""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from app.errors import AppError
from app.http.event_stream import EventStream
from app.http.own_events import closed_at_end
from app.llm.sse import DONE
from app.llm.tool_loop import Done, TextDelta, Turn
from app.llm.tools import ToolCall, ToolResult
from app.models import ChatChunk

HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}


def ui_message_stream(events: AsyncIterator[Any], *, message_id: str | None = None) -> EventStream:
    """Return a response that `useChat` reads as one message of the assistant.

    Args:
        events: texts; chunks of `llm.stream`; events of `llm.run`; dicts, which are parts of the protocol as they are,
            such as `{"type": "data-progress", "data": ...}`; other Pydantic models, each a part `data-` with the name
            of its class.
        message_id: id of the message; None makes one.
    """
    return EventStream(_parts(events, message_id or f"msg_{secrets.token_hex(12)}"), headers=HEADERS, error=_error)


async def _parts(events: AsyncIterator[Any], message_id: str) -> AsyncGenerator[dict[str, Any], None]:
    begin = [{"type": "start", "messageId": message_id}, {"type": "start-step"}]
    message = _Message()
    async with closed_at_end(events):
        async for event in events:
            parts = [*begin, *message.take(event)]
            begin = []  # not sent earlier: until the first event, an error has its own status
            for part in parts:
                yield part
    for part in [*begin, *message.end(), {"type": "finish-step"}, {"type": "finish"}]:
        yield part


class _Message:
    """Turns events into parts. A text is opened and closed around its deltas; after results of tools, a step begins."""

    def __init__(self) -> None:
        self._text: str | None = None
        self._turn = Turn()
        self._has_results = False

    def take(self, event: Any) -> list[dict[str, Any]]:
        """Return the parts for an event."""
        if isinstance(event, ChatChunk):
            self._turn.add(event)
            event = event.content
        if isinstance(event, str | TextDelta):
            return self._delta(event if isinstance(event, str) else event.text)
        if isinstance(event, ToolCall):
            return [*self._step(), *self._close(), *_asked(event)]
        if isinstance(event, ToolResult):
            output = {"errorText": str(event.result)} if event.is_error else {"output": event.result}
            self._has_results = True
            kind = "tool-output-error" if event.is_error else "tool-output-available"
            return [{"type": kind, "toolCallId": event.id, **output}]
        if isinstance(event, Done):
            return []
        if isinstance(event, BaseModel):
            return [{"type": f"data-{type(event).__name__}", "data": event.model_dump(mode="json")}]
        return [event]

    def end(self) -> list[dict[str, Any]]:
        """Return the parts that are still missing: the text's end, and calls that the front end shall make."""
        return [*self._close(), *(part for call in self._turn.calls for part in _asked(call))]

    def _delta(self, text: str) -> list[dict[str, Any]]:
        if not text:
            return []
        begin = self._step()
        if self._text is None:
            self._text = f"txt_{secrets.token_hex(6)}"
            begin += [{"type": "text-start", "id": self._text}]
        return [*begin, {"type": "text-delta", "id": self._text, "delta": text}]

    def _step(self) -> list[dict[str, Any]]:
        ended, self._has_results = self._has_results, False
        return [{"type": "finish-step"}, {"type": "start-step"}] if ended else []

    def _close(self) -> list[dict[str, Any]]:
        closed, self._text = self._text, None
        return [{"type": "text-end", "id": closed}] if closed else []


def _asked(call: ToolCall) -> list[dict[str, Any]]:
    try:
        given = from_json(call.arguments or "{}")
    except ValueError:
        given = call.arguments
    named = {"toolCallId": call.id, "toolName": call.name}
    return [{"type": "tool-input-start", **named}, {"type": "tool-input-available", **named, "input": given}]


def _error(error: AppError, _request_id: str) -> bytes:
    return b"data: " + to_json({"type": "error", "errorText": error.message}) + b"\n\n" + DONE
