"""The stub upstream does what it is told, since all other tests rest on it."""

import contextlib
import json
import re
import subprocess
import sys
import time
import zlib
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.stub import PROMPT_TOKENS, TEXT, Behaviour, Stub

from stub.raw import CHAT, HELLO, MESSAGES, PATIENCE, ask
from workspace import ROOT


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": True}], ids=str)
@pytest.mark.parametrize("calls", [(), (("weather", '{"city": "Zürich"}'), ("time", "{}"))], ids=["text", "tools"])
def test_whole_answers_and_chunks_are_what_openai_sends(stub: Stub, fields: Any, calls: Any) -> None:
    behaviour = Behaviour(tool_calls=calls)
    whole = ChatCompletion.model_validate_json(ask(stub, behaviour, **fields).body, strict=True)
    *events, done = ask(stub, behaviour, stream=True, **fields).events
    chunks = [ChatCompletionChunk.model_validate_json(event, strict=True) for event in events]

    assert done == "[DONE]"
    for choice in whole.choices:
        deltas = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.delta.content or "" for c in deltas) == (choice.message.content or "")
        assert deltas[-1].finish_reason == choice.finish_reason == ("tool_calls" if calls else "stop")
        sent = [part for c in deltas for part in c.delta.tool_calls or []]
        for index, (name, arguments) in enumerate(calls):
            assert choice.message.tool_calls
            assert choice.message.tool_calls[index].model_dump()["function"] == {"name": name, "arguments": arguments}
            functions = [part.function for part in sent if part.index == index and part.function]
            assert functions[0].name == name
            assert "".join(function.arguments or "" for function in functions) == arguments


def test_usage_is_streamed_only_when_asked_for_and_without_choices(stub: Stub) -> None:
    asked: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = [json.loads(event) for event in ask(stub, Behaviour(), **asked).events[:-1]]
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert all(chunk["usage"] is None for chunk in chunks)
    for raw in (ask(stub, Behaviour(), stream=True), ask(stub, Behaviour(usage=False), **asked)):
        assert b'"usage"' not in raw.body
        assert raw.ending == "complete"


def test_openais_own_client_is_served(stub: Stub) -> None:
    with openai.OpenAI(base_url=f"{stub.url}/v1", api_key="sk-stub") as client:
        assert client.chat.completions.create(**HELLO).choices[0].message.content == TEXT
        assert client.models.list().data[0].id == "gpt-4o"
        rows = client.embeddings.create(model="text-embedding", input=["a", "b"], dimensions=3).data
    assert [row.embedding for row in rows] == [[1, 0.5, 0.25], [2, 1, 0.5]]
    assert stub.requests[0].headers["authorization"] == "Bearer sk-stub"
    assert stub.requests[0].body == HELLO
    assert [request.path for request in stub.requests] == [CHAT, "/v1/models", "/v1/embeddings"]


@pytest.mark.parametrize(("name", "end"), [("lf", b"\n"), ("crlf", b"\r\n"), ("cr", b"\r")])
def test_lines_end_as_told(stub: Stub, name: Any, end: bytes) -> None:
    body = ask(stub, Behaviour(line_end=name), stream=True).body
    assert body.endswith(b"data: [DONE]" + end + end)
    assert set(re.findall(rb"\r\n|\r|\n", body)) == {end}


def test_comments_stand_before_and_inside_events(stub: Stub) -> None:
    body = ask(stub, Behaviour(comments=True), stream=True).body
    assert body.startswith(b": on its own\n\n: inside the event\ndata: {")


