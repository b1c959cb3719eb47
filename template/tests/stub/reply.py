"""What goes over the wire for one request: the body's parts, and the packets that they are sent in."""

import zlib
from collections.abc import Iterable, Iterator

from tests.stub import openai
from tests.stub.behaviour import Behaviour, Json, dump, halves
from tests.stub.families import Family, family_of

JSON_TYPE = "application/json"


def reply(method: str, path: str, request: Json, behaviour: Behaviour) -> tuple[int, str, Iterable[bytes]]:
    """Answer a request with a status, a content type, and the parts of a body."""
    family, request = family_of(method, path, request)
    error = openai.error if family is None else family.error

    def whole(status: int, body: bytes) -> tuple[int, str, list[bytes]]:
        return status, JSON_TYPE, _split(body, behaviour)

    if refused := sorted(behaviour.refuses & request.keys()):
        text = f"'{refused[0]}' is not supported with this model."
        return whole(400, _encoded(error(400, text, code="unsupported_parameter", param=refused[0])))
    if behaviour.body is not None:
        return whole(behaviour.status, behaviour.body)
    if behaviour.status != 200:
        return whole(behaviour.status, _encoded(error(behaviour.status, behaviour.message, code=behaviour.code)))
    if family is None:
        return whole(404, _encoded(error(404, f"There is no {method} {path}.")))
    if _streams(path, request) and family.events:
        return 200, family.stream_type, _frames(family, request, behaviour)
    if behaviour.error_at is not None:
        return whole(200, _encoded(error(500, behaviour.message, code=behaviour.code)))
    text = dump(family.answer(request, behaviour))
    return whole(200, (text if behaviour.bad_json_at is None else halves(text)[0]).encode())


def _streams(path: str, request: Json) -> bool:
    """Return whether a request asks for a stream. Ollama's own API streams unless told not to."""
    return bool(request.get("stream", path.endswith("/api/chat")))


def interrupted(parts: Iterable[bytes], behaviour: Behaviour) -> Iterator[bytes]:
    """Let through what is sent before the answer stalls or is cut."""
    limits = [limit for limit in (behaviour.stall_after, behaviour.cut_after) if limit is not None]
    sent = 0
    for index, part in enumerate(parts):
        if limits and index >= min(limits):
            return
        if (end := _cut(part, behaviour.cut_at, sent)) is not None:
            yield part[:end]
            return
        sent += len(part)
        yield part


def _cut(part: bytes, cut_at: bytes | int | None, sent: int) -> int | None:
    """Return how many bytes of a part are sent before the connection closes; None if all of them are."""
    if isinstance(cut_at, bytes):
        return part.index(cut_at) + len(cut_at) if cut_at in part else None
    return cut_at - sent if cut_at is not None and cut_at < sent + len(part) else None


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


def _encoded(body: object) -> bytes:
    return dump(body).encode()


def _split(body: bytes, behaviour: Behaviour) -> list[bytes]:
    """Return a whole answer's four parts; only one where it is cut at certain bytes, which could lie across two."""
    if behaviour.cut_at is not None:
        return [body]
    quarter = len(body) // 4
    return [body[:quarter], body[quarter : 2 * quarter], body[2 * quarter : 3 * quarter], body[3 * quarter :]]


def _frames(family: Family, request: Json, behaviour: Behaviour) -> Iterator[bytes]:
    assert family.events is not None
    for index, (name, text) in enumerate(family.events(request, behaviour)):
        if index == behaviour.error_at:
            yield family.frame(family.error_event(behaviour.message), behaviour)
            return
        yield family.frame((name, halves(text)[0] if index == behaviour.bad_json_at else text), behaviour)


def _regrouped(parts: Iterable[bytes], size: int) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        rest += part
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest:
        yield rest
