"""What goes over the wire for one request: the body's parts, and the packets that they are sent in."""

import zlib
from collections.abc import Callable, Iterable, Iterator

from tests.stub import anthropic, openai
from tests.stub.behaviour import Behaviour, Event, Json, dump, halves

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"
MESSAGES = "/v1/messages"

JSON_TYPE = "application/json"
STREAM_TYPE = "text/event-stream; charset=utf-8"

_ANSWERS: dict[tuple[str, str], Callable[[Json, Behaviour], Json]] = {
    ("POST", CHAT): openai.completion,
    ("POST", EMBEDDINGS): openai.embeddings,
    ("GET", MODELS): openai.models,
    ("POST", MESSAGES): anthropic.message,
}
_LINE_ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def reply(method: str, path: str, request: Json, behaviour: Behaviour) -> tuple[int, str, Iterable[bytes]]:
    """Answer a request with a status, a content type, and the parts of a body."""
    vendor = anthropic if path == MESSAGES else openai

    def whole(status: int, body: bytes) -> tuple[int, str, list[bytes]]:
        return status, JSON_TYPE, _split(body, behaviour)

    if refused := sorted(behaviour.refuses & request.keys()):
        text = f"'{refused[0]}' is not supported with this model."
        return whole(400, _encoded(vendor.error(400, text, code="unsupported_parameter", param=refused[0])))
    if behaviour.body is not None:
        return whole(behaviour.status, behaviour.body)
    if behaviour.status != 200:
        return whole(behaviour.status, _encoded(vendor.error(behaviour.status, behaviour.message, code=behaviour.code)))
    if (method, path) not in _ANSWERS:
        return whole(404, _encoded(vendor.error(404, f"There is no {method} {path}.")))
    if request.get("stream"):
        return 200, STREAM_TYPE, _frames(_events(path, request, behaviour), behaviour)
    if behaviour.error_at is not None:
        return whole(200, _encoded(vendor.error(500, behaviour.message, code=behaviour.code)))
    text = dump(_ANSWERS[method, path](request, behaviour))
    return whole(200, (text if behaviour.bad_json_at is None else halves(text)[0]).encode())


def interrupted(parts: Iterable[bytes], behaviour: Behaviour) -> Iterator[bytes]:
    """Let through what is sent before the answer stalls or is cut."""
    limits = [limit for limit in (behaviour.stall_after, behaviour.cut_after) if limit is not None]
    for index, part in enumerate(parts):
        if limits and index >= min(limits):
            return
        if behaviour.cut_at is not None and behaviour.cut_at in part:
            yield part[: part.index(behaviour.cut_at) + len(behaviour.cut_at)]
            return
        yield part


def packets(parts: Iterable[bytes], behaviour: Behaviour) -> Iterator[bytes]:
    """Regroup and compress a body's parts into what is sent at once."""
    if behaviour.packet is not None:
        parts = _regrouped(parts, behaviour.packet)
    if not behaviour.gzip:
        yield from parts
        return
    gzip = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    for part in parts:
        yield gzip.compress(part) + gzip.flush(zlib.Z_SYNC_FLUSH)
    yield gzip.flush()


def _encoded(body: Json) -> bytes:
    return dump(body).encode()


def _split(body: bytes, behaviour: Behaviour) -> list[bytes]:
    """Return a whole answer's four parts; only one where it is cut at certain bytes, which could lie across two."""
    if behaviour.cut_at is not None:
        return [body]
    quarter = len(body) // 4
    return [body[:quarter], body[quarter : 2 * quarter], body[2 * quarter : 3 * quarter], body[3 * quarter :]]


def _events(path: str, request: Json, behaviour: Behaviour) -> Iterator[Event]:
    answer = anthropic.events if path == MESSAGES else openai.chunks
    error = anthropic.error_event if path == MESSAGES else openai.error_event
    for index, (name, text) in enumerate(answer(request, behaviour)):
        if index == behaviour.error_at:
            yield error(behaviour.message)
            return
        yield name, halves(text)[0] if index == behaviour.bad_json_at else text


def _frames(events: Iterable[Event], behaviour: Behaviour) -> Iterator[bytes]:
    end = _LINE_ENDS[behaviour.line_end]
    for name, text in events:
        lines = [": on its own", "", ": inside the event"] if behaviour.comments else []
        if name:
            lines.append(f"event: {name}")
        lines += [behaviour.prefix + text, "", ""]
        yield end.join(lines).encode()


def _regrouped(parts: Iterable[bytes], size: int) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        rest += part
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest:
        yield rest
