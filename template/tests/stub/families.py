"""The protocols that the stub speaks, and the paths that they are found at."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.stub import anthropic, bedrock, cohere, dialects, gemini, ollama, openai, responses
from tests.stub.behaviour import Behaviour, Event, Json, dump

SSE_TYPE = "text/event-stream; charset=utf-8"
_LINE_ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def _sse_frame(event: Event, behaviour: Behaviour) -> bytes:
    name, text = event
    lines = [": on its own", "", ": inside the event"] if behaviour.comments else []
    if name:
        lines.append(f"event: {name}")
    lines += [behaviour.prefix + text, "", ""]
    return _LINE_ENDS[behaviour.line_end].join(lines).encode()


def _line(event: Event, _: Behaviour) -> bytes:
    return f"{event[1]}\n".encode()


@dataclass(frozen=True, kw_only=True)
class Family:
    """A protocol.

    Attributes:
        answer: makes a whole answer of a request.
        events: makes the events of a stream; None where there are no streams.
        error: makes an error's body of a status, a sentence, a code and a field.
        error_event: makes the event of an error in mid-stream, of its sentence.
        stream_type: content type of a stream.
        frame: writes an event.
    """

    answer: Callable[[Json, Behaviour], Json]
    events: Callable[[Json, Behaviour], Iterable[Event]] | None = None
    error: Callable[..., object] = openai.error
    error_event: Callable[[str], Event] = openai.error_event
    stream_type: str = SSE_TYPE
    frame: Callable[[Event, Behaviour], bytes] = _sse_frame


def _openai(dialect: dialects.Dialect) -> Family:
    return Family(
        answer=openai.completion,
        events=lambda request, behaviour: dialect.chunks(openai.chunks(request, behaviour), behaviour),
        error=dialect.error,
        error_event=lambda message: ("", dump(dialect.error_in_stream(message))),
    )


_GEMINI = Family(answer=gemini.answer, events=gemini.events, error=gemini.error, error_event=gemini.error_event)
_BEDROCK = Family(
    answer=bedrock.answer,
    events=bedrock.events,
    error=bedrock.error,
    error_event=bedrock.error_event,
    stream_type=bedrock.STREAM_TYPE,
    frame=lambda event, _: bedrock.frame(*event),
)
_PATHS: dict[str, Family] = {
    "POST .*/embeddings": Family(answer=openai.embeddings),
    r"POST .*/models/[^/:]+:batchEmbedContents": Family(answer=gemini.embeddings, error=gemini.error),
    "POST .*/api/embed": Family(answer=ollama.embeddings, error=ollama.error),
    "GET .*/models": Family(answer=openai.models),
    "POST .*/responses": Family(answer=responses.response, events=responses.events, error_event=responses.error_event),
    "POST .*/messages/count_tokens": Family(answer=anthropic.token_count, error=anthropic.error),
    "POST /v1/messages": Family(
        answer=anthropic.message,
        events=anthropic.events,
        error=anthropic.error,
        error_event=anthropic.error_event,
    ),
    r"POST .*/models/(?P<model>[^/:]+):(?:generateContent|(?P<stream>streamGenerateContent))": _GEMINI,
    "POST .*/model/(?P<model>[^/]+)/converse(?P<stream>-stream)?": _BEDROCK,
    "POST .*/api/chat": Family(
        answer=ollama.answer,
        events=ollama.events,
        error=ollama.error,
        error_event=ollama.error_event,
        stream_type="application/x-ndjson",
        frame=_line,
    ),
    "POST .*/v2/chat": Family(
        answer=cohere.answer,
        events=cohere.events,
        error=cohere.error,
        error_event=cohere.error_event,
        stream_type="application/stream+json",
        frame=_line,
    ),
}
"""Method and path of each; OpenAI's own and its dialects are told apart by a part of the path."""


def family_of(method: str, path: str, request: Json) -> tuple[Family | None, Json]:
    """Return the protocol of a path, if there is one, and the request with what the path says of it."""
    path = path.partition("?")[0]
    if (method, path.rpartition("/")[2]) == ("POST", "completions"):
        return _openai(dialects.of_path(path)), request
    for pattern, family in _PATHS.items():
        if found := re.fullmatch(pattern, f"{method} {path}"):
            named = found.groupdict()
            if "model" in named:
                request = {**request, "model": named["model"], "stream": named["stream"] is not None}
            return family, request
    return None, request
