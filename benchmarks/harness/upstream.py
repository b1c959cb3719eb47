"""A stub of OpenAI's chat completions that costs little: everything it says is rendered once and written whole.

A streaming request says in its prompt what it wants: `chunks=100 pace=0` asks for 100 chunks at once, `pace=5` for five
a second. Every event is an HTTP chunk of its own, as providers send them. The bytes follow OpenAI's reference:
`usage` is null on every chunk and comes in a last one of its own where `stream_options.include_usage` asks for it.
"""

import argparse
import asyncio
import json
import re
from functools import cache
from typing import cast

import httptools
import uvloop

CREATED = 1_760_000_000
WORDS = " the answer to a question is seldom as long as it looks".split(" ")
WANTED = re.compile(rb"chunks=(\d+) pace=(\d+)")
INCLUDE_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
USAGE = {
    "prompt_tokens": 210,
    "completion_tokens": 100,
    "total_tokens": 310,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-request-id: req_0123456789abcdef0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n"
)


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def whole_answer() -> bytes:
    body = compact(
        {
            "id": "chatcmpl-CPbQ2mVd8hTn3xYk1sWf6uRj0aGe",
            "object": "chat.completion",
            "created": CREATED,
            "model": "gpt-4o-2024-08-06",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": " ".join(WORDS * 8).strip(),
                        "refusal": None,
                        "annotations": [],
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": USAGE,
            "service_tier": "default",
            "system_fingerprint": "fp_0123456789",
        }
    )
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        b"x-request-id: req_0123456789abcdef0123456789abcdef\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )


def frame(event: bytes) -> bytes:
    event = b"data: " + event + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


@cache
def stream_frames(chunks: int, include_usage: bool) -> tuple[bytes, ...]:
    """The answer's HTTP chunks: `chunks` events, and with the last of them whatever ends the stream."""

    def event(choices: list[object], usage: object = None) -> bytes:
        fields: dict[str, object] = {
            "id": "chatcmpl-CPbQ2mVd8hTn3xYk1sWf6uRj0aGe",
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": "gpt-4o-2024-08-06",
            "service_tier": "default",
            "system_fingerprint": "fp_0123456789",
            "choices": choices,
        }
        if include_usage:
            fields["usage"] = usage
        return frame(compact(fields))

    def choice(delta: dict[str, object], finish_reason: str | None = None) -> list[object]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

    frames = [event(choice({"role": "assistant", "content": "", "refusal": None}))]
    frames += [event(choice({"content": " " + WORDS[n % len(WORDS)]})) for n in range(chunks - 2)]
    frames.append(event(choice({}, "stop")))
    if include_usage:
        frames[-1] += event([], USAGE)
    frames[-1] += frame(b"[DONE]") + b"0\r\n\r\n"
    return tuple(frames)


WHOLE_ANSWER = whole_answer()


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.next: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.next:
            self.next.cancel()

    def on_message_begin(self) -> None:
        self.pieces: list[bytes] = []

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        body = b"".join(self.pieces)
        self.pieces.clear()
        # Not parsed as JSON: with bodies of megabytes that would cost more than the server under test.
        at = body.find(b'"stream"')
        if at < 0 or b"true" not in body[at : at + 14]:
            self.transport.write(WHOLE_ANSWER)
            return
        wanted = WANTED.search(body)
        chunks, pace = (int(wanted[1]), int(wanted[2])) if wanted else (100, 0)
        include_usage = INCLUDE_USAGE.search(body) is not None
        self.transport.write(STREAM_HEAD)
        self.write_next(stream_frames(chunks, include_usage), 0, 1 / pace if pace else 0.0, self.loop.time())

    def write_next(self, frames: tuple[bytes, ...], n: int, interval: float, due: float) -> None:
        """Write every event by itself, as the server of a model does that has just made it."""
        self.transport.write(frames[n])
        n += 1
        if n == len(frames):
            self.next = None
        elif interval:
            # Counted from the start and not from now, so that a late chunk delays no other.
            due += interval
            self.next = self.loop.call_at(due, self.write_next, frames, n, interval, due)
        else:
            self.next = self.loop.call_soon(self.write_next, frames, n, interval, due)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("port", type=int)
    uvloop.run(serve(arguments.parse_args().port))
