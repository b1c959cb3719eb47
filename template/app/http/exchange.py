"""Exchange: one request and its response, known to every layer of the application from the outermost in."""

import asyncio
import re
import secrets

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from app.errors import AppError
from app.llm.call import CallTotals

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


class Exchange:
    """A request's id, what is logged about it, and what happens when its client leaves or the server shuts down.

    Args:
        scope: the request's ASGI scope.
        receive: ASGI's; it brings the body, and tells when the client leaves.
        send: ASGI's; it takes the response.
        max_body_bytes: largest body that is received, in bytes.

    Attributes:
        headers: the request's headers as they arrived, by name in lower case; of several with one name, the first.
        request_id: the client's `X-Request-ID` if it is well-formed, else a new one.
        caller: name of the caller, once it is known.
        totals: the sum of the request's calls of models.
        status: the response's status; 0 until it has started.
        error: code of the error that was sent.
        sends_events: whether the response is a stream of server-sent events.
        aborted_by: the error that the server ends this request with.
        sent_all: whether the whole response has been sent.
        client_left: whether the client has left before the response was complete.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self.headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        self.caller: str | None = None
        self.totals = CallTotals()
        self.status = 0
        self.error: str | None = None
        self.sends_events = False
        self.aborted_by: AppError | None = None
        self.client_left = False
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._listener: asyncio.Task[None] | None = None
        self._wants_cancel = False
        self._has_body = b"transfer-encoding" in self.headers or self.headers.get(b"content-length", b"0") != b"0"
        self._body_read = False
        self._received = 0
        self._max_body_bytes = max_body_bytes
        self.sent_all = False
        self._end: Message | None = None

    @property
    def declares_too_much(self) -> bool:
        """Whether the body is larger than it may be, by what its head says."""
        declared = self.headers.get(b"content-length", b"0")
        return declared.isdigit() and int(declared[:20]) > self._max_body_bytes

    def too_large(self) -> HTTPException:
        """Return the error for a body that is larger than it may be."""
        return HTTPException(413, f"The body is larger than {self._max_body_bytes} bytes (setting max_body_bytes).")

    async def receive(self) -> Message:
        """Receive, as ASGI says. Once we listen for the client's leaving, only that can still be received.

        Raises:
            HTTPException: 413, the body is larger than it may be.
        """
        if self._listener:
            if not self._body_read:
                self._body_read = True
                return {"type": "http.request"}  # there is no body
            await asyncio.shield(self._listener)
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.client_left = self.client_left or not self.sent_all
        elif message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._max_body_bytes:
                raise self.too_large()
            if not message.get("more_body", False):
                self._body_read = True
                self._listen()
        return message

    async def send(self, message: Message) -> None:
        """Send, as ASGI says, with the request id and security headers on every response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ())]
            self.sends_events = any(k == b"content-type" and v.startswith(b"text/event-stream") for k, v in headers)
            message["headers"] = [
                *headers,
                (b"x-request-id", self.request_id.encode()),
                *SECURITY_HEADERS,
            ]
        elif self.sends_events and not message.get("more_body") and not message.get("body"):
            self._end = message
            return
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.sent_all = True

    async def finish(self) -> None:
        """Send the end of an event stream, which was held back: what has made the stream may still raise an error."""
        if self._end:
            await self._send(self._end)
            self.sent_all = True

    def cancel_on_disconnect(self, *, body_is_wanted: bool = True) -> None:
        """From now on, cancel the endpoint as soon as the client leaves.

        Args:
            body_is_wanted: whether the endpoint may still read the body. Then this begins when it has.
        """
        self._wants_cancel = True
        self._has_body = self._has_body and body_is_wanted
        self._listen()

    def abort(self, error: AppError) -> None:
        """End this request with an error, whatever it is doing."""
        if self.aborted_by is None and not self.sent_all and self._task:
            self.aborted_by = error
            self._task.cancel()

    def close(self) -> None:
        """Stop listening for the client's leaving."""
        if self._listener:
            self._listener.cancel()
            self._listener = None

    def _listen(self) -> None:
        if self._wants_cancel and not self._listener and (self._body_read or not self._has_body):
            self._listener = asyncio.create_task(self._until_client_leaves())

    async def _until_client_leaves(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.sent_all and self._task:
            self.client_left = True
            self._task.cancel()


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of a request, given its ASGI scope."""
    exchange: Exchange = scope["app.exchange"]
    return exchange
