"""About how many tokens a request is, before its provider has counted them."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic_core import to_json

from app.models import TEXT_FIELDS

IMAGE_TOKENS = {"openai/": 1445, "azure/": 1445, "anthropic/": 1600, "gemini/": 1032, "vertex_ai/gemini": 1032}
"""Tokens that a vendor counts for one large image: tiles of 512 pixels, pixels / 750, or four tiles of 768 pixels."""
MOST_IMAGE_TOKENS = 1600
"""The same, for every other vendor."""
LOW_DETAIL_TOKENS = 85
"""Tokens of an image with `detail: low` (OpenAI)."""
IMAGES = ("image_url", "input_image", "image")
OF_TOOLS = re.compile("tool|thinking|reasoning|result|call")
"""In the types of parts that are neither text nor files: other dialects have them in a message's content."""
SOUND_BYTES_A_TOKEN = 4000
"""Base64 of 16 kHz mono WAV, of which a second is ten tokens (OpenAI)."""


def estimate(fields: dict[str, Any], upstream: str = "") -> int:
    """Return about how many tokens a request's fields are.

    Text is four bytes to a token. An image counts as the most that its vendor counts for one image, and sound as ten
    tokens a second, however many bytes they have. Files and films count as one image more than their bytes, since those
    may be an address. Sources: the vendors' pages on vision and audio.

    Args:
        fields: the request's fields.
        upstream: LiteLLM's name of the model, `provider/model`, which tells the vendor.
    """
    size, tokens = len(to_json(fields)), 0
    given = fields.get("input")
    if isinstance(given, list) and given and not isinstance(given[0], str):  # tokens, or lists of tokens
        size -= len(to_json(given))
        tokens += sum(len(item) if isinstance(item, list) else 1 for item in given)
    for part in _parts(fields):
        kind = part.get("type")
        if kind in IMAGES:
            image = part.get("source") if kind == "image" else part.get("image_url")
            detail = image.get("detail") if isinstance(image, dict) else part.get("detail")
            tokens += LOW_DETAIL_TOKENS if detail == "low" else _image_tokens(upstream)
            size -= len(to_json(image))
        elif kind == "input_audio":
            sound = len(to_json(part.get("input_audio")))
            tokens += sound // SOUND_BYTES_A_TOKEN + 1
            size -= sound
        elif not any(name in part for name in TEXT_FIELDS) and not OF_TOOLS.search(str(kind)):
            tokens += MOST_IMAGE_TOKENS
    return max(0, size) // 4 + tokens


def most_tokens(fields: dict[str, Any], upstream: str, unset: int) -> tuple[int, int]:
    """Return about how many tokens a request has, and how many its answer may have at the most.

    Args:
        fields: the request's fields.
        upstream: as in `estimate`.
        unset: the bound of an answer, if the request bounds it by nothing.
    """
    bound = max(fields.get("max_completion_tokens") or 0, fields.get("max_tokens") or 0) or unset
    return estimate(fields, upstream), bound * (fields.get("n") or 1) if "messages" in fields else 0


def images_in(fields: dict[str, Any]) -> int:
    """Return how many images a request has."""
    return sum(part.get("type") in IMAGES for part in _parts(fields))


def _parts(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parts of a request's messages, and of the results of tools in them, which another dialect has there."""
    for message in fields.get("messages") or ():
        yield from _parts_of(message)


def _parts_of(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for content in (message.get("content"), message.get("output")):
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield part
                if part.get("type") == "tool_result":
                    yield from _parts_of(part)
                elif part.get("type") == "document" and isinstance(source := part.get("source"), dict):
                    yield from _parts_of(source)


def _image_tokens(upstream: str) -> int:
    return next((most for vendor, most in IMAGE_TOKENS.items() if upstream.startswith(vendor)), MOST_IMAGE_TOKENS)
