"""What a client sends back that only this service can read: ids that carry items, and sealed reasoning.

AI SDK sends `item_reference` for a message or reasoning that it got, unless `store` is false. An item's id is told
before its text is known. So one more item at a response's end carries the others in its own id: reasoning without a
text, which AI SDK keeps and refers to as well.
"""

import base64
from typing import Any

import msgspec
from pydantic_core import to_json

from app.dialects.chunks import SEAL, opened

PREFIX = "rs_"
MOST_CARRIED = 100_000
"""Bytes of the items that one id carries."""
REFERRING = b"ai-sdk"
"""What the User-Agent of such a client has in it."""
CARRIED = ("type", "id", "role", "call_id", "name", "namespace", "arguments", "input", "encrypted_content")

_decode = msgspec.json.Decoder(list[dict[str, str]]).decode


def carrier(output: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the item that carries a response's others; None if there are none, or too many to be carried."""
    carried = []
    for item in output:
        kept = {name: item[name] for name in CARRIED if isinstance(item.get(name), str)}
        if item["type"] == "message":
            kept["content"] = "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])
        carried.append(kept)
    packed = to_json(carried)
    if not carried or len(packed) > MOST_CARRIED:
        return None
    return {"type": "reasoning", "id": PREFIX + SEAL + base64.urlsafe_b64encode(packed).decode(), "summary": []}


def resolved(given: list[dict[str, Any]], most: int) -> tuple[list[dict[str, Any]], int]:
    """Return an input with the items that its references mean, and how many values came from ids.

    Args:
        given: the items of a request. What carries others is left out.
        most: how many values all ids together may have.
    """
    carried: dict[Any, dict[str, Any]] = {}
    rest, values = [], 0
    for item in given:
        if not isinstance(told := item.get("id"), str):
            rest.append(item)
            continue
        found, more = opened(told.removeprefix(PREFIX), _decode, most - values)
        values += more
        if found is None:
            rest.append(item)
        else:
            carried |= {kept.pop("id", None): kept for kept in found}
    if not carried:
        return rest, values
    refers = "item_reference"
    return [carried.pop(str(i.get("id")), i) if i.get("type") == refers else i for i in rest], values


def without_seals(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items or messages of a request without reasoning that was sealed here: a provider would refuse it."""
    kept = []
    for entry in entries:
        content = entry.get("content")
        if _is_sealed(entry):
            continue
        if isinstance(content, list) and any(map(_is_sealed, content)):
            if content := [block for block in content if not _is_sealed(block)]:
                kept.append({**entry, "content": content})
            continue
        kept.append(entry)
    return kept


def _is_sealed(part: Any) -> bool:
    seal = (part.get("signature") or part.get("encrypted_content")) if isinstance(part, dict) else None
    return isinstance(seal, str) and seal.startswith(SEAL)
