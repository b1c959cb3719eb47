"""Exchange: one request and its response, known to every layer of the application from the outermost in."""

import asyncio
import re
from random import getrandbits

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from app.access.limits import Held
from app.dialects.message_events import is_anthropics
from app.errors import AppError
from app.http.connection import Connection
from app.llm.call import CallTotals
from app.llm.timers import Timer

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


def new_request_id() -> str:
    """Return an id that no other request has. It is no secret, and a secret would take 1 % of a whole request."""
    return f"{getrandbits(128):032x}"


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
        reads_body: whether the endpoint reads the body itself, so that nobody else receives it before.
        sends_events: whether the response is a stream of server-sent events.
        aborted_by: the error that the server ends this request with.
        sent_all: whether the whole response has been sent.
        client_left: whether the client has left before it had the complete response.
        held: called when the request has ended: what it, or its answer, holds until then.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self.headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if REQUEST_ID.fullmatch(given) else new_request_id()
        self._id_names = (b"x-request-id", b"request-id") if is_anthropics(scope) else (b"x-request-id",)
        self.caller: str | None = None
        self.totals = CallTotals()
        self.status = 0
        self.error: str | None = None
        self.reads_body = False
        self.sends_events = False
        self.aborted_by: AppError | None = None
        self.client_left = False
        self.held: Held = []
        self._connection: Connection | None = scope.pop("app.connection", None)
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._listener: asyncio.Task[None] | None = None
        self._wants_cancel = False
        self._is_receiving = False
        self._ahead: list[Message] = []
        self._arrived: asyncio.Event | None = None  # made by the first that waits for it: few do
        self._body_read = False
        self._received = 0
        self._max_body_bytes = max_body_bytes
        self.sent_all = False
        self._end: Message | None = None

    @property
    def declares_too_much(self) -> bool:
        """Whether the body is larger than it may be, by what its head says; that of a chunked one says nothing."""
        declared = self.headers.get(b"content-length", b"0")
        is_told = b"transfer-encoding" not in self.headers and declared.isdigit()
        return is_told and int(declared[:20]) > self._max_body_bytes

    def too_large(self) -> HTTPException:
        """Return the error for a body that is larger than it may be."""
        return HTTPException(413, f"The body is larger than {self._max_body_bytes} bytes (setting max_body_bytes).")

    async def receive(self) -> Message:
        """Receive, as ASGI says.

        Raises:
            HTTPException: 413, the body is larger than it may be; or what ServerProtocol says of it.
        """
        if not self._listener:
            self._is_receiving = True
            try:
                message = await self._next()
            finally:
                self._is_receiving = False
            if self._body_read and self._wants_cancel:
                self._listen()
            return message
        while not self._ahead:
            self._arrived = self._arrived or asyncio.Event()
            self._arrived.clear()
            await self._arrived.wait()
        if self._ahead[0]["type"] == "error":
            raise self._ahead[0]["error"]
        return self._ahead.pop(0) if self._ahead[0]["type"] == "http.request" else self._ahead[0]

    async def send(self, message: Message) -> None:
        """Send, as ASGI says, with the request id and security headers on every response."""
        if message.get("more_body") and self.aborted_by is None:
            await self._send(message)  # amid a body, nothing else is to be done
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            ids = [(name, self.request_id.encode()) for name in self._id_names]
            headers = [*message.get("headers", ()), *ids, *SECURITY_HEADERS]
            self.sends_events = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
            message["headers"] = headers
        elif self.sends_events and not message.get("more_body") and not message.get("body"):
            self._end = message
            return
        was_aborted = self.aborted_by is not None
        try:
            await self._send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.sent_all = True
                if self._connection and not await self._connection.until_sent():
                    self.client_left = True
        except asyncio.CancelledError:  # not by abort(): the server waits no longer for a client that does not read
            self.client_left = self.client_left or self.sent_all or was_aborted
            raise

    def write(self, body: bytes) -> bool:
        """Send a part of a body that has begun, if that can be done at once; return whether it could."""
        return self._connection is not None and self._connection.write(body)

    def silence(self) -> Timer:
        """Return a timer for this response: that of the connection, which is kept from one response to the next."""
        return self._connection.silence if self._connection else Timer(asyncio.get_running_loop())

    async def finish(self) -> None:
        """Send the end of an event stream, which was held back: what has made the stream may still raise an error."""
        if self._end:
            self.sends_events = False
            await self.send(self._end)

    def cancel_on_disconnect(self) -> None:
        """From now on, cancel the endpoint as soon as the client leaves."""
        self._wants_cancel = True
        if self._body_read:
            self._listen()
        elif not self.reads_body:  # else we listen when the endpoint has read it, which may say so only now
            asyncio.get_running_loop().call_soon(self._listen)

    def abort(self, error: AppError) -> None:
        """End this request with an error, whatever it is doing."""
        if self.aborted_by is None and not self.sent_all and self._task:
            self.aborted_by = error
            self._task.cancel()

    def close(self) -> None:
        """The request has ended."""
        self._wants_cancel = False
        if self._connection:
            self._connection.call_when_lost(None)
        if self._listener:
            self._listener.cancel()
            self._listener = None
        while self.held:  # emptied, since what is in it may refer to this exchange
            self.held.pop()()

    def _listen(self) -> None:
        is_early = self.reads_body and not self._body_read
        if not self._wants_cancel or self._listener or self._is_receiving or is_early:
            return
        if self._connection and self._body_read:
            self._connection.call_when_lost(self._on_lost)
        else:
            self._listener = asyncio.create_task(self._until_client_leaves())

    def _on_lost(self) -> None:
        self.client_left = self.client_left or not self.sent_all
        if self.client_left and self._task:
            self._task.cancel()

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.client_left = self.client_left or not self.sent_all
        elif message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._max_body_bytes:
                raise self.too_large()
            self._body_read = not message.get("more_body", False)
        return message

    async def _until_client_leaves(self) -> None:
        """Receive for the endpoint too: it may read the body later, or never."""
        kind = "http.request"
        while kind == "http.request":
            try:
                self._ahead.append(await self._next())
                kind = self._ahead[-1]["type"]
            except HTTPException as error:  # nobody waits for the rest of this body
                self._ahead.append({"type": (kind := "error"), "error": error})
            if self._arrived:
                self._arrived.set()
        if self.client_left and self._task:
            self._task.cancel()


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of a request, given its ASGI scope."""
    exchange: Exchange = scope["app.exchange"]
    return exchange
