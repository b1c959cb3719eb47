"""AI SDK refers to what it got by ids, though nobody stores it: one more item carries the others in its own id."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import row, running

Json = dict[str, Any]
PATH = "/v1/responses"
AI_SDK = {"user-agent": "ai/7.0.173 ai-sdk-provider-utils/5.0.81 node.js/v20"}
HELLO: list[Json] = [{"role": "user", "content": "Hello"}]
MORE: list[Json] = [{"role": "user", "content": "And now?"}]
TOOLS = [{"type": "custom", "name": "patch"}, {"type": "namespace", "name": "web", "tools": []}]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def web(upstream: Stub) -> Iterator[httpx2.Client]:
    models = {"bridged": row(upstream), "native": row(upstream, speaks=["responses"])}
    with (
        running("sk-app-test", models) as ask,
        httpx2.Client(base_url=ask.url, headers={"x-api-key": "sk-app-test"}, timeout=60) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def clean(upstream: Stub) -> None:
    upstream.default = Behaviour(thought="Hm, hm.")
    upstream.requests.clear()


def output(web: httpx2.Client, *, stream: bool, headers: dict[str, str] = AI_SDK, **more: Any) -> list[Json]:
    """Return the items of an answer."""
    asked = {"model": "bridged", "input": HELLO, "stream": stream, "tools": TOOLS} | more
    response = web.post(PATH, json=asked, headers=headers)
    assert response.status_code == 200
    if not stream:
        return list(response.json()["output"])
    *_, last = (line for line in response.text.splitlines() if line.startswith("data: {"))
    return list(json.loads(last.removeprefix("data: "))["response"]["output"])


def references(items: list[Json]) -> list[Json]:
    return [{"type": "item_reference", "id": item["id"]} for item in items]


def seen(upstream: Stub) -> list[Json]:
    """Return the messages that the model got last."""
    messages: list[Json] = upstream.requests[-1].body["messages"]
    return messages


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_referred_to_reaches_the_model(web: httpx2.Client, upstream: Stub, stream: bool) -> None:
    items = output(web, stream=stream)
    assert [item["type"] for item in items] == ["reasoning", "message", "reasoning"]
    output(web, stream=stream, input=[*HELLO, *references(items), *MORE])
    assert seen(upstream)[1] == {"role": "assistant", "content": TEXT, "reasoning_content": "Hm, hm."}


@pytest.mark.parametrize("stream", [False, True])
def test_calls_that_are_referred_to_reach_the_model(web: httpx2.Client, upstream: Stub, stream: bool) -> None:
    calls = (("look", '{"city": "Zürich"}'), ("patch", '{"input": "***"}'))
    upstream.default = Behaviour(tool_calls=calls)
    items = output(web, stream=stream)
    assert [item["type"] for item in items] == ["function_call", "custom_tool_call", "reasoning"]
    kinds = ("function_call_output", "custom_tool_call_output")
    results = [
        {"type": kind, "call_id": item["call_id"], "output": "."} for kind, item in zip(kinds, items, strict=False)
    ]
    output(web, stream=stream, input=[*HELLO, *references(items), *results])
    _, asked, *told = seen(upstream)
    assert [call["function"]["name"] for call in asked["tool_calls"]] == ["look", "patch"]
    assert [json.loads(call["function"]["arguments"]) for call in asked["tool_calls"]] == [
        {"city": "Zürich"},
        {"input": "***"},
    ]
    assert [message["role"] for message in told] == ["tool", "tool"]


def test_what_a_bridge_has_said_is_sent_as_itself_to_an_upstream_that_does_not_know_it(
    web: httpx2.Client, upstream: Stub
) -> None:
    items = output(web, stream=True)
    assert web.post(PATH, json={"model": "native", "input": [*HELLO, *references(items), *MORE]}).status_code == 200
    said = {"type": "message", "role": "assistant", "content": TEXT}
    assert upstream.requests[-1].body["input"] == [*HELLO, said, *MORE]


@pytest.mark.parametrize("why", ["another client", "nothing is to be stored"])
def test_only_a_client_that_refers_to_items_gets_one_more(web: httpx2.Client, why: str) -> None:
    more: Json = {"headers": {"user-agent": "OpenAI/Python 3.57.0"}} if why == "another client" else {"store": False}
    assert [item["type"] for item in output(web, stream=True, **more)] == ["reasoning", "message"]


def test_an_answer_that_is_too_long_to_be_carried_is_referred_to_in_vain(web: httpx2.Client, upstream: Stub) -> None:
    upstream.default = Behaviour(text="x" * 100_000)
    items = output(web, stream=True)
    assert [item["type"] for item in items] == ["message"]
    response = web.post(PATH, json={"model": "bridged", "input": [*HELLO, *references(items)]})
    assert response.status_code == 400
    assert "store: false" in response.json()["detail"]
    assert response.json()["error"]["param"] == "input.1"


FORGED: dict[str, Any] = {
    "no list": {"type": "message"},
    "an item within an item": [{"type": "message", "content": []}],
    "too many items": [{}] * 50_000,
    "an item that refers to itself": [{"type": "item_reference", "id": "msg_1"}],
}


@pytest.mark.parametrize("why", FORGED)
def test_an_id_that_was_not_made_here_resolves_nothing(web: httpx2.Client, why: str) -> None:
    forged = "rs_chat-1." + base64.urlsafe_b64encode(json.dumps(FORGED[why]).encode()).decode()
    response = web.post(PATH, json={"model": "bridged", "input": references([{"id": "msg_1"}, {"id": forged}])})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_parameter")


def test_what_an_id_carries_is_checked_like_any_item(web: httpx2.Client) -> None:
    item = {"type": "message", "id": "msg_1", "role": "nobody", "content": "Hello"}
    forged = "rs_chat-1." + base64.urlsafe_b64encode(json.dumps([item]).encode()).decode()
    response = web.post(PATH, json={"model": "bridged", "input": references([{"id": "msg_1"}, {"id": forged}])})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_request")


def test_a_small_request_can_not_become_a_large_one(web: httpx2.Client, upstream: Stub) -> None:
    """Thousands of references to one long text would be joined to one text of hundreds of megabytes."""
    upstream.default = Behaviour(text="x" * 50_000)
    message, carrier = references(output(web, stream=True))
    assert web.post(PATH, json={"model": "bridged", "input": [*HELLO, message, carrier]}).status_code == 200
    assert web.post(PATH, json={"model": "bridged", "input": [*HELLO, message, message, carrier]}).status_code == 400
