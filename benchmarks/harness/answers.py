"""What the stub upstream says, in each dialect, as bytes that are rendered once.

A stream has `chunks` parts: each but the last is one event with text, and the last has all that ends the stream. What
opens a stream stands in its first part. Each event's text has the mark `~` once, and nothing else before the end has
it, so that a client can count the events that it has got, whatever the server under test has made of them.

The bytes follow OpenAI's and Anthropic's references: in chat completions `usage` is null on every chunk and comes in a
last one of its own where `stream_options.include_usage` asks for it.
"""

import json
from functools import cache

MARK = b"~"
CREATED = 1_760_000_000
WORDS = "the answer to a question is seldom as long as it looks".split(" ")
TEXT = " ".join(WORDS * 8)
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-request-id: req_0123456789abcdef0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n"
)
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
CHAT_USAGE = {
    "prompt_tokens": 210,
    "completion_tokens": 100,
    "total_tokens": 310,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
RESPONSES_USAGE = {
    "input_tokens": 210,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 100,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 310,
}
RESPONSE = {
    "id": "resp_0123456789abcdef0123456789abcdef",
    "object": "response",
    "created_at": CREATED,
    "model": "gpt-4o-2024-08-06",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
}
ITEM = {"id": "msg_0123456789abcdef0123456789abcdef", "type": "message", "role": "assistant"}
MESSAGE = {
    "id": "msg_0123456789abcdef01234567",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "stop_sequence": None,
}


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@cache
def whole(dialect: str) -> bytes:
    """An answer that is not streamed, with its head."""
    match dialect:
        case "chat":
            message: dict[str, object] = {"role": "assistant", "content": TEXT, "refusal": None, "annotations": []}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            body = chat("chat.completion", [choice]) | {"usage": CHAT_USAGE}
        case "responses":
            body = RESPONSE | {"status": "completed", "output": [item(TEXT)], "usage": RESPONSES_USAGE}
        case _:
            usage = {"input_tokens": 210, "output_tokens": 100}
            body = MESSAGE | {"content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn", "usage": usage}
    content = compact(body)
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        b"x-request-id: req_0123456789abcdef0123456789abcdef\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content)
    )


@cache
def packets(dialect: str, chunks: int, each: int, include_usage: bool) -> tuple[bytes, ...]:
    """The packets of a stream, of `each` events; every event is an HTTP chunk of its own, as providers send them."""
    texts = [WORDS[n % len(WORDS)] + "~ " for n in range(chunks - 1)]
    match dialect:
        case "chat":
            groups = chat_events(texts, include_usage)
        case "responses":
            groups = responses_events(texts)
        case _:
            groups = messages_events(texts)
    framed = [b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in group) for group in groups]
    framed[0] = HEAD + framed[0]
    framed[-1] += b"0\r\n\r\n"
    return tuple(b"".join(framed[n : n + each]) for n in range(0, chunks, each))


def event(value: object, name: str = "") -> bytes:
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: " + compact(value) + b"\n\n"


def chat(kind: str, choices: list[object]) -> dict[str, object]:
    return {
        "id": "chatcmpl-CPbQ2mVd8hTn3xYk1sWf6uRj0aGe",
        "object": kind,
        "created": CREATED,
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
        "choices": choices,
    }


def chat_events(texts: list[str], include_usage: bool) -> list[list[bytes]]:
    def chunk(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(chat("chat.completion.chunk", [choice]) | ({"usage": None} if include_usage else {}))

    groups = [[chunk({"content": text})] for text in texts]
    groups[0] = [chunk({"role": "assistant", "content": texts[0], "refusal": None})]
    usage = [event(chat("chat.completion.chunk", []) | {"usage": CHAT_USAGE})] if include_usage else []
    return [*groups, [chunk({}, "stop"), *usage, b"data: [DONE]\n\n"]]


def item(text: str | None) -> dict[str, object]:
    part: dict[str, object] = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return ITEM | {"status": "in_progress" if text is None else "completed", "content": [] if text is None else [part]}


def responses_events(texts: list[str]) -> list[list[bytes]]:
    number = 0

    def typed(kind: str, **fields: object) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number - 1} | fields, kind)

    where = {"item_id": ITEM["id"], "output_index": 0, "content_index": 0}
    begun = RESPONSE | {"status": "in_progress", "output": [], "usage": None}
    part: dict[str, object] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    opening = [
        typed("response.created", response=begun),
        typed("response.in_progress", response=begun),
        typed("response.output_item.added", output_index=0, item=item(None)),
        typed("response.content_part.added", **where, part=part),
    ]
    groups = [[typed("response.output_text.delta", **where, delta=text, logprobs=[])] for text in texts]
    text = "".join(texts)
    ended = RESPONSE | {"status": "completed", "output": [item(text)], "usage": RESPONSES_USAGE}
    ending = [
        typed("response.output_text.done", **where, text=text, logprobs=[]),
        typed("response.content_part.done", **where, part=part | {"text": text}),
        typed("response.output_item.done", output_index=0, item=item(text)),
        typed("response.completed", response=ended),
    ]
    return [[*opening, *groups[0]], *groups[1:], ending]


def messages_events(texts: list[str]) -> list[list[bytes]]:
    def typed(kind: str, **fields: object) -> bytes:
        return event({"type": kind} | fields, kind)

    begun: dict[str, object] = MESSAGE | {
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 210, "output_tokens": 1},
    }
    opening = [
        typed("message_start", message=begun),
        typed("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    ]
    groups = [[typed("content_block_delta", index=0, delta={"type": "text_delta", "text": text})] for text in texts]
    ending = [
        typed("content_block_stop", index=0),
        typed("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 100}),
        typed("message_stop"),
    ]
    return [[*opening, *groups[0]], *groups[1:], ending]
