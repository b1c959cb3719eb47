"""Google's own API: https://ai.google.dev/api/generate-content. The model stands in the path."""

import json
from collections.abc import Iterator

from tests.stub.behaviour import MODEL_SUFFIX, PROMPT_TOKENS, Behaviour, Event, Json, dump, vectors

RETRY_AFTER = 34
"""Seconds that a 429 asks to wait, in its body alone."""

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


def error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    """Return an error's body. Google's `code` is the HTTP status, and a field is named in the message."""
    text = f"{param}: {message}" if param else message
    body: Json = {"code": status, "message": text, "status": code or _STATUSES.get(status, "UNKNOWN")}
    if status == 429:
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{RETRY_AFTER}s"}
        body["details"] = [retry]
    return {"error": body}


def error_event(message: str) -> Event:
    return "", dump(error(503, message))


def answer(request: Json, behaviour: Behaviour) -> Json:
    """Answer `POST /v1beta/models/{model}:generateContent`."""
    if behaviour.blocked == "prompt":
        return _blocked(request)
    parts = [] if behaviour.blocked else list(_parts(behaviour))
    return _answer(request, behaviour, parts, _reason(behaviour), usage=behaviour.usage)


def events(request: Json, behaviour: Behaviour) -> Iterator[Event]:
    """Answer `POST /v1beta/models/{model}:streamGenerateContent?alt=sse`. Nothing follows the finish reason."""
    if behaviour.blocked == "prompt":
        yield "", dump(_blocked(request))
        return
    for part in _parts(behaviour, streamed=True):
        yield "", dump(_answer(request, behaviour, [part], usage=behaviour.usage))
    if behaviour.finished != 0:
        end = [] if behaviour.blocked else [{"text": ""}]
        yield "", dump(_answer(request, behaviour, end, _reason(behaviour), usage=behaviour.usage))


def embeddings(request: Json, _: Behaviour) -> Json:
    """Answer `POST /v1beta/models/{model}:batchEmbedContents`."""
    return {"embeddings": [{"values": vector} for vector in vectors(len(request["requests"]), 4)]}


def _reason(behaviour: Behaviour) -> str:
    return "SAFETY" if behaviour.blocked else "STOP"


def _parts(behaviour: Behaviour, *, streamed: bool = False) -> Iterator[Json]:
    """Yield what the model says; a function call comes whole, with its arguments as an object."""
    if behaviour.thought:
        yield {"text": behaviour.thought, "thought": True}
    for name, arguments in behaviour.tool_calls:
        yield {"functionCall": {"name": name, "args": json.loads(arguments)}, "thoughtSignature": "c2lnbmF0dXJl"}
    if not behaviour.tool_calls:
        for text in behaviour.words() if streamed else [behaviour.said]:
            yield {"text": text}


def _answer(request: Json, behaviour: Behaviour, parts: list[Json], reason: str | None = None, *, usage: bool) -> Json:
    candidate: Json = {"index": 0}
    if parts:
        candidate["content"] = {"role": "model", "parts": parts}
    if reason:
        candidate["finishReason"] = reason
    body: Json = {"candidates": [candidate]} | _common(request)
    if usage:
        body["usageMetadata"] = {
            "promptTokenCount": PROMPT_TOKENS,
            "candidatesTokenCount": behaviour.completion_tokens,
            "totalTokenCount": PROMPT_TOKENS + behaviour.completion_tokens,
        }
    return body


def _blocked(request: Json) -> Json:
    ratings = [{"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH"}]
    feedback = {"blockReason": "SAFETY", "safetyRatings": ratings}
    usage = {"promptTokenCount": PROMPT_TOKENS, "totalTokenCount": PROMPT_TOKENS}
    return {"promptFeedback": feedback, "usageMetadata": usage} | _common(request)


def _common(request: Json) -> Json:
    return {"modelVersion": request["model"] + MODEL_SUFFIX, "responseId": "stub-response"}
