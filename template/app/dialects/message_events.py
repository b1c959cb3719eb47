"""The events and the object of Anthropic's message, made from chat's chunks; and how its clients are answered."""

import secrets
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from app.dialects.chunks import Chunk, Delta, ToolCall, ToolCalls, add_thought, counts, reason_of, sealed
from app.llm.json_text import read_json

END = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
REASONS = {"length": "max_tokens", "content_filter": "refusal"}
"""Chat's finish reasons, and what Messages call them; all others are `end_turn`, or `tool_use` after a call."""
ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's types of an error, by its status; other statuses are `invalid_request_error`, or `api_error`."""


def is_anthropics(scope: Mapping[str, Any]) -> bool:
    """Return whether a request is one of Anthropic's API: its errors and the header with its id are then as there.

    Args:
        scope: the request's ASGI scope.
    """
    path = scope["path"]
    if path.startswith("/v1/models"):  # OpenAI's API has this path too
        return any(name == b"anthropic-version" for name, _ in scope["headers"])
    return bool(path.startswith("/v1/messages"))


def error_type(status: int) -> str:
    """Return Anthropic's type of an error with this HTTP status."""
    return ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def error_body(status: int, message: str, request_id: str) -> dict[str, Any]:
    """Return Anthropic's error."""
    error = {"type": error_type(status), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


class MessageEvents:
    """Turns chat's chunks into the events of a message, and puts the message together.

    One block is open at a time, as clients expect: of several tool calls, which may come side by side, the first one
    streams, and the others follow at the end, before the text that came after the first.

    Args:
        model: the model's public name.
        names: the tools' own names, by those of chat's functions.

    Attributes:
        whole: the message so far.
    """

    def __init__(self, model: str, names: dict[str, str]) -> None:
        self._model = model
        self._names = names
        self._out: list[bytes] = []
        self._begun = False
        self._calls = ToolCalls()
        self._block: dict[str, Any] | None = None
        self._said: list[str] = []
        self._around = b""
        self._thought: dict[str, Any] = {}
        self._late: list[str] = []
        self._reason = ""
        self._stopped_by: str | None = None
        self.whole: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage({}),
        }

    def take(self) -> bytes:
        """Return the events that have come since it was last called."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def add(self, chunk: Chunk) -> None:
        """Take a chunk."""
        if not self._begun:
            self._begin(chunk.model)
        if chunk.usage:
            self.whole["usage"] = _usage(chunk.usage)
        for choice in chunk.choices or ():
            if choice.index:
                continue  # only the first one was asked for
            if choice.delta is not None:
                self._add(choice.delta)
            if choice.finish_reason:
                self._reason = reason_of(choice)
                if isinstance(choice.stop_reason, str):  # vLLM's name of the sequence that it met
                    self._stopped_by = choice.stop_reason

    def finish(self) -> None:
        """End the message."""
        if not self._begun:
            self._begin(None)
        self._close()
        for call in self._calls.all:
            if call.place is None and call.name:
                self._open_call(call)
                self._more(call.arguments)
                self._close()
        if self._late:
            self._open({"type": "text", "text": ""}, b"text_delta", b"text")
            self._more("".join(self._late))
            self._close()
        reason = REASONS.get(self._reason) or ("tool_use" if self._calls.all else "end_turn")
        if reason == "end_turn" and self._stopped_by is not None:
            reason, self.whole["stop_sequence"] = "stop_sequence", self._stopped_by
        self.whole["stop_reason"] = reason
        delta = {"stop_reason": reason, "stop_sequence": self.whole["stop_sequence"]}
        self._emit("message_delta", delta=delta, usage=self.whole["usage"])
        self._out.append(END)

    def _begin(self, model: Any) -> None:
        self._begun = True
        if isinstance(model, str) and model:
            self.whole["model"] = model
        self._emit("message_start", message=self.whole)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), to_json({"type": kind, **fields})))

    def _add(self, delta: Delta) -> None:
        has_called = bool(self._calls.all)
        if (thought := delta.thought) and not has_called:
            if self._block is None or self._block["type"] != "thinking":
                self._thought = {}
                self._open({"type": "thinking", "thinking": "", "signature": ""}, b"thinking_delta", b"thinking")
            self._more(add_thought(self._thought, thought))
        for said in (delta.text if delta.content else "", delta.refusal):
            if said and has_called:
                self._late.append(str(said))
            elif said:
                if self._block is None or self._block["type"] != "text":
                    self._open({"type": "text", "text": ""}, b"text_delta", b"text")
                self._more(str(said))
        for part in delta.tool_calls or ():
            call, arguments = self._calls.add(part)
            if call is self._calls.all[0] and call.name:
                if call.place is None:
                    self._open_call(call)
                    arguments = call.arguments
                self._more(arguments)

    def _open_call(self, call: ToolCall) -> None:
        call.place = len(self.whole["content"])
        block = {"type": "tool_use", "id": call.id, "name": self._names.get(call.name, call.name), "input": {}}
        self._open(block, b"input_json_delta", b"partial_json")

    def _open(self, block: dict[str, Any], kind: bytes, field: bytes) -> None:
        """Begin a block, and make what stands before every one of its deltas."""
        self._close()
        place = len(self.whole["content"])
        self._block = block
        self.whole["content"].append(block)
        self._emit("content_block_start", index=place, content_block=block)
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
        self._around = head % (place, kind, field)

    def _more(self, said: str) -> None:
        """Add text to the open block."""
        if said:
            self._said.append(said)
            self._out.append(b"%b%b}}\n\n" % (self._around, to_json(said)))

    def _close(self) -> None:
        """End the open block."""
        if self._block is None:
            return
        block, self._block, said = self._block, None, "".join(self._said)
        self._said = []
        place = len(self.whole["content"]) - 1
        if block["type"] == "thinking":
            block |= {"thinking": said, "signature": sealed(self._thought, self._model)}
            delta = {"type": "signature_delta", "signature": block["signature"]}
            self._emit("content_block_delta", index=place, delta=delta)
        elif block["type"] == "text":
            block["text"] = said
        else:
            block["input"] = _input(said)
        self._emit("content_block_stop", index=place)


def _input(arguments: str) -> dict[str, Any]:
    """Return the input of a tool. If a model has not written an object, the client tells it so."""
    try:
        given = read_json(arguments.encode()) if arguments.strip() else None
    except ValueError:
        given = arguments
    return given if isinstance(given, dict) else {} if given is None else {"input": arguments}


def _usage(told: dict[str, Any]) -> dict[str, Any]:
    """Return Anthropic's usage: its `input_tokens` are those that no cache has had to do with."""
    details, answered = counts(told.get("prompt_tokens_details")), counts(told.get("completion_tokens_details"))
    told = counts(told)
    read = details.get("cached_tokens")
    written = told.get("cache_creation_input_tokens", details.get("cache_write_tokens"))
    return {
        "input_tokens": max(0, told.get("prompt_tokens", 0) - (read or 0) - (written or 0)),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": told.get("completion_tokens", 0),
        "output_tokens_details": {"thinking_tokens": answered.get("reasoning_tokens", 0)},
        "service_tier": "standard",
    }


def outlines(body: dict[str, Any]) -> dict[str, Any]:
    """Return the outlines of a chat completion for a message: its model, its end, and all its tokens."""
    told = counts(body.get("usage"))
    read, written = told.get("cache_read_input_tokens", 0), told.get("cache_creation_input_tokens", 0)
    usage = {
        "prompt_tokens": told.get("input_tokens", 0) + read + written,
        "prompt_tokens_details": {"cached_tokens": read, "cache_creation_tokens": written},
        "completion_tokens": told.get("output_tokens"),
    }
    choice: dict[str, Any] = {"finish_reason": body.get("stop_reason"), "message": {}}
    return {"model": body.get("model"), "choices": [choice], "usage": usage}
