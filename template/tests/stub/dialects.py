"""What vendors make of OpenAI's API: the same requests, and answers that differ in their own ways."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.stub import gemini, openai
from tests.stub.behaviour import Behaviour, Event, Json, dump

Chunks = Iterable[Event]

FILTERED = {"hate": {"filtered": False, "severity": "safe"}, "violence": {"filtered": False, "severity": "safe"}}


@dataclass(frozen=True)
class Dialect:
    """How a vendor's answers differ.

    Attributes:
        error: makes an error's body.
        chunks: changes the events of a stream.
        error_in_stream: makes the data of an error in mid-stream, of its sentence.
    """

    error: Callable[..., object] = openai.error
    chunks: Callable[[Chunks, Behaviour], Chunks] = lambda chunks, _: chunks
    error_in_stream: Callable[[str], Json] = lambda message: openai.error(500, message)


def of_path(path: str) -> Dialect:
    """Return the dialect of an address, by a part of it."""
    return next((dialect for part, dialect in DIALECTS.items() if part in path.split("/")), OPENAI)


def _azure_error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    return {"error": {"code": code or str(status), "message": message, "param": param, "type": None}}


def _azure_chunks(chunks: Chunks, behaviour: Behaviour) -> Iterator[Event]:
    """Filter results come in a chunk without choices at first, and beside every delta."""
    first = {"choices": [], "created": 0, "id": "", "model": "", "object": ""}
    yield "", dump(first | {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": FILTERED}]})
    for chunk in _parsed(chunks):
        if isinstance(chunk, dict):
            for choice in chunk["choices"]:
                choice["content_filter_results"] = FILTERED if choice["delta"] else {}
                if behaviour.blocked and choice["finish_reason"]:
                    choice["finish_reason"] = "content_filter"
        yield "", chunk if isinstance(chunk, str) else dump(chunk)


def _mistral_error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    if status == 401:
        return {"detail": "Unauthorized"}
    if status == 422:
        return {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": message}]}
    kind = "invalid_request_error" if status < 500 else "internal_server_error"
    return {"object": "error", "message": message, "type": kind, "param": param, "code": code or "1500"}


def _usage_at_the_end(chunks: Chunks, behaviour: Behaviour) -> Iterator[Event]:
    """Usage comes unasked, with the last finish reason; a tool call comes whole, without `type`."""
    calls: list[Json] = []
    for chunk in _parsed(chunks):
        if isinstance(chunk, str):
            yield "", chunk
            continue
        for choice in chunk["choices"]:
            for call in choice["delta"].pop("tool_calls", ()):
                _collect(calls, call)
            if choice["finish_reason"]:
                choice["delta"] = {"content": "", **({"tool_calls": calls} if calls else {})}
                if behaviour.usage:
                    chunk["usage"] = openai.usage({}, behaviour)
        if chunk["choices"]:
            yield "", dump(chunk)


def _collect(calls: list[Json], part: Json) -> None:
    if part["index"] == len(calls):
        function = part["function"]
        calls.append({"id": part["id"], "function": {"name": function["name"], "arguments": ""}, "index": len(calls)})
    calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]


def _vllm_error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    kind = "BadRequestError" if status in (400, 422) else "InternalServerError"
    return {"object": "error", "message": message, "type": kind, "param": param, "code": code or status}


def _google_error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> list[Json]:
    return [gemini.error(status, message, code=code, param=param)]


def _openrouter_error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    error = {"message": message, "code": code or status, "metadata": {"provider_name": "stub"}, "param": param}
    return {"error": error, "user_id": "user_stub"}


def _openrouter_event(message: str) -> Json:
    choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
    return {"id": "gen-stub", "object": "chat.completion.chunk", "choices": [choice]} | _openrouter_error(502, message)


def _groq_chunks(chunks: Chunks, _: Behaviour) -> Iterator[Event]:
    for index, chunk in enumerate(_parsed(chunks)):
        yield "", chunk if isinstance(chunk, str) else dump(chunk | ({"x_groq": {"id": "req"}} if not index else {}))


def _ollama_error(_: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    return {"error": {"message": message, "type": "api_error", "param": param, "code": code}}


def _xai_error(_: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    return {"code": code or "Client specified an invalid argument", "error": message, "param": param}


def _parsed(chunks: Chunks) -> Iterator[Json | str]:
    for _, data in chunks:
        yield data if data == "[DONE]" else json.loads(data)


OPENAI = Dialect()
DIALECTS = {
    "azure": Dialect(_azure_error, _azure_chunks),
    "deepseek": Dialect(chunks=_usage_at_the_end),
    "google": Dialect(_google_error, _usage_at_the_end, lambda message: gemini.error(503, message)),
    "groq": Dialect(chunks=_groq_chunks),
    "mistral": Dialect(_mistral_error, _usage_at_the_end, lambda message: _mistral_error(500, message)),
    "ollama": Dialect(_ollama_error),
    "openrouter": Dialect(_openrouter_error, error_in_stream=_openrouter_event),
    "vllm": Dialect(_vllm_error, error_in_stream=lambda message: {"error": _vllm_error(500, message)}),
    "xai": Dialect(_xai_error, _usage_at_the_end),
}
