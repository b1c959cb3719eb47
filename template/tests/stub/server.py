"""The stub's server: bare asyncio streams, so that it can do to a connection what no HTTP server would."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import responses
from typing import Any, Self

from tests.stub.behaviour import Behaviour
from tests.stub.reply import JSON_TYPE, interrupted, packets, reply

_LONGEST_HEAD = 1_000_000
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Received:
    """A request that the stub received, and what became of it.

    Attributes:
        method: HTTP method.
        path: path, with its query.
        headers: by name in lower case.
        body: the JSON body, parsed; an empty object if there was none.
        raw: its bytes.
        behaviour: how the stub answers.
        received_at: when it had arrived, by `time.monotonic()`.
        sent: bytes handed to the socket so far, headers included.
        answered: whether the answer was handed to the socket as a whole.
        closed: set once the connection has closed, from whichever side.
        closed_at: when that was, by `time.monotonic()`.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    behaviour: Behaviour
    raw: bytes = b""
    received_at: float = field(default_factory=time.monotonic)
    sent: int = 0
    answered: bool = False
    closed: threading.Event = field(default_factory=threading.Event)
    closed_at: float | None = None


class Stub:
    """A provider on a loopback port, in a thread of its own, that speaks the protocols of tests/stub/families.py.

    A context manager: it listens inside the `with` block.

    Args:
        default: how to answer the requests that find the queue empty; or what decides that, given a request's body.
        port: port to listen on; 0 picks a free one.

    Attributes:
        default: as above; may be set at any time.
        requests: every request so far, in order of arrival.
        open_connections: how many connections are open, idle ones included.
        url: where it listens. OpenAI's API is under `/v1`; LiteLLM adds Anthropic's path by itself.
    """

    url: str

    def __init__(self, default: Behaviour | Callable[[Any], Behaviour] | None = None, *, port: int = 0) -> None:
        self.default = default or Behaviour()
        self.requests: list[Received] = []
        self.open_connections = 0
        self._port = port
        self._queue: deque[Behaviour] = deque()
        self._changed = threading.Condition()
        self._stop = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests whose answer isn't complete and whose connection is still open."""
        return sum(not request.answered and not request.closed.is_set() for request in self.requests)

    def queue(self, *behaviours: Behaviour) -> None:
        """Answer the next requests with these, one each."""
        self._queue.extend(behaviours)

    def forget(self) -> None:
        """Take back what is queued."""
        self._queue.clear()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 20) -> bool:
        """Wait until something that the stub sees is so.

        Returns:
            Whether it came true within so many seconds.
        """
        with self._changed:
            return self._changed.wait_for(condition, seconds)

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", self._port))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve(listener)], name="stub")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._connected, sock=listener, limit=_LONGEST_HEAD)
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received: list[Received] = []
        # asyncio does this only for sockets that name their protocol, and without it each answer may take 40 ms more.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._changed:
            self.open_connections += 1
            self._changed.notify_all()
        try:
            # The stub stopped, or the client left: neither is an error of a test.
            with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
                await self._converse(reader, writer, received)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            with self._changed:
                self.open_connections -= 1
                for request in received:
                    request.closed_at = time.monotonic()
                    request.closed.set()
                self._changed.notify_all()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: list[Received]
    ) -> None:
        head = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        answer: asyncio.Task[bool] | None = None
        try:
            while answer is None or await answer:
                request = await self._receive(await head, reader)
                received.append(request)
                # To wait for the next request while this one is answered shows at once that the client left.
                head = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
                answer = asyncio.create_task(self._answer(request, writer))
                await asyncio.wait([head, answer], return_when=asyncio.FIRST_COMPLETED)
                if head.done():
                    head.result()
        finally:
            tasks = [head] if answer is None else [head, answer]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, head: bytes, reader: asyncio.StreamReader) -> Received:
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        fields = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = json.loads(body or b"{}")
        default = self.default if isinstance(self.default, Behaviour) else self.default(asked)
        request = Received(method, path, headers, asked, self._queue.popleft() if self._queue else default, body)
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        return request

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """Answer; return whether the connection can take another request."""
        behaviour = request.behaviour
        await asyncio.sleep(behaviour.delay_headers)
        if behaviour.status != 0:
            await self._send(request, writer)
        if behaviour.stall_after is not None:
            await asyncio.Event().wait()
        if not behaviour.cuts:
            with self._changed:
                request.answered = True
                self._changed.notify_all()
            if behaviour.transfer != "close":
                return True
        if behaviour.reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.close()
        await writer.wait_closed()
        return False

    async def _send(self, request: Received, writer: asyncio.StreamWriter) -> None:
        behaviour = request.behaviour
        status, content_type, parts = reply(request.method, request.path, request.body, behaviour)
        headers = {"content-type": content_type, "x-request-id": f"req_stub_{len(self.requests)}"}
        transfer = behaviour.transfer or ("length" if content_type == JSON_TYPE else "chunked")
        chunked = transfer == "chunked"
        if chunked:
            headers["transfer-encoding"] = "chunked"
        elif transfer == "length":
            parts = list(parts)
            headers["content-length"] = str(sum(map(len, packets(parts, behaviour))))
        else:
            headers["connection"] = "close"
        if behaviour.gzip:
            headers["content-encoding"] = "gzip"
        lines = [f"{name}: {value}" for name, value in (headers | dict(behaviour.headers)).items()]
        head = "\r\n".join([f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}", *lines, "", ""])
        await _write(request, writer, head.encode("latin-1"))
        await asyncio.sleep(behaviour.delay_first)
        for packet in packets(interrupted(parts, behaviour), behaviour):
            # An empty chunk would end the body.
            if packet:
                await _write(request, writer, b"%x\r\n%b\r\n" % (len(packet), packet) if chunked else packet)
                await asyncio.sleep(behaviour.pace)
        if chunked and behaviour.ends:
            await _write(request, writer, b"0\r\n\r\n")


async def _write(request: Received, writer: asyncio.StreamWriter, packet: bytes) -> None:
    writer.write(packet)
    request.sent += len(packet)
    await writer.drain()
