"""JSON as providers write it."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import DecodeError
from pydantic_core import from_json

T = TypeVar("T")

LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""Half of a surrogate pair: what a provider writes that cuts a text between the two halves of a character."""


def read_json(text: bytes) -> Any:
    """Return what a JSON text says. Lone surrogates, which are no characters, become U+FFFD.

    Raises:
        ValueError: it is not JSON; NaN and infinity are not.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        mended = LONE_SURROGATE.sub(rb"\\ufffd", text)
        if mended == text:
            raise
        return from_json(mended, allow_inf_nan=False)


def read_plain(texts: list[bytes], decode: Callable[[bytes], list[T]]) -> list[T]:
    """Return what each of some texts says, or nothing if one of them is not one line of JSON that `decode` takes.

    Args:
        texts: the data of events.
        decode: msgspec's `Decoder.decode_lines`. Decoding all fields into dicts would cost four times as much.
    """
    lines = b"\n".join(texts)
    try:
        found = decode(lines)
        lines.decode()  # the decoder does not check the encoding of fields that it does not read
    except (DecodeError, RecursionError, UnicodeDecodeError):
        return []
    return found if len(found) == len(texts) == lines.count(b"\n") + 1 else []
