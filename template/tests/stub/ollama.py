"""Ollama's own API: https://github.com/ollama/ollama/blob/main/docs/api.md.

A stream has a line of JSON for each event.
"""

import json
from collections.abc import Iterator

from tests.stub.behaviour import MODEL_SUFFIX, PROMPT_TOKENS, Behaviour, Event, Json, dump, vectors


def error(_: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    """Return an error's body: a sentence and nothing else."""
    return {"error": ": ".join(filter(None, [code, param, message]))}


def error_event(message: str) -> Event:
    return "", dump(error(500, message))


def answer(request: Json, behaviour: Behaviour) -> Json:
    """Answer `POST /api/chat` without a stream."""
    message: Json = {"role": "assistant", "content": "" if behaviour.tool_calls else behaviour.said}
    if behaviour.tool_calls:
        message["tool_calls"] = _calls(behaviour)
    if behaviour.thought:
        message["thinking"] = behaviour.thought
    return _common(request) | {"message": message} | _end(behaviour)


def events(request: Json, behaviour: Behaviour) -> Iterator[Event]:
    """Answer `POST /api/chat` with a stream."""

    def line(**message: object) -> Event:
        return "", dump(_common(request) | {"message": {"role": "assistant", "content": ""} | message, "done": False})

    if behaviour.thought:
        yield line(thinking=behaviour.thought)
    if behaviour.tool_calls:
        yield line(tool_calls=_calls(behaviour))
    else:
        for word in behaviour.words():
            yield line(content=word)
    if behaviour.finished != 0:
        yield "", dump(_common(request) | {"message": {"role": "assistant", "content": ""}} | _end(behaviour))


def embeddings(request: Json, _: Behaviour) -> Json:
    """Answer `POST /api/embed`."""
    texts = request["input"]
    count = 1 if isinstance(texts, str) else len(texts)
    return {"model": request["model"], "embeddings": vectors(count, 4), "prompt_eval_count": PROMPT_TOKENS}


def _calls(behaviour: Behaviour) -> list[Json]:
    return [
        {"function": {"index": index, "name": name, "arguments": json.loads(arguments)}}
        for index, (name, arguments) in enumerate(behaviour.tool_calls)
    ]


def _common(request: Json) -> Json:
    return {"model": request["model"] + MODEL_SUFFIX, "created_at": "2026-01-01T00:00:00.000000Z"}


def _end(behaviour: Behaviour) -> Json:
    end: Json = {"done_reason": "stop", "done": True, "total_duration": 5_000_000, "load_duration": 1_000_000}
    if behaviour.usage:
        end |= {"prompt_eval_count": PROMPT_TOKENS, "eval_count": behaviour.completion_tokens}
    return end
