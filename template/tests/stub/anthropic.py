"""Anthropic's API: https://docs.anthropic.com/en/api/messages."""

import json
from collections.abc import Iterator
from typing import Any

from tests.stub.behaviour import MODEL_SUFFIX, PROMPT_TOKENS, Behaviour, Event, Json, dump, halves

_ERRORS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    """Return an error's body. Anthropic has no codes, and names a field in the message."""
    text = f"{param}: {message}" if param else message
    kind = code or _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_stub"}


def error_event(message: str) -> Event:
    return "error", dump(error(529, message))


def message(request: Json, behaviour: Behaviour) -> Json:
    """Answer `POST /v1/messages`."""
    calls: list[Json] = [
        {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": json.loads(arguments)}
        for index, (name, arguments) in enumerate(behaviour.tool_calls)
    ]
    return {
        "id": "msg_stub",
        "type": "message",
        "role": "assistant",
        "model": request["model"] + MODEL_SUFFIX,
        "content": calls or [{"type": "text", "text": behaviour.said}],
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": _usage(behaviour, behaviour.completion_tokens),
    }


def _usage(behaviour: Behaviour, tokens: int) -> Json:
    return {"input_tokens": PROMPT_TOKENS, "output_tokens": tokens} if behaviour.usage else {}


def token_count(_: Json, __: Behaviour) -> Json:
    """Answer `POST /v1/messages/count_tokens`."""
    return {"input_tokens": PROMPT_TOKENS}


def events(request: Json, behaviour: Behaviour) -> Iterator[Event]:
    """Answer `POST /v1/messages` with `stream`."""
    whole = message(request, behaviour)

    def event(kind: str, **rest: Any) -> Event:
        return kind, dump({"type": kind} | rest)

    begun = whole | {"content": [], "stop_reason": None, "usage": _usage(behaviour, 1)}
    yield event("message_start", message=begun)
    for index, (block, deltas) in enumerate(_blocks(behaviour)):
        yield event("content_block_start", index=index, content_block=block)
        if index == 0:
            yield event("ping")
        for delta in deltas:
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    if behaviour.finished != 0:
        ending = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        yield event("message_delta", delta=ending, usage=whole["usage"])
    if behaviour.done:
        yield event("message_stop")


def _blocks(behaviour: Behaviour) -> Iterator[tuple[Json, Iterator[Json]]]:
    """Yield each content block as it begins, and its deltas."""
    if not behaviour.tool_calls:
        yield {"type": "text", "text": ""}, ({"type": "text_delta", "text": word} for word in behaviour.words())
    for index, (name, arguments) in enumerate(behaviour.tool_calls):
        halved = halves(arguments)
        yield (
            {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": {}},
            ({"type": "input_json_delta", "partial_json": half} for half in halved),
        )
