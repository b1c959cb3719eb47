"""What `ServerProtocol` changes in uvicorn's cycle of one request and its response."""

import asyncio
import re
from asyncio import Event
from functools import lru_cache
from typing import Any, Literal

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

NO_BODY = frozenset({204, 304})
"""Statuses of responses without a body, nor a length of one."""
NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name: a token (RFC 9110, section 5.6.2)."""
CODING = b"transfer-encoding: "
TEXT = bytes({*range(256)} - {*range(32), 127} | {9})
"""What a header's value may have in it (RFC 9110, section 5.5)."""


class BrokenBody(Event):
    """Replaces the event that receiving waits for: whoever receives gets the error."""

    def __init__(self, error: HTTPException) -> None:
        super().__init__()
        self.error = error

    def clear(self) -> None:
        """Raise the error, where the event that this one replaced was waited for."""
        raise self.error

    async def wait(self) -> Literal[True]:
        """Raise the error."""
        raise self.error


class Cycle(RequestResponseCycle):
    """uvicorn's request, and a response of our own: its head is written with what the application sends right after it.

    That saves a packet and a system call for each response, and a search through each header.
    """

    head: bytes = b""
    """What is not written yet."""
    ends_with_connection = False
    """HTTP/1.0 has no chunks: a body of unknown length ends with the connection (RFC 9112, section 6.3)."""

    async def send(self, message: Any) -> None:
        """Send, as ASGI says.

        Raises:
            RuntimeError: ASGI or HTTP does not allow this message.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self._begin(message["status"], [*self.default_headers, *message.get("headers", ())])
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self._go_on(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            raise RuntimeError(f"Unexpected ASGI message {kind!r}.")

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [_checked_name(name) + value for name, value in headers]
        head = STATUS_LINE[status] + b"\r\n".join([*lines, b""])
        if CODING in head:  # how a body is framed is said here alone
            lines = [line for line in lines if not line.startswith(CODING)]
            head = STATUS_LINE[status] + b"\r\n".join([*lines, b""])
        if head.translate(None, TEXT) != b"\r\n" * (len(lines) + 1):
            raise RuntimeError("A header's value has a control character in it.")
        length = _value(head, b"content-length")
        if length is not None:
            self.expected_content_length = int(length)
        elif self.scope["method"] != "HEAD" and status not in NO_BODY:
            if self.scope["http_version"] == "1.0":
                self.ends_with_connection, self.keep_alive = True, False
            else:
                self.chunked_encoding = True
                head += CODING + b"chunked\r\n"
        if b"close" in (_value(head, b"connection") or b"").lower():
            self.keep_alive = False
        elif not self.keep_alive:
            head += b"connection: close\r\n"
        self.head = head + b"\r\n"
        asyncio.get_running_loop().call_soon(self._write_head)

    def _write_head(self) -> None:
        head, self.head = self.head, b""
        if head and not self.transport.is_closing():
            self.transport.write(head)

    def _go_on(self, body: bytes, *, is_last: bool) -> None:
        if self.scope["method"] == "HEAD":
            body, self.expected_content_length = b"", 0
        elif self.chunked_encoding:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n" * is_last
        elif not self.ends_with_connection:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("The response's body is longer than its Content-Length.")
        head, self.head = self.head, b""
        if head and body:
            self.transport.writelines([head, body])
        elif head or body:  # asyncio's own transport would try to send an empty part of lines again and again
            self.transport.write(head or body)
        if is_last:
            if self.expected_content_length:
                raise RuntimeError("The response's body is shorter than its Content-Length.")
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


@lru_cache(1024)
def _checked_name(name: bytes) -> bytes:
    """Return a header's name as a line begins with it."""
    if not NAME.fullmatch(name):
        raise RuntimeError("A header's name has a character in it that none may have.")
    return name.lower() + b": "


def _value(head: bytes, name: bytes) -> bytes | None:
    """Return a header's value; None if the head has no such header."""
    start = head.find(b"\r\n%b: " % name)
    return None if start < 0 else head[start + len(name) + 4 :].partition(b"\r\n")[0]
