"""JSONResponse: what an endpoint of ours answers in JSON."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic_core import to_json
from starlette.background import BackgroundTask
from starlette.responses import Response

JSON = (b"content-type", b"application/json")


class JSONResponse(Response):
    """A response with status 200. It is made for every whole answer, so it does no more than that takes.

    Args:
        content: the body, before it is JSON; bytes are JSON.
        headers: further headers, without a length and a type.
    """

    def __init__(self, content: Any, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.body = content if isinstance(content, bytes) else to_json(content)
        self.background: BackgroundTask | None = None
        self.raw_headers = [JSON, (b"content-length", b"%d" % len(self.body)), *raw(headers)]


def raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI has them."""
    return [(_raw_name(name), value.encode("latin-1")) for name, value in headers.items()]


@cache  # there are few
def _raw_name(name: str) -> bytes:
    return name.lower().encode("latin-1")
