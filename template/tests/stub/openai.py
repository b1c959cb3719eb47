"""OpenAI's API: https://platform.openai.com/docs/api-reference/chat."""

import base64
import struct
from collections.abc import Iterator
from typing import Any

from tests.stub.behaviour import MODEL_SUFFIX, PROMPT_TOKENS, Behaviour, Event, Json, dump, halves, vectors

_CREATED = 1767225600
_ERRORS = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("tokens", "rate_limit_exceeded"),
}


def error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    """Return an error's body."""
    kind, usual_code = _ERRORS.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    return {"error": {"message": message, "type": kind, "param": param, "code": code or usual_code}}


def error_event(message: str) -> Event:
    return "", dump(error(500, message))


def completion(request: Json, behaviour: Behaviour) -> Json:
    """Answer `POST /v1/chat/completions`."""
    message: Json = {"role": "assistant", "content": behaviour.said, "refusal": None, "annotations": []}
    if behaviour.tool_calls:
        message["content"] = None
        message["tool_calls"] = [
            {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate(behaviour.tool_calls)
        ]
    if behaviour.thought:
        message["reasoning_content"] = behaviour.thought
    choice = {"message": message, "logprobs": None, "finish_reason": _finish_reason(behaviour)}
    body = _common(request, "chat.completion")
    body["choices"] = [{"index": index} | choice for index in _choices(request)]
    if behaviour.usage:
        body["usage"] = usage(request, behaviour)
    return body


def chunks(request: Json, behaviour: Behaviour) -> Iterator[Event]:
    """Answer `POST /v1/chat/completions` with `stream`.

    Usage comes as OpenAI sends it: only if asked for, in a chunk of its own without choices, and null in all others.
    """
    asked = behaviour.usage and (request.get("stream_options") or {}).get("include_usage", False)
    common = _common(request, "chat.completion.chunk")
    choices = _choices(request)

    def chunk(index: int, delta: Json, reason: str | None = None) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return "", dump(common | {"choices": [choice]} | ({"usage": None} if asked else {}))

    for delta in _deltas(behaviour):
        for index in choices:
            yield chunk(index, delta)
    for index in choices[: behaviour.finished]:
        yield chunk(index, {}, _finish_reason(behaviour))
    if asked:
        yield "", dump(common | {"choices": [], "usage": usage(request, behaviour)})
    if behaviour.done:
        yield "", "[DONE]"


def embeddings(request: Json, _: Behaviour) -> Json:
    """Answer `POST /v1/embeddings`, by default with vectors of four numbers."""
    texts = request["input"]
    count = 1 if isinstance(texts, str) or isinstance(texts[0], int) else len(texts)
    rows: list[Json] = []
    for index, numbers in enumerate(vectors(count, request.get("dimensions") or 4)):
        vector: Any = numbers
        if request.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        rows.append({"object": "embedding", "index": index, "embedding": vector})
    usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
    return {"object": "list", "data": rows, "model": request["model"] + MODEL_SUFFIX, "usage": usage}


def models(_: Json, __: Behaviour) -> Json:
    """Answer `GET /v1/models`."""
    row = {"id": "gpt-4o", "object": "model", "created": _CREATED, "owned_by": "stub"}
    return {"object": "list", "data": [row]}


def _common(request: Json, kind: str) -> Json:
    return {
        "id": "chatcmpl-stub",
        "object": kind,
        "created": _CREATED,
        "model": request["model"] + MODEL_SUFFIX,
        "service_tier": "default",
        "system_fingerprint": "fp_stub",
    }


def _choices(request: Json) -> range:
    return range(request.get("n") or 1)


def _finish_reason(behaviour: Behaviour) -> str:
    return "tool_calls" if behaviour.tool_calls else "stop"


def usage(request: Json, behaviour: Behaviour) -> Json:
    tokens = behaviour.completion_tokens * len(_choices(request))
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": PROMPT_TOKENS + tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _deltas(behaviour: Behaviour) -> Iterator[Json]:
    """Yield what each choice streams before its finish reason."""
    for half in filter(None, halves(behaviour.thought)):
        yield {"reasoning_content": half}
    if not behaviour.tool_calls:
        yield {"role": "assistant", "content": "", "refusal": None}
        for word in behaviour.words():
            yield {"content": word}
        return
    yield {"role": "assistant", "content": None, "refusal": None}
    for index, (name, arguments) in enumerate(behaviour.tool_calls):
        call = {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        yield {"tool_calls": [{"index": index} | call]}
        for half in halves(arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": half}}]}
