"""However bytes are cut, and whatever they say: framing keeps every event, and no parser meets what it can't take."""

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.testclient import TestClient

from app.access.jwt_auth import JwtAuth
from app.config import JwtSettings, ModelEntry, Settings
from app.errors import AppError, ProviderError
from app.http.local_requests import is_local
from app.llm.failures import provider_failure, redact, retry_after
from app.llm.relay import Relay
from app.llm.sse import Events, event_data
from app.llm.stream_state import StreamState
from app.llm.targets import resolve
from app.main import create_app
from app.models import ChatRequest, EmbeddingRequest, addresses
from tests.wire import CHAT

fuzz = settings(derandomize=True, database=None, deadline=None, max_examples=100)
TARGET = resolve("m", ModelEntry(upstream="openai/m"), {})

FIELDS = ["data: ", "data:", "data", ": ", ":", "event: ", "id: ", "retry: ", "other: ", "datax: "]
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
WORDS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes into packets at these places."""
    borders = sorted({0, *(place % (len(data) + 1) for place in places), len(data)})
    return [data[start:end] for start, end in itertools.pairwise(borders)]


CUTS = st.lists(st.integers(0, 10_000), max_size=40)


def interpreted(stream: bytes) -> list[bytes]:
    """Return the data of each event, by the letter of the standard: line by line, a blank line ends an event.

    Source: WHATWG HTML, section 9.2.6.
    """
    found: list[bytes] = []
    lines: list[bytes] = []
    for line in re.split(rb"\r\n|\n|\r", stream):
        name, _, value = line.partition(b":")
        if line == b"":
            if lines:
                found.append(b"\n".join(lines))
            lines = []
        elif name == b"data":
            lines.append(value.removeprefix(b" "))
    return found


@st.composite
def event_streams(draw: st.DrawFn) -> bytes:
    """Any legal stream, each event with line ends of its own, ended by a blank line."""
    stream = b""
    for _ in range(draw(st.integers(0, 6))):
        end = draw(LINE_ENDS)
        for _ in range(draw(st.integers(0, 4))):
            field = draw(st.sampled_from(FIELDS))
            text = "" if field == "data" else draw(WORDS)
            stream += f"{field}{text}".encode() + end
        stream += end
    return stream


@fuzz
@given(event_streams(), CUTS)
def test_events_are_the_same_however_they_are_cut(stream: bytes, places: list[int]) -> None:
    events = Events()
    found = [event for packet in cut(stream, places) for event in events.feed(packet)]
    assert b"".join(found) + events.rest == stream
    assert [data for data in map(event_data, found) if data is not None] == interpreted(stream)


@fuzz
@given(st.binary(max_size=200), CUTS)
def test_no_byte_is_lost_whatever_comes(stream: bytes, places: list[int]) -> None:
    events = Events()
    found = [event for packet in cut(stream, places) for event in events.feed(packet)]
    assert b"".join(found) + events.rest == stream


@fuzz
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_what_is_left_never_hides_the_end_of_an_event(first: bytes, second: bytes) -> None:
    """A packet that ends within a line end is where framings go wrong."""
    whole = Events()
    at_once = [event_data(event) for event in whole.feed(first + second)]
    cut_once = Events()
    in_two = [event_data(event) for packet in (first, second) for event in cut_once.feed(packet)]
    assert [data for data in in_two if data is not None] == [data for data in at_once if data is not None]


# The relay: what a client gets of an upstream's stream.

CHUNK_FIELDS = st.fixed_dictionaries({}, optional={"id": WORDS, "x": JSON, "usage": st.none()})


FAULTY = [
    'data: {"error": {"message": "x"}}',
    'data: {"choices": [{"index": 0}], "error": {"message": "x"}}',
    'data: {"choices": [{"index": 0}], "x": NaN}',
    'data: {"choices": [{"index": 0}],\n"x": 1}',
    *("data: {", "data: []", "data: 1", "data: {}", 'data: {"choices": 1}', 'data: {"choices": [1]}'),
]


@st.composite
def upstream_streams(draw: st.DrawFn) -> tuple[bytes, int, bool]:
    """A provider's stream, legal or not; how many choices it has; whether the client asked for its usage."""
    choices, end = draw(st.integers(1, 2)), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    events: list[str] = []
    for _ in range(draw(st.integers(0, 5))):
        index = draw(st.integers(0, choices - 1))
        delta = {"content": draw(WORDS)}
        chunk = draw(CHUNK_FIELDS) | {"choices": [{"index": index, "delta": delta, "finish_reason": None}]}
        events.append("data: " + json.dumps(chunk, ensure_ascii=draw(st.booleans())))
        if draw(st.booleans()):
            events.append(": comment")
    ends = range(draw(st.integers(0, choices)))
    events += ["data:" + json.dumps({"choices": [{"index": index, "finish_reason": "stop"}]}) for index in ends]
    if draw(st.booleans()):
        events.append("data: " + json.dumps({"choices": [], "usage": {"prompt_tokens": 1}}))
    fault = draw(st.sampled_from([None, None, None, *FAULTY]))
    if fault:
        events.insert(draw(st.integers(0, len(events))), fault)
    if draw(st.booleans()):
        events.append("data: [DONE]")
    stream = "".join(event + end + end for event in events)
    return stream.encode()[: draw(st.sampled_from([None, None, -1, -2, -9]))], choices, draw(st.booleans())


