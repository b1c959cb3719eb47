"""An answer of the stub as it came over a bare socket: every byte, every packet, and how it ended."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.stub import Behaviour, Stub

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
HELLO: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
PATIENCE = 0.1
"""Seconds to watch an answer that isn't going to end."""


@dataclass
class Raw:
    """An answer as it came over the socket: its head, the packets of its body, and how it ended."""

    status: int
    head: str
    packets: list[bytes]
    ending: str

    @property
    def body(self) -> bytes:
        return b"".join(self.packets)

    @property
    def events(self) -> list[str]:
        return [event.partition("data: ")[2] for event in self.body.decode().split("\n\n")[:-1]]


def ask(
    stub: Stub, behaviour: Behaviour, path: str = CHAT, *, stream: bool = False, patience: float = 10, **fields: Any
) -> Raw:
    """Send one request over a bare socket; read until the answer or the connection ends, or patience does."""
    stub.queue(behaviour)
    body = json.dumps(HELLO | {"stream": stream} | fields).encode()
    address = urlsplit(stub.url)
    deadline = time.monotonic() + patience
    received, ending = b"", "open"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body))
        with contextlib.suppress(TimeoutError):
            while ending == "open" and not _ended(received):
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    data = connection.recv(1_000_000)
                except ConnectionResetError:
                    ending = "reset"
                else:
                    received += data
                    ending = "open" if data else "closed"
    head, _, rest = received.partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head else 0
    packets = list(_chunks(rest)) if b"chunked" in head else [rest]
    if _ended(received) or (ending == "closed" and b"connection: close" in head):
        ending = "complete"
    return Raw(status, head.decode(), packets, ending)


def _ended(received: bytes) -> bool:
    """Tell whether a response says that it is complete."""
    head, _, body = received.partition(b"\r\n\r\n")
    if b"chunked" in head:
        return body.endswith(b"\r\n0\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return length is not None and len(body) == int(length[1])


def _chunks(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, rest = body.partition(b"\r\n")
        if chunk := rest[: int(size, 16)]:
            yield chunk
        body = rest[int(size, 16) + 2 :]
