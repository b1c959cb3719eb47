"""What `ServerProtocol` changes in uvicorn's cycle of one request and its response."""

from asyncio import Event
from typing import Any, Literal

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


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


class CloseDelimited(RequestResponseCycle):
    """uvicorn's request and response for HTTP/1.0, which has no chunks: a response of unknown length is closed."""

    unframed = False

    async def send(self, message: Any) -> None:
        """Send, as ASGI says."""
        if message["type"] == "http.response.start":
            self.unframed = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            if self.unframed:
                self.chunked_encoding = False
        elif self.unframed:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
