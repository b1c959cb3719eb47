"""Amazon Bedrock's Converse API: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html.

The model stands in the path. A stream is Amazon's binary one: each message has its length, headers, a payload and two
checksums (https://smithy.io/2.0/aws/amazon-eventstream.html).
"""

import json
import struct
from binascii import crc32
from collections.abc import Iterator
from typing import Any

from tests.stub.behaviour import PROMPT_TOKENS, Behaviour, Event, Json, dump, halves

STREAM_TYPE = "application/vnd.amazon.eventstream"
_STRING = 7
"""The type of a header's value."""
_ERRORS = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}


def error(_: int, message: str, *, code: str | None = None, param: str | None = None) -> Json:
    """Return an error's body; its type stands in the header `x-amzn-errortype`."""
    return {"message": ": ".join(filter(None, [code, param, message]))}


def error_headers(status: int) -> dict[str, str]:
    return {"x-amzn-errortype": _ERRORS.get(status, "InternalServerException")}


def error_event(message: str) -> Event:
    return "modelStreamErrorException", dump({"message": message, "originalStatusCode": 500})


def answer(_: Json, behaviour: Behaviour) -> Json:
    """Answer `POST /model/{model}/converse`."""
    content: list[Json] = [
        {"toolUse": {"toolUseId": f"tooluse_{index}", "name": name, "input": json.loads(arguments)}}
        for index, (name, arguments) in enumerate(behaviour.tool_calls)
    ] or [{"text": behaviour.said}]
    if behaviour.thought:
        content.insert(0, {"reasoningContent": {"reasoningText": {"text": behaviour.thought, "signature": "c2ln"}}})
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": _reason(behaviour),
        "usage": _usage(behaviour),
        "metrics": {"latencyMs": 5},
    }


def events(_: Json, behaviour: Behaviour) -> Iterator[Event]:
    """Answer `POST /model/{model}/converse-stream`."""

    def event(kind: str, **payload: Any) -> Event:
        return kind, dump(payload | {"p": "abcdefgh"})

    yield event("messageStart", role="assistant")
    for index, (start, deltas) in enumerate(_blocks(behaviour)):
        if start:
            yield event("contentBlockStart", contentBlockIndex=index, start=start)
        for delta in deltas:
            yield event("contentBlockDelta", contentBlockIndex=index, delta=delta)
        yield event("contentBlockStop", contentBlockIndex=index)
    if behaviour.finished != 0:
        yield event("messageStop", stopReason=_reason(behaviour))
    if behaviour.done:
        yield event("metadata", usage=_usage(behaviour), metrics={"latencyMs": 5})


def frame(name: str, payload: str) -> bytes:
    """Return an event as a message of Amazon's event stream; an exception is told by its name."""
    kind = "exception" if name.endswith("Exception") else "event"
    values = {f":{kind}-type": name, ":content-type": "application/json", ":message-type": kind}
    headers = b"".join(_header(name, value) for name, value in values.items())
    body = payload.encode()
    prelude = struct.pack("!II", 16 + len(headers) + len(body), len(headers))
    message = prelude + struct.pack("!I", crc32(prelude)) + headers + body
    return message + struct.pack("!I", crc32(message))


def _header(name: str, value: str) -> bytes:
    return struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", _STRING, len(value)) + value.encode()


def _blocks(behaviour: Behaviour) -> Iterator[tuple[Json, Iterator[Json]]]:
    """Yield each content block as it begins, and its deltas. Only tools have a beginning."""
    if behaviour.thought:
        texts = [{"text": behaviour.thought}, {"signature": "c2ln"}]
        yield {}, ({"reasoningContent": text} for text in texts)
    if not behaviour.tool_calls:
        yield {}, ({"text": word} for word in behaviour.words())
    for index, (name, arguments) in enumerate(behaviour.tool_calls):
        halved = halves(arguments)
        yield {"toolUse": {"toolUseId": f"tooluse_{index}", "name": name}}, ({"toolUse": {"input": h}} for h in halved)


def _reason(behaviour: Behaviour) -> str:
    return "tool_use" if behaviour.tool_calls else "end_turn"


def _usage(behaviour: Behaviour) -> Json:
    tokens = behaviour.completion_tokens
    return {"inputTokens": PROMPT_TOKENS, "outputTokens": tokens, "totalTokens": PROMPT_TOKENS + tokens}
