"""What the server's edge hands to a transport for a response."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from app.http.cycles import Cycle

LOG = logging.getLogger(__name__)
pytestmark = pytest.mark.anyio
Headers = list[tuple[bytes, bytes]]


class Transport:
    """A transport that, like asyncio's own on Linux, would keep an empty part of `writelines` for ever."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write = self.written.append
        self.writelines = self.written.extend

    def is_closing(self) -> bool:
        return False


async def response(status: int, headers: Headers, *bodies: bytes, method: str = "GET", version: str = "1.1") -> Any:
    transport: Any = Transport()
    flow: Any = SimpleNamespace(write_paused=False)
    scope: Any = {"method": method, "http_version": version}
    cycle = Cycle(scope, transport, flow, LOG, LOG, False, [], asyncio.Event(), False, True, lambda: None)
    await cycle.send({"type": "http.response.start", "status": status, "headers": headers})
    for body in bodies:
        await cycle.send({"type": "http.response.body", "body": body, "more_body": True})
    transport.close = lambda: None
    await cycle.send({"type": "http.response.body"})
    return transport.written


@pytest.mark.parametrize(
    ("status", "headers", "bodies", "method"),
    [
        (204, [], [], "GET"),
        (307, [(b"content-length", b"0")], [], "GET"),
        (200, [(b"content-length", b"2")], [b"ab"], "HEAD"),
        (200, [], [b"", b"ab", b""], "GET"),
    ],
)
async def test_no_empty_part_is_written(status: int, headers: Headers, bodies: list[bytes], method: str) -> None:
    written = await response(status, headers, *bodies, method=method)
    assert written
    assert all(written)


@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b"gzip", b"identity"])
@pytest.mark.parametrize(
    ("headers", "version", "framed"),
    [
        ([(b"content-length", b"2")], "1.1", b"content-length: 2\r\n\r\nab"),
        ([], "1.1", b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
        ([], "1.0", b"connection: close\r\n\r\nab"),
    ],
)
async def test_what_the_application_says_of_its_transfer_does_not_change_how_a_body_is_framed(
    coding: bytes, headers: Headers, version: str, framed: bytes
) -> None:
    written = b"".join(await response(200, [(b"Transfer-Encoding", coding), *headers], b"ab", version=version))
    assert written == b"HTTP/1.1 200 OK\r\n" + framed
