"""The metrics on a loopback port of their own, for programs on this machine, which need no key there.

On the service's own port they do: whether a proxy stands in between can't be told from a request.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST

from app.network import is_loopback
from app.telemetry.metrics import Metrics

LONGEST_HEAD = 16 * 1024
ANSWER_WITHIN = 10.0
"""Seconds that one request and its response may take."""


@contextlib.asynccontextmanager
async def metrics_port(port: int, metrics: Metrics) -> AsyncIterator[None]:
    """Answer `GET /metrics` on a port of 127.0.0.1 while the context is entered.

    Several workers share the port, and whichever is asked has the sum of all.

    Args:
        port: the port.
        metrics: what is shown.

    Raises:
        OSError: the port is in use.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError):
            async with asyncio.timeout(ANSWER_WITHIN):
                status = _status(await reader.readuntil(b"\r\n\r\n"))
                body = metrics.render() if status == "200 OK" else b""
                head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE_LATEST}\r\nContent-Length: {len(body)}\r\n"
                writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
                await writer.drain()
        writer.close()

    shared = True if os.environ.get("PROMETHEUS_MULTIPROC_DIR") else None
    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=LONGEST_HEAD, reuse_port=shared)
    try:
        yield
    finally:
        server.close()


def _status(head: bytes) -> str:
    """Return the status for a request. Its `Host` must be this machine's, or a website could read the answer by DNS."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    hosts = [value.strip() for name, _, value in fields if name.lower() == "host"]
    if len(hosts) != 1 or not is_loopback(urlsplit(f"//{hosts[0]}").hostname or ""):
        return "403 Forbidden"
    return "200 OK" if first.startswith("GET /metrics ") else "404 Not Found"
