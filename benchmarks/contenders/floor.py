"""The floor: an ASGI app that passes bytes to the upstream and back and checks nothing.

It is as little as an HTTP proxy on this stack (uvicorn, httptools, uvloop, one pooled aiohttp session) can be and
still be one: bodies are streamed in both directions, and each side is read as fast as the other accepts.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PASSED_ON = frozenset({b"authorization", b"content-type", b"content-length"})


class Proxy:
    """One aiohttp session, made and closed with the server's lifespan."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.session: aiohttp.ClientSession

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.relay(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.lifespan(receive, send)

    async def lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.session.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def relay(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"] if name in PASSED_ON}
        first = await receive()
        body: bytes | AsyncIterator[bytes] = first["body"]
        if first.get("more_body"):
            body = request_body(first, receive)
        async with self.session.request(
            scope["method"], self.upstream + scope["path"], data=body, headers=headers
        ) as answer:
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status,
                    "headers": [
                        (name.lower(), value)
                        for name, value in answer.raw_headers
                        if name.lower() in (b"content-type", b"content-length")
                    ],
                }
            )
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})


async def request_body(message: Message, receive: Receive) -> AsyncIterator[bytes]:
    yield message["body"]
    while message.get("more_body"):
        message = await receive()
        yield message.get("body", b"")


if __name__ == "__main__":
    uvicorn.run(
        Proxy(os.environ["UPSTREAM"]),
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
