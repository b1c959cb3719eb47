"""Bodies: the memory that large ones take together, and parsing without work out of proportion to their size."""

import asyncio
import re
import sys
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from app.access.limit_storage import to_its_end
from app.errors import InvalidJSON, InvalidRequest, Overloaded, unfit
from app.http.exchange import Exchange, exchange_of
from app.models import Wire

SMALL, SLIGHT = 4 * 1024, 1_000
"""Bytes and values up to which a body is parsed as it is. With more of both, it counts in `max_body_memory`."""
LARGE = 64 * 1024
"""Bytes from which a body counts in `max_body_memory` while it is received, whatever is in it."""
MEDIUM, FEW = 1024 * 1024, 5_000
"""Bytes and values from which it is counted, and parsed in a thread, one at a time: the event loop gets its turns."""
PUNCTUATION = (b":", b"[", b"{", b",")
"""At least one of them for each value: the first for a name in an object, the last between two values."""
MOST_MEMBERS = 50_000
"""Objects, lists, and names in objects, of a large body. Each takes up to a kilobyte, and 10 microseconds."""
BYTES_OF_A_MEMBER = 8
"""A body up to `LARGE` may have one of them for each so many bytes, and `FEW` in any case."""
MOST_VALUES = 300_000
"""Values of a large body. OpenAI takes as many tokens to embed in one request."""
MOST_DIGITS = 300
"""Digits of a number in a large body. Reading them takes time by the square of their number; floats end at 309."""
OVERFLOW = re.compile(rb"[eE]\+?0*[1-9][0-9]{2}")
"""A number from 1e100 on, such as 1e999, which is infinite and would be one error each."""

W = TypeVar("W", bound=Wire)


class BodyMemory:
    """The memory of all large bodies, each from its first 64 kB to the end of its request.

    Args:
        most: bytes that they may take together, and one caller's half of that. One alone is always let in.

    Attributes:
        parsing: held by the request whose body is being parsed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Exchange, int] = {}
        self.parsing = asyncio.Lock()

    def hold(self, exchange: Exchange, size: int) -> None:
        """Hold so many bytes for a request, in all, until it ends.

        Raises:
            Overloaded: others, or the same caller's others, leave too little.
        """
        others = sum(self._held.values()) - self._held.get(exchange, 0)
        own = sum(held for other, held in self._held.items() if other.caller == exchange.caller and other != exchange)
        if (others and others + size > self._most) or (own and 2 * (own + size) > self._most):
            raise Overloaded("This server is busy with other large bodies. Try again.", retry_after=1)
        if exchange not in self._held:
            exchange.held.append(partial(self._held.pop, exchange))
        self._held[exchange] = size


async def read_json(request: Request, kind: type[W], memory: BodyMemory) -> W:
    """Return a request's body as `kind`.

    Raises:
        InvalidJSON: it is not JSON, or has a NaN or an infinity in it.
        InvalidRequest: it does not fit `kind`, or has too many values in it.
        Overloaded: as in `BodyMemory.hold`.
    """
    parts: list[bytes] = []  # not request.body(), which keeps the bytes until the request ends
    exchange = exchange_of(request.scope)
    size = 0
    is_whole = False
    while not is_whole:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        size += len(parts[-1])  # not the declared length: nobody takes memory by announcing much
        if size > LARGE:
            memory.hold(exchange, 2 * size)  # as JSON and parsed; then parsed and as JSON for a provider
    marks = 0
    if SMALL < size <= MEDIUM:
        parts[:] = [b"".join(parts)]
        marks = sum(map(parts[0].count, PUNCTUATION[1:]))
    if size <= LARGE and marks <= SLIGHT:
        return _fit(_values(b"".join(parts)), kind)
    if size <= MEDIUM and marks <= FEW:
        parsed, taken = _parse_large(parts, kind, check=False)
    else:
        async with memory.parsing:
            # Whoever is cancelled waits too: nothing can stop a thread.
            parsed, taken = await to_its_end(asyncio.to_thread(_parse_large, parts, kind, check=True))
    memory.hold(exchange, size + taken)
    return parsed


def _parse_large(parts: list[bytes], kind: type[W], *, check: bool) -> tuple[W, int]:
    """Return a body as `kind`, and the bytes that its values take."""
    body = b"".join(parts)
    parts.clear()
    if check and len(body) > LARGE:
        _check(body)
    values = _values(body)
    if check and len(body) <= LARGE:  # what is not JSON is refused as such, and so few bytes may be built before
        _check(body)
    del body
    return _fit(values, kind), _size(values)


def _values(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        raise InvalidJSON("The body is not valid JSON.") from None


def _fit(values: Any, kind: type[W]) -> W:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise unfit(error) from None


def _check(body: bytes) -> None:
    """Count a JSON text's values before they are built, by its punctuation outside of strings.

    Only functions written in C touch the text. If it is not JSON, it may be miscounted, but only behind the place where
    the parser stops.
    """
    if b"\\" in body:
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    most = MOST_MEMBERS if len(body) > LARGE else max(FEW, len(body) // BYTES_OF_A_MEMBER)
    strings = body.split(b'"', 2 * MOST_VALUES)
    outside = b"".join(strings[::2])
    if sum(map(outside.count, PUNCTUATION[:3])) > most:
        raise InvalidRequest(f"The body has more than {most} objects, lists and names in it.")
    if outside.count(b",") >= MOST_VALUES or len(strings) > 2 * MOST_VALUES:
        raise InvalidRequest(f"The body has more than {MOST_VALUES} values in it.")
    numbers = outside.translate(None, b" \t\r\n:[]{}").split(b",")
    if len(max(numbers, key=len)) > MOST_DIGITS or OVERFLOW.search(outside):
        raise InvalidJSON("The body has a number in it that is too long or too large.")


def _size(value: Any) -> int:
    """Return about how many bytes a parsed value takes, and its copy for the provider, which shares its texts.

    A text takes up to four for each character.
    """
    if isinstance(value, dict):
        return 2 * (256 + sys.getsizeof(value)) + sum(map(_size, value)) + sum(map(_size, value.values()))
    if isinstance(value, list):
        return 2 * (256 + sys.getsizeof(value)) + sum(map(_size, value))
    return sys.getsizeof(value)
