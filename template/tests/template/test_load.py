"""Nobody can make this service work out of proportion to what they send: in time, in memory, or in answers."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.access.callers import hash_key
from app.config import Settings
from app.dialects.messages import MessagesRequest
from app.dialects.responses import ResponsesRequest
from app.errors import Overloaded
from app.http.bodies import LARGE, MEDIUM, MOST_MEMBERS, MOST_VALUES, BodyMemory, read_json
from app.http.exchange import Exchange
from app.llm.client import LLMClient
from app.llm.upstreams import Upstreams
from app.main import create_app
from app.models import ChatRequest, EmbeddingRequest
from tests import limited
from tests.limited import EMBEDDINGS, Served, is_refused, remaining, until
from tests.serving import serve
from tests.stub import Behaviour, Stub
from tests.wire import CHAT, HELLO

JSON = {"Content-Type": "application/json"}
MEGABYTE = 1_000_000
FILLER = f'"filler":"{"x" * MEDIUM}"'
"""Makes a body so large that it is parsed in a thread."""


client = pytest.fixture(scope="module")(limited.client)
served = pytest.fixture(limited.served)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that is open to all, so serves the demo model only."""
    with serve(create_app(Settings(models={"demo": {"upstream": "demo/echo"}}, default_model="demo"))) as url:  # type: ignore[dict-item]
        yield url


def post(client: httpx2.Client, url: str, body: str | bytes, path: str = CHAT) -> httpx2.Response:
    return client.post(url + path, content=body, headers=JSON)


def ask(client: httpx2.Client, url: str, **fields: Any) -> httpx2.Response:
    path = EMBEDDINGS if "input" in fields else CHAT
    return post(client, url, json.dumps(fields if "input" in fields else {"messages": HELLO} | fields), path)


def with_member(name: str, text: str, head: str = "{" + FILLER) -> str:
    """Return an object with one more member, whose value stands there as JSON."""
    return f'{head},"{name}":{text}' + "}"


def said(text: str) -> str:
    """Return a large body with a text as it stands in JSON."""
    return with_member("messages", f"[{json.dumps(HELLO[0]).replace('Hello', text)}]")


def extra(text: str) -> str:
    """Return a large body with JSON in it that no field bounds."""
    return with_member("extra", text, "{" + FILLER + ',"messages":' + json.dumps(HELLO))


# Validation.

MANY: dict[str, tuple[Any, dict[str, Any]]] = {
    "messages": (ChatRequest, {"messages": [{}] * 1000}),
    "parts": (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 1000}]}),
    "tool calls": (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [1] * 500}]}),
    "tools": (ChatRequest, {"messages": HELLO, "tools": [1] * 500}),
    "stop": (ChatRequest, {"messages": HELLO, "stop": [1] * 16}),
    "inputs": (EmbeddingRequest, {"input": [{}] * 2000}),
    "tokens": (EmbeddingRequest, {"input": [1, *["a"] * 2000]}),
    "messages' system": (MessagesRequest, {"messages": HELLO, "max_tokens": 1, "system": [1] * 1000}),
    "messages' messages": (MessagesRequest, {"messages": [{}] * 1000, "max_tokens": 1}),
    "messages' blocks": (MessagesRequest, {"messages": [{"role": "user", "content": [1] * 1000}], "max_tokens": 1}),
    "messages' stop": (MessagesRequest, {"messages": HELLO, "max_tokens": 1, "stop_sequences": [1] * 60}),
    "responses' input": (ResponsesRequest, {"input": [1] * 1000}),
    "responses' tools": (ResponsesRequest, {"input": "Hello", "tools": [1] * 500}),
    "responses' include": (ResponsesRequest, {"input": "Hello", "include": [1] * 60}),
    "lists of tokens": (EmbeddingRequest, {"input": [[1], *[["a"] * 1000] * 1000]}),
}


@pytest.mark.parametrize("name", MANY)
def test_validation_ends_at_the_first_error_of_a_list(name: str) -> None:
    kind, fields = MANY[name]
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(fields)
    assert caught.value.error_count() <= 4, "one for each type that the field may have"


