"""Cohere's API, version 2: https://docs.cohere.com/reference/chat.

A stream has a line of JSON for each event, as clients get it that accept JSON, LiteLLM among them.
"""

from collections.abc import Iterator
from typing import Any

from tests.stub.behaviour import PROMPT_TOKENS, Behaviour, Event, Json, dump, halves


def error(_: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    """Return an error's body."""
    return {"id": "stub", "message": ": ".join(filter(None, [code, param, message]))}


def error_event(message: str) -> Event:
    ending = {"finish_reason": "ERROR", "error": message, "usage": None}
    return "message-end", dump({"type": "message-end", "id": "stub", "delta": ending})


def answer(_: Json, behaviour: Behaviour) -> Json:
    """Answer `POST /v2/chat`."""
    message: Json = {"role": "assistant"}
    if behaviour.tool_calls:
        message |= {"tool_plan": "I will call a tool.", "tool_calls": [_call(*call) for call in _numbered(behaviour)]}
    else:
        message["content"] = [{"type": "text", "text": behaviour.said}]
    return {"id": "stub", "message": message} | _end(behaviour)


def events(_: Json, behaviour: Behaviour) -> Iterator[Event]:
    """Answer `POST /v2/chat` with `stream`."""

    def event(kind: str, **rest: Any) -> Event:
        return kind, dump({"type": kind} | rest)

    def message(kind: str, index: int, **content: Any) -> Event:
        return event(kind, index=index, delta={"message": content})

    start = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    yield event("message-start", id="stub", delta={"message": start})
    if not behaviour.tool_calls:
        yield message("content-start", 0, content={"type": "text", "text": ""})
        for word in behaviour.words():
            yield message("content-delta", 0, content={"text": word})
        yield event("content-end", index=0)
    for index, name, arguments in _numbered(behaviour):
        yield message("tool-call-start", index, tool_calls=_call(index, name, ""))
        for half in halves(arguments):
            yield message("tool-call-delta", index, tool_calls={"function": {"arguments": half}})
        yield event("tool-call-end", index=index)
    if behaviour.finished != 0:
        yield event("message-end", id="stub", delta=_end(behaviour))


def _numbered(behaviour: Behaviour) -> list[tuple[int, str, str]]:
    return [(index, name, arguments) for index, (name, arguments) in enumerate(behaviour.tool_calls)]


def _call(index: int, name: str, arguments: str) -> Json:
    return {"id": f"{name}_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _end(behaviour: Behaviour) -> Json:
    end: Json = {"finish_reason": "TOOL_CALL" if behaviour.tool_calls else "COMPLETE"}
    if behaviour.usage:
        counts = {"input_tokens": PROMPT_TOKENS, "output_tokens": behaviour.completion_tokens}
        end["usage"] = {"billed_units": counts, "tokens": counts}
    return end
