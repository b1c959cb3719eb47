"""Bare HTTP calls: what comes back is seen as it comes, and a call can be left at any moment."""

import http.client
import json
import socket
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Self
from urllib.parse import urlsplit

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


class Call:
    """A request on a connection of its own, sent at once; a context manager that leaves at its end.

    Args:
        url: base URL of the server.
        key: the caller's key.
        path: where to; a chat completion says hello unless `messages` are given.
        patience: seconds to wait for anything at all.
        window: bytes that the operating system takes in before they are read; None leaves that to it.
        **fields: the JSON body.
    """

    def __init__(
        self, url: str, key: str, path: str = CHAT, *, patience: float = 120, window: int | None = None, **fields: Any
    ) -> None:
        if path == CHAT:
            fields = {"messages": HELLO} | fields
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(address.netloc, timeout=patience)
        if window is not None:
            self._connection.sock = socket.socket()
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            self._connection.sock.connect((address.hostname, address.port))
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps(fields), headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the connection at once, whatever is still to come."""
        self._connection.close()
        if "_response" in self.__dict__:
            self._response.close()

    @cached_property
    def _response(self) -> http.client.HTTPResponse:
        return self._connection.getresponse()

    @property
    def status(self) -> int:
        """The status; waits for it."""
        return self._response.status

    @property
    def headers(self) -> http.client.HTTPMessage:
        return self._response.headers

    @cached_property
    def body(self) -> bytes:
        """All that comes, up to its end."""
        return self._response.read()

    @property
    def json(self) -> Any:
        """The body of an answer that isn't streamed."""
        return json.loads(self.body)

    @cached_property
    def events(self) -> Iterator[str]:
        """A stream's events and comments, each as soon as it is there, without the blank line that ends it."""
        return self._events()

    def _events(self) -> Iterator[str]:
        lines: list[str] = []
        for line in self._response:
            if line.startswith(b":") and not lines:
                yield line.decode().removesuffix("\n")
            elif line != b"\n":
                lines.append(line.decode())
            elif lines:
                yield "".join(lines).removesuffix("\n")
                lines = []
        assert not lines, "the stream ends within an event"


def chunks_of(events: list[str]) -> list[Any]:
    """Return what the chunks of a whole stream say, without the comments and the `[DONE]` that ends it."""
    *chunks, last = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
    assert last == "[DONE]"
    assert "[DONE]" not in chunks
    return [json.loads(chunk) for chunk in chunks]


def text_of(events: list[str]) -> str:
    """Return the text of a whole stream's first choice."""
    chunks = chunks_of(events)
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