def test_events_are_regrouped_into_packets(stub: Stub) -> None:
    each = ask(stub, Behaviour(), stream=True)
    assert all(packet.startswith(b"data: ") and packet.endswith(b"\n\n") for packet in each.packets)
    for size, count in ((23, -(-len(each.body) // 23)), (1_000_000, 1)):
        regrouped = ask(stub, Behaviour(packet=size), stream=True)
        assert len(regrouped.packets) == count
        assert regrouped.body == each.body


@pytest.mark.parametrize("stream", [False, True])
def test_gzip_compresses_what_would_have_been_sent(stub: Stub, stream: bool) -> None:
    plain, packed = (ask(stub, Behaviour(gzip=gzip), stream=stream) for gzip in (False, True))
    assert "content-encoding: gzip" in packed.head
    assert zlib.decompress(packed.body, wbits=31) == plain.body
    assert packed.ending == "complete"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("transfer", ["chunked", "length", "close"])
def test_the_end_of_a_body_is_told_in_each_of_https_ways(stub: Stub, transfer: Any, stream: bool) -> None:
    raw = ask(stub, Behaviour(transfer=transfer), stream=stream)
    assert raw.ending == "complete"
    assert ("transfer-encoding: chunked" in raw.head) == (transfer == "chunked")
    assert ("content-length" in raw.head) == (transfer == "length")
    assert raw.body == ask(stub, Behaviour(), stream=stream).body


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_cut_closes_the_connection_where_it_was_told_to(stub: Stub, path: str) -> None:
    whole = ask(stub, Behaviour(), path, stream=True)
    cases = [
        (Behaviour(status=0), b"", "closed"),
        (Behaviour(status=0, reset=True), b"", "reset"),
        (Behaviour(cut_after=0), b"", "closed"),
        (Behaviour(cut_after=3), b"".join(whole.packets[:3]), "closed"),
        (Behaviour(cut_after=3, reset=True, pace=0.01), b"".join(whole.packets[:3]), "reset"),
        (Behaviour(cut_at=b"fro"), whole.body[: whole.body.index(b"fro") + 3], "closed"),
        (Behaviour(cut_at=b"\xc3"), whole.body[: whole.body.index(b"\xc3") + 1], "closed"),
    ]
    for behaviour, body, ending in cases:
        raw = ask(stub, behaviour, path, stream=True)
        assert (raw.body, raw.ending) == (body, ending), behaviour


def test_a_cut_leaves_a_whole_answer_short_of_its_declared_length(stub: Stub) -> None:
    raw = ask(stub, Behaviour(cut_after=2))
    assert raw.ending == "closed"
    assert 0 < len(raw.body) < int(re.findall(r"content-length: (\d+)", raw.head)[0])


def test_a_stall_is_silence_until_the_client_leaves(stub: Stub) -> None:
    raw = ask(stub, Behaviour(stall_after=2), stream=True, patience=PATIENCE)
    assert len(raw.packets) == 2
    assert raw.ending == "open"
    request = stub.requests[0]
    assert request.closed.wait(5)
    assert not request.answered
    assert stub.wait_until(lambda: stub.in_flight == 0 and stub.open_connections == 0)


def test_a_broken_or_wrong_event_stands_where_it_was_told_to(stub: Stub) -> None:
    broken = ask(stub, Behaviour(bad_json_at=2), stream=True).events
    readable = []
    for event in broken[:-1]:
        with contextlib.suppress(json.JSONDecodeError):
            readable.append(json.loads(event))
    assert len(readable) == len(broken) - 2
    assert json.loads(ask(stub, Behaviour(error_at=2), stream=True).events[2])["error"]["type"] == "server_error"
    assert len(ask(stub, Behaviour(error_at=2), stream=True).events) == 3
    failed = ask(stub, Behaviour(error_at=2), MESSAGES, stream=True)
    assert failed.packets[2].startswith(b'event: error\ndata: {"type": "error"')
    assert json.loads(ask(stub, Behaviour(error_at=0)).body)["error"]["message"]


def test_endings_are_left_out_as_told(stub: Stub) -> None:
    assert ask(stub, Behaviour(done=False), stream=True).events[-1] != "[DONE]"
    for finished in (0, 1, 2):
        body = ask(stub, Behaviour(finished=finished), stream=True, n=2).body
        assert body.count(b'"finish_reason": "stop"') == finished
    assert b"message_delta" not in ask(stub, Behaviour(finished=0), MESSAGES, stream=True).body
    assert b"message_stop" not in ask(stub, Behaviour(done=False), MESSAGES, stream=True).body


def test_errors_have_their_vendors_form(stub: Stub) -> None:
    for status, code in ((401, "invalid_api_key"), (429, "rate_limit_exceeded"), (500, None)):
        raw = ask(stub, Behaviour(status=status, headers={"retry-after": "7"}))
        assert (raw.status, json.loads(raw.body)["error"]["code"]) == (status, code)
        assert "retry-after: 7" in raw.head
    assert json.loads(ask(stub, Behaviour(status=529), MESSAGES).body)["error"]["type"] == "overloaded_error"
    refused = ask(stub, Behaviour(refuses=frozenset({"temperature"})), temperature=0.7)
    assert (refused.status, json.loads(refused.body)["error"]["param"]) == (400, "temperature")
    assert ask(stub, Behaviour(refuses=frozenset({"temperature"}))).status == 200


def test_delays_come_where_they_were_told_to(stub: Stub) -> None:
    for behaviour in (Behaviour(delay_headers=0.05), Behaviour(delay_first=0.05), Behaviour(pace=0.01)):
        begun = time.monotonic()
        assert ask(stub, behaviour, stream=True).body == ask(stub, Behaviour(), stream=True).body
        assert time.monotonic() - begun >= 0.05


def test_a_client_that_does_not_read_holds_the_stub_back(stub: Stub) -> None:
    stub.queue(Behaviour(text="x" * 100_000, repeat=1000))
    with openai.OpenAI(base_url=f"{stub.url}/v1", api_key="sk-stub") as client:
        stream = client.chat.completions.create(**HELLO, stream=True)
        next(stream)
        assert not stub.wait_until(lambda: stub.requests[0].answered, seconds=0.3)
        assert stub.requests[0].sent < 50_000_000
        stream.close()
    assert stub.requests[0].closed.wait(5)


def test_it_serves_other_processes() -> None:
    command = [sys.executable, "-m", "tests.stub", "--port", "0", "--text", "Hi there"]
    with subprocess.Popen(command, cwd=ROOT / "template", stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-stub") as client:
            assert client.chat.completions.create(**HELLO).choices[0].message.content == "Hi there"
        process.terminate()
    assert process.returncode == 0
