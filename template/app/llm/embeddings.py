"""Embeddings as base64, which OpenAI's SDKs always ask for, and few providers send."""

import base64
import struct
from typing import Any

BASE64_PROVIDERS = ("openai", "azure")
"""Providers that are asked for base64 themselves. The others are asked for numbers, which are encoded here."""


def encode_as_base64(body: dict[str, Any]) -> bool:
    """Encode the vectors of OpenAI's embeddings object in place: 32-bit floats, little-endian, as OpenAI does.

    Returns:
        Whether every vector was a list of numbers, or base64 already.
    """
    try:
        for row in body["data"]:
            vector = row["embedding"]
            if not isinstance(vector, str | list):
                return False
            if isinstance(vector, list):
                row["embedding"] = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (KeyError, OverflowError, TypeError, struct.error):
        return False
    return True
