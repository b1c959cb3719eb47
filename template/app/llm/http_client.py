"""HttpClient: the HTTP/1.1 that calls of the direct path need, over connections that are kept.

aiohttp's client, made for all that HTTP has, took a quarter of a whole request's time. Less is needed here: one method,
a whole body to send, a response that is read packet by packet, and errors that tell whether a request had been sent.
"""

import asyncio
import base64
import re
import socket
import ssl
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit
from weakref import WeakSet

from aiohappyeyeballs import start_connection

from app.llm.http_connection import Connection, Origin
from app.llm.http_response import HttpError, Limit, Response, Unreached

RESOLVED_FOR = 10.0
"""Seconds that the addresses of a host are used before they are looked up again."""
NEXT_ADDRESS = 0.25
"""Seconds after which a host's next address is tried too, while the one before has not answered (RFC 8305)."""
VALUE = re.compile(r"[^\0\r\n]*")


AddressInfo = tuple[Any, Any, int, str, Any]
"""What `getaddrinfo` tells of an address."""


@lru_cache(maxsize=1024)  # more than there are models and paths; only with traces, each request's headers are its own
def _head(url: str, proxy: str | None, *headers: tuple[str, str]) -> tuple[Origin, bytes]:
    """Return where a URL leads, and a request's head, to which its length is still to be added."""
    origin, head = _place(url, proxy)
    for name, value in headers:
        if not VALUE.fullmatch(value):
            raise ValueError(f"the header {name} has a line break in it")
        head += f"{name}: {value}\r\n"
    return origin, head.encode()


def _place(url: str, proxy: str | None) -> tuple[Origin, str]:
    """Return where a URL leads, and the request line and headers that each request to it begins with."""
    parts = urlsplit(url)
    host = (parts.hostname or "").encode("idna").decode()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    name = f"[{host}]" if ":" in host else host
    named = name if parts.port is None else f"{name}:{port}"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (f"?{parts.query}" if parts.query else "")
    head = f"Host: {named}\r\nAccept: */*\r\nAccept-Encoding: identity\r\n"
    if proxy and parts.scheme == "http":
        path = f"http://{named}{path}"
        head += _authorization(proxy)
    return Origin(parts.scheme, host, port, proxy), f"POST {path} HTTP/1.1\r\n{head}"


def _authorization(proxy: str) -> str:
    user = urlsplit(proxy).netloc.rpartition("@")[0]
    return f"Proxy-Authorization: Basic {base64.b64encode(unquote(user).encode()).decode()}\r\n" if user else ""


class HttpClient:
    """Sends requests, and keeps connections.

    Args:
        connect: seconds that a connection may take to be made, with all that belongs to it.
    """

    def __init__(self, connect: float) -> None:
        self._connect_within = connect
        self._loop = asyncio.get_running_loop()
        self._connections: WeakSet[Connection] = WeakSet()
        self._idle: dict[Origin, dict[Connection, None]] = {}
        """Connections that may be used again, in the order in which they became idle; each takes itself out."""
        self._lookups: dict[tuple[str, int], tuple[float, asyncio.Task[list[AddressInfo]]]] = {}

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, proxy: str | None = None, limit: Limit | None = None
    ) -> Response:
        """Send a request, and return the response when its head is there. Whoever gets it closes it.

        Args:
            url: the address, http or https. No redirect from it is followed.
            headers: further headers.
            body: what to send.
            proxy: address of an HTTP proxy that leads there.
            limit: until when the response may take, to its end; `Response.watch` changes it.

        Raises:
            Unreached: nothing was sent.
            Disconnected: the connection was lost; the request may have been received.
            Unreadable: what came back is no response.
            ValueError: a header's value can't be sent.
            Exception: the limit's, when it has passed.
        """
        try:
            origin, head = _head(url, proxy, *headers.items())
        except UnicodeError:
            raise Unreached("UnicodeError") from None  # no name of a host
        connection = self._kept(origin) or await self._connect(origin, limit)
        return await connection.ask(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body), limit)

    async def close(self) -> None:
        """Close every connection that nobody reads from; one that becomes idle later is closed as ever."""
        for _, lookup in self._lookups.values():
            lookup.cancel()
        for connection in [each for each in self._connections if each.is_free]:
            connection.transport.abort()

    # Connections

    def _kept(self, origin: Origin) -> Connection | None:
        connections = self._idle.get(origin)
        while connections:
            connection, _ = connections.popitem()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connect(self, origin: Origin, limit: Limit | None) -> Connection:
        end = self._loop.time() + self._connect_within
        is_late = limit is not None and limit.deadline < end
        try:
            async with asyncio.timeout_at(limit.deadline if limit and is_late else end):
                return await self._open(origin)
        except (OSError, UnicodeError, HttpError) as error:  # TimeoutError is an OSError; a proxy's name may be none
            if limit and is_late and isinstance(error, TimeoutError):
                raise limit.expired() from None
            reason = str(error) if isinstance(error, Unreached) else type(error).__name__
        raise Unreached(reason)

    async def _open(self, origin: Origin) -> Connection:
        proxy = urlsplit(origin.proxy or "")
        port = proxy.port or {"http": 80, "https": 443}.get(proxy.scheme, origin.port)
        connection = await self._dial(proxy.hostname or origin.host, port, origin)
        try:
            if proxy.scheme == "https":
                connection = await self._encrypt(connection, proxy.hostname or "")
            if origin.scheme == "https":
                if origin.proxy:
                    await self._tunnel(connection, origin.proxy)
                connection = await self._encrypt(connection, origin.host)
        except BaseException:
            connection.transport.abort()
            raise
        connection.idle = self._idle.setdefault(origin, {})
        self._connections.add(connection)
        return connection

    async def _tunnel(self, connection: Connection, proxy: str) -> None:
        host, port = connection.origin.host, connection.origin.port
        to = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        head = f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{_authorization(proxy)}\r\n"
        if not 200 <= (await connection.ask(head.encode())).status < 300:
            raise Unreached("ProxyRefused")

    async def _encrypt(self, connection: Connection, host: str) -> Connection:
        if connection.transport.is_closing():  # on uvloop, start_tls would wait for ever
            raise Unreached("Disconnected")
        inner = Connection(connection.origin, connection)
        # Certificates name no host with a dot at its end.
        transport = await self._loop.start_tls(connection.transport, inner, _tls(), server_hostname=host.rstrip("."))
        inner.connection_made(cast(asyncio.Transport, transport))
        return inner

    async def _dial(self, host: str, port: int, origin: Origin) -> Connection:
        addresses = await self._resolve(host, port)
        # Both families at once: the first one that answers is used (RFC 8305).
        connected = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS, loop=self._loop)
        try:
            _, connection = await self._loop.create_connection(lambda: Connection(origin), sock=connected)
        except BaseException:
            connected.close()
            raise
        return connection

    async def _resolve(self, host: str, port: int) -> list[AddressInfo]:
        """Look up a host once for all who need it now, and for a while."""
        until, lookup = self._lookups.get((host, port), (0.0, None))
        if lookup is None or self._loop.time() > until or (lookup.done() and lookup.exception()):
            lookup = self._loop.create_task(self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            self._lookups[host, port] = (self._loop.time() + RESOLVED_FOR, lookup)
        return await asyncio.shield(lookup)


@cache
def _tls() -> ssl.SSLContext:
    """Made when it is first needed: it reads the certificates of all authorities."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