def test_very_many_errors_are_not_listed(client: httpx2.Client, url: str) -> None:
    """Infinite numbers, which no list's end at the first error can stop, in a field that is passed on as it is."""
    numbers = ",".join(["1e999"] * 500)
    answer = post(client, url, with_member("extra", f"[{numbers}]", '{"messages":' + json.dumps(HELLO)))
    assert (answer.status_code, answer.json()["detail"]) == (422, "More than 100 values are invalid.")


def test_an_answer_with_very_many_errors_is_repaired_by_a_short_message(stub: Stub) -> None:
    class Numbers(BaseModel):
        numbers: list[int]

    async def parse() -> Numbers:
        models: Any = {"m": {"upstream": "openai/m", "api_base": f"{stub.url}/v1"}}
        async with Upstreams(Settings(models=models, default_model="m")) as upstreams:
            return await LLMClient(upstreams).parse(Numbers, messages=HELLO)

    stub.queue(Behaviour(text=json.dumps({"numbers": ["a"] * 20_000})), Behaviour(text='{"numbers": [1]}'))
    assert asyncio.run(parse()).numbers == [1]
    assert len(stub.requests[1].body["messages"][-1]["content"]) < 10_000


# Large bodies.

TOO_MUCH = {
    "objects": ("[" + ",".join(["{}"] * MOST_MEMBERS) + "]", 422, "objects, lists and names"),
    "lists in lists": ("[" + ",".join(["[" * 100 + "]" * 100] * 501) + "]", 422, "objects, lists and names"),
    "names": ("{" + ",".join(f'"{i}":1' for i in range(MOST_MEMBERS)) + "}", 422, "objects, lists and names"),
    "the same name": ("{" + ",".join(['"a":1'] * MOST_MEMBERS) + "}", 422, "objects, lists and names"),
    "numbers": ("[" + ",".join(["1"] * (MOST_VALUES + 1)) + "]", 422, "values"),
    "texts": ("[" + ",".join(['"a"'] * (MOST_VALUES + 1)) + "]", 422, "values"),
    "brackets after escaped quotes": (r'["\\\"", "\\",' + ",".join(["[]"] * MOST_MEMBERS) + "]", 422, "objects"),
    "brackets that nothing closes": ("[" * (MOST_MEMBERS + 1), 422, "objects, lists and names"),
    "a long number": ("9" * 301, 400, "too long or too large"),
    "a large number": ("[-1.5E+0400]", 400, "too long or too large"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_large_body_with_too_much_in_it_is_refused_before_it_is_built(
    client: httpx2.Client, url: str, name: str
) -> None:
    text, status, reason = TOO_MUCH[name]
    answer = post(client, url, extra(text))
    assert answer.status_code == status
    assert reason in answer.json()["detail"]


@pytest.mark.parametrize(
    "text",
    [
        "," * (MOST_VALUES + 1),
        "{[:" * MOST_MEMBERS,
        r"\"[]," * MOST_VALUES,
        r"\\\"[]," * MOST_VALUES,
        "1e999, " + "9" * 5000,
        r"\\",
    ],
    ids=["commas", "brackets", "quotes", "backslashes and quotes", "numbers", "a backslash at the end"],
)
def test_punctuation_in_a_text_counts_for_nothing(client: httpx2.Client, url: str, text: str) -> None:
    answer = post(client, url, said(text))
    assert answer.status_code == 200
    assert json.loads(f'"{text}"')[:20] in answer.json()["content"]


@pytest.mark.parametrize("filler", [LARGE, MEDIUM])
def test_a_large_body_may_come_in_chunks(client: httpx2.Client, url: str, filler: int) -> None:
    body = said("Hello").replace("x" * MEDIUM, "x" * filler).encode()
    answer = client.post(url + CHAT, content=iter([body[:100], body[100:]]), headers=JSON)
    assert answer.json()["content"] == "You said: Hello"


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_large_bodies_share_a_bounded_memory(served: Callable[..., Served], stub: Stub, *, chunked: bool) -> None:
    server = served(settings={"max_body_memory": 3 * LARGE})
    stub.default = Behaviour(stall_after=3)
    large = json.dumps({"messages": [{"role": "user", "content": "x" * LARGE}]}).encode()

    def ask() -> httpx2.Response:
        content = iter([large[:100], large[100:]]) if chunked else large
        return httpx2.post(server.url + CHAT, content=content, headers=JSON | {"Authorization": "Bearer b"}, timeout=60)

    with server.stream(messages=[{"role": "user", "content": "x" * LARGE}]) as stream:
        next(stream.events)
        stub.default = Behaviour()
        refused = ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert server.ask().status_code == 200, "a small body needs none of it"
        stream.leave()
        assert until(ask, lambda answer: answer.status_code == 200).status_code == 200
    assert ask().status_code == 200, "and what it held is free again"


def test_a_client_that_leaves_behind_a_large_body_is_noticed(served: Callable[..., Served], stub: Stub) -> None:
    """Whatever of the body came last: a server reads no further while much of it waits to be received."""
    server = served(max_in_flight=1)
    for size in range(2 * LARGE, 10 * LARGE, LARGE // 2):
        stub.default = Behaviour(stall_after=3)
        with server.stream(messages=[{"role": "user", "content": "x" * size}]) as stream:
            next(stream.events)
            stream.leave()
        stub.default = Behaviour()
        assert until(server.ask, lambda answer: answer.status_code != 429).status_code == 200


def dense(count: int) -> bytes:
    """Return a body under 64 kB with so many empty objects in it."""
    return json.dumps({"messages": HELLO, "metadata": {"of": [{}] * count}}, separators=(",", ":")).encode()


def test_a_small_body_may_not_have_very_many_values(client: httpx2.Client, url: str) -> None:
    body = dense(20_500)
    assert len(body) < LARGE
    answer = post(client, url, body)
    assert answer.status_code == 422
    assert "objects, lists and names" in answer.json()["detail"]


def test_a_small_body_may_list_as_many_tokens_as_any(client: httpx2.Client, url: str) -> None:
    assert post(client, url, json.dumps({"input": [[1]] * 2048, "dimensions": 8}), EMBEDDINGS).status_code == 200


def test_small_bodies_with_many_values_share_the_memory_too(served: Callable[..., Served], stub: Stub) -> None:
    server = served(settings={"max_body_memory": MEGABYTE})
    stub.default = Behaviour(stall_after=3)
    with server.stream(metadata={"of": [{}] * 4000}) as stream:
        next(stream.events)
        stub.default = Behaviour()
        headers = JSON | {"Authorization": "Bearer b"}
        assert httpx2.post(server.url + CHAT, content=dense(4000), headers=headers, timeout=60).status_code == 503
        assert server.ask().status_code == 200, "one with few values needs none of it"
        stream.leave()


def test_who_only_announces_a_large_body_takes_no_memory_from_others(served: Callable[..., Served]) -> None:
    server = served(max_in_flight=1, settings={"max_body_memory": 4 * LARGE})
    large = json.dumps({"messages": [{"role": "user", "content": "x" * LARGE}]}).encode()
    with begun(server.url, body=b"{"):
        assert until(server.ask, lambda answer: answer.status_code == 429).status_code == 429
        headers = JSON | {"Authorization": "Bearer b"}
        assert httpx2.post(server.url + CHAT, content=large, headers=headers, timeout=60).status_code == 200


def test_a_body_that_is_refused_or_left_gives_its_share_back(served: Callable[..., Served]) -> None:
    server = served(settings={"max_body_memory": 4 * LARGE, "max_body_bytes": 19_000_000})
    body = json.dumps({"messages": [{"role": "user", "content": "x" * LARGE}]}).encode()

    def ask(content: Any, key: str = "a") -> httpx2.Response:
        return httpx2.post(
            server.url + CHAT, content=content, headers=JSON | {"Authorization": f"Bearer {key}"}, timeout=60
        )

    with begun(server.url, body=b"x" * 2 * LARGE):
        assert until(lambda: ask(body, "b"), lambda answer: answer.status_code == 503).status_code == 503
    assert until(lambda: ask(body, "b"), lambda answer: answer.status_code == 200).status_code == 200
    for content, status in ((iter([b"x" * 10_000_000] * 2), 413), (b"x" * 2 * LARGE, 400), (body[:-1], 400)):
        with contextlib.suppress(httpx2.WriteError):  # the answer comes before all is sent
            assert ask(content).status_code == status
        assert until(lambda: ask(body, "b"), lambda answer: answer.status_code == 200).status_code == 200


def test_one_caller_takes_at_most_half_of_the_memory_beside_its_first_body() -> None:
    memory, first, second, other = BodyMemory(100), Mock(caller="a", held=[]), Mock(caller="a"), Mock(caller="b")
    memory.hold(first, 20)
    memory.hold(first, 30)
    with pytest.raises(Overloaded):
        memory.hold(second, 30)
    memory.hold(other, 70)
    [release] = first.held
    release()
    memory.hold(second, 30)


@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS, "/v1/messages", "/v1/responses"])
def test_no_body_is_received_while_its_caller_is_not_admitted(
    client: httpx2.Client, url: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """As where the storage of limits stalls."""
    received, before = [], []
    original = Exchange._next  # noqa: SLF001

    async def following(exchange: Exchange) -> Any:
        message = await original(exchange)
        received.append(len(message.get("body", b"")))
        return message

    @contextlib.asynccontextmanager
    async def stalled(_: LLMClient) -> AsyncIterator[None]:
        await asyncio.sleep(0.2)
        before.append(sum(received))
        yield

    monkeypatch.setattr(Exchange, "_next", following)
    monkeypatch.setattr(LLMClient, "admitted", stalled)
    text = "x" * LARGE
    fields = (
        {"input": text} if path in {EMBEDDINGS, "/v1/responses"} else {"messages": [{"role": "user", "content": text}]}
    )
    answer = post(
        client, url, json.dumps(fields | {"model": "demo"} | ({"max_tokens": 9} if "messages" in path else {})), path
    )
    assert answer.status_code == 200
    assert before == [0]
    assert sum(received) > LARGE


def test_who_leaves_while_a_body_is_parsed_holds_its_share_until_the_thread_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def parse(*_: Any, **__: Any) -> None:
        began.set()
        go_on.wait(60)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * (MEDIUM + 1)}

    async def leave() -> None:
        memory, scope = BodyMemory(1), {"type": "http", "headers": [], "app.exchange": Mock(caller="a")}
        reading = asyncio.create_task(read_json(Request(scope, receive), ChatRequest, memory))
        await asyncio.to_thread(began.wait, 60)
        for _ in range(2):  # its client leaves, and then the server shuts down
            reading.cancel()
            await asyncio.sleep(0.05)
            assert memory.parsing.locked()
        assert not reading.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not memory.parsing.locked()

    monkeypatch.setattr("app.http.bodies._parse_large", parse)
    try:
        asyncio.run(leave())
    finally:
        go_on.set()


# Limits.


@contextlib.contextmanager
def begun(url: str, key: str = "a", body: bytes = b"") -> Iterator[socket.socket]:
    """A request of which only the head, and a little of its body, is sent."""
    address = urlsplit(url)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection((address.hostname, address.port or 0), timeout=60) as connection:
        connection.sendall(head.encode() + b"Content-Length: 19000000\r\n\r\n" + body)
        yield connection


def status_of(connection: socket.socket) -> int:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status


def test_a_caller_at_its_limit_is_refused_before_its_body_is_received(served: Callable[..., Served]) -> None:
    server = served(requests_per_minute=1)
    assert server.ask().status_code == 200
    with begun(server.url) as connection:
        assert status_of(connection) == 429


def test_a_body_that_is_being_received_holds_a_place_and_leaves_it(served: Callable[..., Served]) -> None:
    server = served(max_in_flight=1)
    with begun(server.url, body=b"{"):
        assert until(server.ask, lambda answer: answer.status_code == 429).status_code == 429
    assert until(server.ask, lambda answer: answer.status_code == 200).status_code == 200
    for _ in range(3):
        assert server.ask(messages=[]).status_code == 422
    assert server.ask().status_code == 200


def test_a_request_that_is_not_understood_counts_as_one(served: Callable[..., Served]) -> None:
    server = served(requests_per_minute=3, tokens_per_minute=9000)
    misfits: list[dict[str, Any]] = [{"messages": []}, {"model": "unknown"}]
    for fields in misfits:
        assert server.ask(**fields).status_code >= 400
    answer = server.ask(max_tokens=10)
    assert remaining(answer, "requests") == 0
    assert 8000 < remaining(answer) < 9000
    assert is_refused(server.ask())


def test_each_further_call_of_a_request_counts_as_one_too(stub: Stub) -> None:
    async def calls() -> list[str]:
        models: Any = {"m": {"upstream": "openai/m", "api_base": f"{stub.url}/v1"}}
        callers: Any = {"a": {"key_sha256": hash_key("a"), "requests_per_minute": 5}}
        app = create_app(Settings(models=models, default_model="m", callers=callers))
        async with app.state.upstreams as upstreams:
            llm = LLMClient(upstreams, app.state.keys.find("a"))
            async with llm.admitted():
                pass
            request = ChatRequest.model_validate({"messages": HELLO})
            answers = [await llm.answer(request) for _ in range(3)]
            return [answer.call.headers["x-ratelimit-remaining-requests"] for answer in answers]

    assert asyncio.run(calls()) == ["4", "3", "2"]


# The demo model.

BIG = "\x01" * 500_000
ARRAYS: Any = {"type": "string", "minLength": 1000}
for _ in range(6):
    ARRAYS = {"type": "array", "minItems": 16, "items": ARRAYS}
NAMED = {"properties": {"x" * 500_000: {"type": "boolean"}}}
ITSELF = {"properties": {name: {"$ref": "#/$defs/a"} for name in "abcdefgh"}}
SCHEMAS = {
    "arrays in arrays": ARRAYS,
    "references to itself": {"$defs": {"a": ITSELF}, **ITSELF},
    "references to a long name": {"$defs": {"a": NAMED}, "properties": {key: {"$ref": "#/$defs/a"} for key in "abc"}},
    "a long reference": {"$ref": "#" + "/a" * 500_000},
    "a constant": {"const": BIG},
    "a default": {"default": {"a": BIG}},
    "an enumeration": {"enum": [BIG]},
    "a number beyond numbers": {"type": "number", "minimum": 10**400},
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("way", ["schema", "tool"])
def test_a_schema_that_asks_for_too_much_is_refused(client: httpx2.Client, url: str, name: str, way: str) -> None:
    schema = SCHEMAS[name]
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    tool = {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    answer = ask(client, url, **(form if way == "schema" else tool))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 128])
def test_an_echo_is_bounded_whatever_is_asked_for(
    client: httpx2.Client, url: str, n: int, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr("app.llm.demo.PAUSE", 0)
    text = BIG if not stream else "a " * 20_000
    answer = ask(client, url, messages=[{"role": "user", "content": text}], n=n, stream=stream)
    assert answer.status_code == 200
    assert 1000 < len(answer.content) < 2 * MEGABYTE
    assert '"length"' in answer.text, "the answer says that it was cut"


def test_a_tools_name_is_bounded(client: httpx2.Client, url: str) -> None:
    answer = ask(client, url, n=128, tools=[{"type": "function", "function": {"name": BIG}}])
    assert len(answer.content) < MEGABYTE


def test_vectors_are_bounded_together(client: httpx2.Client, url: str) -> None:
    refused = ask(client, url, input=["a"] * 2048, dimensions=4096)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")
    answer = ask(client, url, input=["a"] * 16, dimensions=4096)
    assert answer.status_code == 200
    assert len(answer.content) < 2 * MEGABYTE
