"""Events as they come: whatever a provider puts into a stream, OpenAI's SDK reads the whole answer of it, once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import row, running

SSE = {"content-type": "text/event-stream"}


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
    """Return the data of a chunk."""
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return json.dumps(
        {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices} | more
    )


def event(data: str, before: str = "") -> str:
    return f"{before}data: {data}\n\n"


WORDS = ["Hello", " from", " the", " stub.", " Grüße,", " 世界!", " 👋"]
HEAD = "".join(event(chunk({"content": word})) for word in WORDS[:3])
TAIL = "".join(event(chunk({"content": word})) for word in WORDS[3:])
END = event(chunk({}, "stop"))
DONE = event("[DONE]")

HARMLESS = {
    "a chunk without choices": event('{"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}'),
    "a chunk whose choices are null": event(chunk({}, choices=None)),
    "a chunk whose choices are empty": event(chunk({}, choices=[], prompt_filter_results=[])),
    "a usage object alone": event('{"usage": {"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15}}'),
    "a ping without data": "event: ping\n\n",
    "a ping with data": event('{"type": "ping"}', "event: ping\n"),
    "a ping with empty data": event("", "event: ping\n"),
    "an object that is no chunk": event('{"hello": "world"}'),
    "null": event("null"),
    "a number": event("7"),
    "a text": event('"still here"'),
    "a list": event("[]"),
    "an id alone": "id: 7\n\n",
    "a retry alone": "retry: 3000\n\n",
    "an id and a retry": "id: 7\nretry: 3000\n\n",
    "a comment": ": keep-alive\n\n",
    "a comment of OpenRouter's": ": OPENROUTER PROCESSING\n\n",
    "blank lines": "\n\n\n",
    "a delta of null": event(chunk({}, choices=[{"index": 0, "delta": None, "finish_reason": None}])),
    "a choice without a delta": event(chunk({}, choices=[{"index": 0, "content_filter_offsets": {"start": 1}}])),
    "a chunk of content null": event(chunk({"content": None})),
    "a field of ours": event(chunk({"content": ""}, error=None, usage=None)),
}


@dataclass
class Server:
    """A server with its provider, and OpenAI's client."""

    stub: Stub
    client: openai.OpenAI

    def read(self, body: bytes, headers: dict[str, str] | None = None, **behaviour: Any) -> tuple[str, list[str]]:
        """Return the text and the finish reasons that the SDK reads of a provider's stream."""
        self.stub.default = Behaviour(body=body, headers=SSE | (headers or {}), **behaviour)
        text, reasons = "", list[str]()
        stream = self.client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        for part in stream:
            for choice in part.choices:
                text += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
        return text, reasons


@pytest.fixture(scope="module")
def server(key: str) -> Iterator[Server]:
    with (
        Stub() as stub,
        running(key, {"gpt-4o": row(stub)}) as ask,
        openai.OpenAI(base_url=f"{ask.url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield Server(stub, client)


@pytest.mark.parametrize("packet", [None, 1], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("place", ["first", "amid", "before [DONE]", "last"])
@pytest.mark.parametrize("name", HARMLESS)
def test_an_event_without_a_part_of_the_answer_does_no_harm(
    server: Server, name: str, place: str, packet: int | None
) -> None:
    extra = HARMLESS[name]
    body = {
        "first": extra + HEAD + TAIL + END + DONE,
        "amid": HEAD + extra + TAIL + END + DONE,
        "before [DONE]": HEAD + TAIL + END + extra + DONE,
        "last": HEAD + TAIL + END + DONE + extra,
    }[place]
    assert server.read(body.encode(), packet=packet) == (TEXT, ["stop"])


BODIES = {
    "a byte order mark": ("\ufeff" + HEAD + TAIL + END + DONE).encode(),
    "a byte order mark before a comment": ("\ufeff: hi\n\n" + HEAD + TAIL + END + DONE).encode(),
    "no blank line at the end": (HEAD + TAIL + END + "data: [DONE]").encode(),
    "CRLF": (HEAD + TAIL + END + DONE).replace("\n", "\r\n").encode(),
    "names and ids of events": (HEAD + TAIL + END + DONE).replace("data:", "event: message\nid: 1\ndata:").encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_stream_may_be_written_otherwise(server: Server, name: str) -> None:
    assert server.read(BODIES[name]) == (TEXT, ["stop"])


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/octet-stream"])
def test_a_stream_may_be_labelled_otherwise(server: Server, content_type: str) -> None:
    body = (HEAD + TAIL + END + DONE).encode()
    assert server.read(body, {"content-type": content_type}) == (TEXT, ["stop"])


def test_a_stream_may_be_created(server: Server) -> None:
    assert server.read((HEAD + TAIL + END + DONE).encode(), status=201) == (TEXT, ["stop"])


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("packet", [None, 7])
def test_a_whole_answer_may_come_in_place_of_a_stream(server: Server, content_type: str, packet: int | None) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
    body = json.dumps({"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})
    assert server.read(body.encode(), {"content-type": content_type}, packet=packet) == (TEXT, ["stop"])


@pytest.mark.parametrize(("half", "read"), [(r"\ud83d", "\ufffd"), (r"\udc4b", "\ufffd"), (r"\ud83d\udc4b", "👋")])
def test_half_a_surrogate_pair_does_no_harm(server: Server, half: str, read: str) -> None:
    body = HEAD + event(chunk({"content": "@"}).replace("@", half)) + END + DONE
    text, reasons = server.read(body.encode())
    assert reasons == ["stop"]
    assert text.removeprefix("Hello from the") in (read, json.loads(f'"{half}"'))


BROKEN = {
    "a choice that is null": event(chunk({}, choices=[None])),
    "choices that are no list": event(chunk({}, choices={"index": 0})),
    "a choice that is a text": event(chunk({}, choices=["Hello"])),
    "NaN": event(chunk({}, created="@").replace('"@"', "NaN")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_chunk_that_no_client_can_read_is_an_error(server: Server, name: str) -> None:
    with pytest.raises(openai.APIError) as error:
        server.read((HEAD + BROKEN[name] + TAIL + END + DONE).encode())
    assert error.value.code == "provider_error"


@pytest.mark.parametrize("name", ["null", "a usage object alone", "a chunk without choices", "a ping with data"])
def test_an_answer_of_nothing_is_an_error(server: Server, name: str) -> None:
    with pytest.raises(openai.APIError) as error:
        server.read(HARMLESS[name].encode())
    assert error.value.code == "provider_error"
