"""How the stub answers one request, and how it goes wrong."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Event = tuple[str, str]
"""The name of a stream's event, '' for none, and its data."""

TEXT = "Hello from the stub. Grüße, 世界! 👋"
"""What the model says unless told otherwise: several words, with characters of two, three and four bytes."""

PROMPT_TOKENS = 7
MODEL_SUFFIX = "-2026-01-01"
"""A provider answers with the dated name of the model that it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the stub answers one request. The defaults answer well; the fields compose.

    An event is one server-sent event, or what stands for it in other streams. An answer that isn't streamed goes out in
    four parts, which count as its events.

    Attributes:
        text: what the model says. It streams word by word, so a text without blanks is one chunk of any size.
        repeat: how often the text is said, for a stream of any length.
        tool_calls: name and arguments (JSON text) of the tools that are called instead.
        thought: what the model thinks before it speaks, at the vendors that show it.
        blocked: what the vendor's filter blocks, Google's and Azure's: the prompt, or the answer, of which a stream
            has begun to speak.
        usage: report usage as OpenAI does; False is a server that never does.
        status: HTTP status; anything but 200 answers with the vendor's error. 0 closes before the first header.
        code: the error's code, where the status doesn't tell it.
        message: the error's text.
        headers: response headers; they win over the stub's own.
        body: sent as it stands, instead of any answer or error.
        refuses: request fields answered with 400 `unsupported_parameter`, as newer OpenAI models do.
        delay_headers: seconds before the headers.
        delay_first: seconds between the headers and the first event.
        pace: seconds between two packets.
        line_end: what ends the lines of a stream; all three are legal (WHATWG, server-sent events).
        prefix: how an event's data begins; the blank is optional.
        comments: comments before and inside each event.
        packet: bytes to a packet, which regroups the events; None sends each event as a packet of its own.
        gzip: compress the body, asked or not.
        transfer: how the end of the body is told: `chunked`, its `length` declared, or by `close`. None declares the
            length of a whole answer and sends a stream chunked.
        finished: how many choices of a stream get a finish reason; None is all.
        done: end a stream with `[DONE]`, or Anthropic's `message_stop`.
        bad_json_at: index of the event whose JSON breaks off; of the whole answer, if it isn't streamed.
        error_at: index of the event that is an error, after which no other comes; a 200 with an error for a body,
            if it isn't streamed.
        stall_after: go silent after so many events, with the connection open, until the client leaves.
        cut_after: close the connection after so many events.
        cut_at: close the connection right behind these bytes of the body, or after so many.
        reset: close it by TCP reset.
    """

    text: str = TEXT
    repeat: int = 1
    tool_calls: tuple[tuple[str, str], ...] = ()
    thought: str = ""
    blocked: Literal["prompt", "answer"] | None = None
    usage: bool = True
    status: int = 200
    code: str | None = None
    message: str = "The stub was told to fail."
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    refuses: frozenset[str] = frozenset()
    delay_headers: float = 0
    delay_first: float = 0
    pace: float = 0
    line_end: Literal["lf", "crlf", "cr"] = "lf"
    prefix: str = "data: "
    comments: bool = False
    packet: int | None = None
    gzip: bool = False
    transfer: Literal["chunked", "length", "close"] | None = None
    finished: int | None = None
    done: bool = True
    bad_json_at: int | None = None
    error_at: int | None = None
    stall_after: int | None = None
    cut_after: int | None = None
    cut_at: bytes | int | None = None
    reset: bool = False

    @property
    def cuts(self) -> bool:
        """Whether the stub closes the connection before the answer is whole."""
        return self.status == 0 or self.cut_after is not None or self.cut_at is not None

    @property
    def ends(self) -> bool:
        """Whether the answer comes to its end."""
        return not self.cuts and self.stall_after is None

    @property
    def said(self) -> str:
        """All that the model says."""
        return self.text * self.repeat

    def words(self) -> Iterator[str]:
        """Yield what the model says, a word at a time, each with the blanks before it."""
        for _ in range(self.repeat):
            yield from re.findall(r"\s*\S+", self.text)

    @property
    def completion_tokens(self) -> int:
        """Tokens that an answer costs: one for each word or call, and one for the end."""
        return 1 + (len(self.tool_calls) or len(self.text.split()) * self.repeat)


def dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def vectors(count: int, size: int) -> list[list[float]]:
    """Return embeddings: numbers divided by powers of two, so that 32 bits hold them exactly."""
    return [[(index + 1) / 2 ** (place % 32) for place in range(size)] for index in range(count)]
