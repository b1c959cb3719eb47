"""JSON as providers write it."""

import re
from typing import Any

from pydantic_core import from_json

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
