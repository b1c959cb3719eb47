"""What clients send, in each dialect."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from harness.upstream import wish

PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
ENDS = {"chat": b"data: [DONE]", "responses": b'"response.completed"', "messages": b'"message_stop"'}
SYSTEM = "You are a careful assistant. Answer in plain English."
SENTENCE = "Say in a few plain words what a proxy is good for. "


@dataclass(frozen=True)
class Kind:
    """What one contender is asked, whatever the answer's form.

    Attributes:
        dialect: chat, responses or messages.
        model: its name in the contender's own table.
        headers: besides those of every request.
        fields: further fields of the body.
    """

    dialect: str
    model: str
    headers: Mapping[str, str]
    fields: Mapping[str, object]

    def whole(self, *, characters: int = 700) -> "Request":
        """A request for an answer that isn't streamed, with a prompt of so many characters."""
        return Request(self, characters=characters)

    def stream(self, *, chunks: int = 100, each: int = 1, pace: int = 0) -> "Request":
        """A request for a stream; see harness.upstream.wish."""
        return Request(self, chunks, each, pace)


@dataclass(frozen=True)
class Request:
    """A request that any number of clients can make; `chunks` is 0 for an answer that isn't streamed."""

    kind: Kind
    chunks: int = 0
    each: int = 1
    pace: int = 0
    characters: int = 700

    @property
    def texts(self) -> int:
        """How many events with text the answer must have: the last packet of a stream ends it, and has none."""
        return max(0, self.chunks - 1)

    @property
    def end(self) -> bytes:
        """What the last bytes of the answer must hold."""
        return ENDS[self.kind.dialect]

    def content(self, client: int) -> bytes:
        """The bytes that the client of this number sends."""
        wanted = wish(self.chunks, self.pace, self.each, client)
        prompt = (wanted + SENTENCE * (self.characters // len(SENTENCE) + 1))[: self.characters]
        body = dict(self.kind.fields) | {"model": self.kind.model} | ({"stream": True} if self.chunks else {})
        match self.kind.dialect:
            case "chat":
                body["messages"] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
            case "responses":
                body |= {"instructions": SYSTEM, "input": [{"role": "user", "content": prompt}]}
            case _:
                body |= {"max_tokens": 1024, "system": SYSTEM, "messages": [{"role": "user", "content": prompt}]}
        encoded = json.dumps(body).encode()
        head = {
            "Host": "127.0.0.1",
            "Accept": "application/json",
            "Content-Type": "application/json",
            "Content-Length": str(len(encoded)),
        } | dict(self.kind.headers)
        lines = [f"POST {PATHS[self.kind.dialect]} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        return "\r\n".join([*lines, "", ""]).encode() + encoded