def relayed(packets: list[bytes], choices: int, *, wants_usage: bool) -> dict[str, Any]:
    """Return what a client gets, and what is known of the stream at its end."""
    state = StreamState(choices, wants_usage=wants_usage)
    relay = Relay(TARGET, state)
    out = b""
    for packet in [*packets, b""]:
        if not relay.ended:
            out += relay.feed(packet)
    assert relay.ended
    return {
        "events": interpreted(out),
        "failure": relay.failure and relay.failure.message,
        "usage": state.usage,
        "finish_reasons": state.finish_reasons,
        "chunks": state.chunks,
    }


@fuzz
@given(upstream_streams(), CUTS)
@example((b'data: {"choices":[{"index":0}]}\n\n' * 3 + b"data: [DONE]\n\n", 1, False), [35])
def test_a_stream_is_relayed_the_same_however_it_is_cut(streamed: tuple[bytes, int, bool], places: list[int]) -> None:
    stream, choices, wants_usage = streamed
    byte_by_byte = relayed([bytes([byte]) for byte in stream], choices, wants_usage=wants_usage)
    assert relayed(cut(stream, places), choices, wants_usage=wants_usage) == byte_by_byte
    assert relayed([stream] if stream else [], choices, wants_usage=wants_usage) == byte_by_byte
    done = byte_by_byte["events"].count(b"[DONE]")
    assert done == (0 if byte_by_byte["failure"] else 1)


# Parsers: of what clients send, of what providers send, of headers.


@fuzz
@given(st.dictionaries(st.sampled_from([*ChatRequest.model_fields, "input", "x"]), JSON, max_size=4) | JSON)
def test_a_request_fits_or_is_refused(value: Any) -> None:
    for kind in (ChatRequest, EmbeddingRequest):
        try:
            request = kind.model_validate(value)
        except ValidationError:
            continue
        assert from_json(to_json(request.model_dump(exclude_unset=True))) == from_json(to_json(value))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(Settings(models={"demo": ModelEntry(upstream="demo/echo")}, default_model="demo"))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


MESSAGES = [{"role": "user", "content": "Hello"}]


@fuzz
@given(
    st.binary(max_size=100)
    | JSON.map(to_json)
    | st.dictionaries(
        st.sampled_from(["tools", "tool_choice", "response_format", "stop", "n", "user"]), JSON, max_size=3
    ).map(lambda fields: to_json({"messages": MESSAGES} | fields))
)
def test_no_body_is_an_error_of_the_server(client: TestClient, body: bytes) -> None:
    answer = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 404, 422)


SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"]) | JSON,
            "enum": JSON,
            "minimum": JSON,
            "maximum": JSON,
            "exclusiveMinimum": JSON,
            "minItems": JSON,
            "minLength": JSON,
            "$ref": st.text(max_size=10) | st.just("#"),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array"]),
            "properties": st.dictionaries(st.text(max_size=5), inner, max_size=3) | JSON,
            "items": inner | JSON,
            "prefixItems": st.lists(inner, max_size=2) | JSON,
            "anyOf": st.lists(inner, max_size=2) | JSON,
        },
    ),
    max_leaves=6,
)


@fuzz
@given(SCHEMAS, st.booleans())
def test_no_schema_is_an_error_of_the_server(client: TestClient, schema: Any, as_tool: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    asked = {"messages": MESSAGES} | ({"tools": tools} if as_tool else {"response_format": form})
    answer = client.post(CHAT, content=to_json(asked), headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400)


@fuzz
@given(JSON, st.integers(300, 599), st.dictionaries(st.just("Retry-After"), st.text(max_size=30)))
def test_any_refusal_of_a_provider_is_one_of_our_errors(error: Any, status: int, headers: dict[str, str]) -> None:
    failure = provider_failure(TARGET, status, error, headers)
    assert isinstance(failure, ProviderError)
    assert 400 <= failure.status < 600
    assert failure.headers.get("Retry-After", "0").isdigit()


@fuzz
@given(
    st.text(max_size=40)
    | st.from_regex(r"\A\d{1,12}(\.\d+)?\Z")
    | st.from_regex(r"\A\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\Z")
)
@example("Thu, 01 Jan 0000 00:00:00 GMT")
@example("١٢")
def test_any_retry_after_is_a_time_or_none(value: str) -> None:
    seconds = retry_after({"Retry-After": value})
    assert seconds is None or 0 <= seconds < float("inf")


@fuzz
@given(st.text(max_size=50), st.sampled_from(["0123456789abcdef", "(a+b)*[c]", "\\1\\g<0>"]), st.text(max_size=50))
def test_a_secret_is_removed_wherever_it_stands(before: str, secret: str, after: str) -> None:
    assert secret not in redact(f"{before}{secret}{after}", frozenset({secret}))


@fuzz
@given(JSON)
def test_addresses_are_found_in_anything(part: Any) -> None:
    assert all(scheme == scheme.lower() for scheme, _ in addresses(part))


@fuzz
@given(
    st.sampled_from(["http", "FILE", "gopher"]),
    st.text("\t\r\n \x00\x1f", max_size=5),
    st.text("abc.:@", min_size=1, max_size=9),
)
def test_an_address_is_found_behind_what_url_parsers_skip(scheme: str, blanks: str, host: str) -> None:
    assert list(addresses({"url": f"{blanks}{scheme[:2]}\n{scheme[2:]}://{host}/a"})) == [(scheme.lower(), host)]


@fuzz
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_who_is_local_is_told_of_any_headers(host: bytes, origin: bytes) -> None:
    headers = [(b"host", host), (b"origin", origin)]
    scope = {"type": "http", "headers": headers, "client": ("127.0.0.1", 1), "http_version": "1.1"}
    assert is_local(Request(scope)) in (True, False)


@fuzz
@given(
    st.text(max_size=60)
    | st.lists(st.binary(max_size=30), min_size=3, max_size=3).map(lambda parts: b".".join(parts).decode("latin-1"))
)
def test_any_token_is_refused_as_one(token: str) -> None:
    jwt_settings = JwtSettings(issuer="i", audience=["a"], jwks_url="http://127.0.0.1:9/keys")

    async def find() -> None:
        with pytest.raises(AppError):
            await JwtAuth(jwt_settings).find(token)

    asyncio.run(find())


@fuzz
@given(st.text(max_size=40))
def test_lists_in_variables_are_read_or_refused(text: str) -> None:
    try:
        hosts = Settings(image_hosts=text).image_hosts  # type: ignore[arg-type]  # as a variable gives it
    except ValueError:
        return
    assert all(host and not re.search(r"\s", host) for host in hosts)
