"""Responses with state: stored, continued, listed and deleted, each by its own caller alone."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import httpx2
import openai
import pytest
from sqlalchemy import insert, make_url, select, update

from app.access.callers import hash_key
from app.config import Settings
from app.database.schema import connected
from app.database.tables import Conversation, Item, Response, Worker
from app.main import create_app
from tests.database.fixtures import MakeDatabase
from tests.serving import serve
from tests.stub import TEXT, Behaviour, Stub

Json = dict[str, Any]
Client = Any
"""openai.OpenAI, without its unions of sixty types."""
KEYS = {"web": "sk-app-web", "other": "sk-app-other"}
SAID = "said-by-a-user-alone"
WEATHER: Json = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
EACH = pytest.mark.parametrize("model", ["bridged", "native"])


@pytest.fixture(scope="module")
def upstream() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(autouse=True)
def clean(upstream: Stub) -> None:
    upstream.default = Behaviour()
    upstream.requests.clear()


@pytest.fixture(scope="module")
def url(make_database: MakeDatabase) -> str:
    """The address of this module's database."""
    return make_database()


@pytest.fixture(scope="module")
def served(upstream: Stub, url: str) -> Iterator[str]:
    at_stub: Json = {"upstream": "openai/gpt-4o", "api_base": f"{upstream.url}/v1"}
    models: Json = {
        "bridged": at_stub,
        "native": at_stub | {"speaks": ["responses"]},
        "demo": {"upstream": "demo/echo"},
    }
    callers: Json = {name: {"key_sha256": hash_key(key)} for name, key in KEYS.items()}
    settings = Settings(
        database_url=url,
        default_model="bridged",
        models=models,
        callers=callers,
        retries=0,
        max_body_bytes=300_000,
    )
    with serve(create_app(settings)) as base:
        yield base


@pytest.fixture(scope="module")
def web(served: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served}/v1", api_key=KEYS["web"], max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def other(served: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served}/v1", api_key=KEYS["other"], max_retries=0) as client:
        yield client


def said_to(upstream: Stub) -> list[str]:
    """Return the texts of the messages, items and calls that the provider was asked with last, in their order."""
    body = upstream.requests[-1].body
    found = []
    for item in body.get("messages") or body["input"]:
        content = item.get("content")
        parts = content if isinstance(content, list) else [content]
        found += [part["text"] if isinstance(part, dict) else part for part in parts]
        found += [call["function"]["name"] for call in item.get("tool_calls") or ()]
        found += [item[name] for name in ("name", "output") if name in item]
    return [text for text in found if text]


@EACH
@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_response_is_continued(web: Client, upstream: Stub, model: str, stream: bool) -> None:
    def ask(text: str, previous: str | None = None) -> Any:
        more: Json = {"previous_response_id": previous} if previous else {}
        if not stream:
            return web.responses.create(model=model, input=text, **more)
        with web.responses.stream(model=model, input=text, **more) as events:
            return events.get_final_response()

    first = ask("One")
    second = ask("Two", first.id)
    assert (second.output_text, second.previous_response_id, second.store) == (TEXT, first.id, True)
    third = ask("Three", second.id)
    assert said_to(upstream) == ["One", TEXT, "Two", TEXT, "Three"]
    assert not {"previous_response_id", "conversation", "background"} & upstream.requests[-1].body.keys()
    assert upstream.requests[-1].body.get("store") in (None, False)
    kept = web.responses.retrieve(third.id)
    assert kept.output_text == TEXT
    assert kept.model_dump(exclude={"usage"}) == third.model_dump(exclude={"usage", "output_parsed"}) | {
        "output": [item.model_dump(exclude={"parsed"}) for item in kept.output]
    }


@EACH
def test_instructions_are_not_carried_over(web: Client, upstream: Stub, model: str) -> None:
    first = web.responses.create(model=model, input="One", instructions="Be brief.")
    web.responses.create(model=model, input="Two", previous_response_id=first.id)
    assert "Be brief." not in json.dumps(upstream.requests[-1].body)


@EACH
def test_a_tool_is_called_and_its_result_is_sent_alone(web: Client, upstream: Stub, model: str) -> None:
    upstream.queue(Behaviour(tool_calls=(("weather", "{}"),)))
    first = web.responses.create(model=model, input="Weather?", tools=[WEATHER])
    [call] = first.output
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sun"}
    done = web.responses.create(model=model, input=[result], tools=[WEATHER], previous_response_id=first.id)
    assert done.output_text == TEXT
    assert said_to(upstream) == ["Weather?", "weather", "Sun"]


@EACH
def test_an_item_is_referred_to_as_the_ai_sdk_does(web: Client, upstream: Stub, model: str) -> None:
    first = web.responses.create(model=model, input="One")
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    web.responses.create(
        model=model, input=[{"role": "user", "content": "One"}, reference, {"role": "user", "content": "Two"}]
    )
    assert said_to(upstream) == ["One", TEXT, "Two"]


@EACH
def test_a_conversation_grows_by_what_is_said_in_it(web: Client, upstream: Stub, model: str) -> None:
    conversation = web.conversations.create(
        metadata={"topic": "demo"}, items=[{"type": "message", "role": "user", "content": "Zero"}]
    )
    first = web.responses.create(model=model, input="One", conversation=conversation.id)
    assert first.conversation
    assert first.conversation.id == conversation.id
    passing = web.responses.create(model=model, input="Two", conversation={"id": conversation.id}, store=False)
    with pytest.raises(openai.NotFoundError):
        web.responses.retrieve(passing.id)
    web.conversations.items.create(conversation.id, items=[{"type": "message", "role": "user", "content": "Three"}])
    web.responses.create(model=model, input="Four", conversation=conversation.id)
    assert said_to(upstream) == ["Zero", "One", TEXT, "Two", TEXT, "Three", "Four"]
    items = list(web.conversations.items.list(conversation.id, order="asc", limit=3 if model == "bridged" else 100))
    assert [item.content[0].text for item in items] == [*said_to(upstream), TEXT]
    backwards = web.conversations.items.list(conversation.id)
    assert [item.id for item in backwards] == [item.id for item in items[::-1]]
    assert web.conversations.items.retrieve(items[1].id, conversation_id=conversation.id) == items[1]
    web.conversations.items.delete(items[0].id, conversation_id=conversation.id)
    web.conversations.update(conversation.id, metadata={"topic": "other"})
    assert web.conversations.retrieve(conversation.id).metadata == {"topic": "other"}
    web.responses.create(model=model, input="Five", conversation=conversation.id)
    assert said_to(upstream)[0] == "One"


def locked(web: Client, conversation: str, **more: Any) -> openai.BadRequestError:
    """Ask in a conversation in which an answer is being made; return the error."""
    with pytest.raises(openai.BadRequestError) as refused:
        web.responses.create(input="Two", conversation=conversation, **more)
    return refused.value


@EACH
@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_takes_one_request_at_a_time(web: Client, upstream: Stub, model: str, stream: bool) -> None:
    """As OpenAI's: openai-agents waits and asks again on this status with this code, OpenAI's SDKs by the headers."""
    conversation = web.conversations.create().id
    arrived, release = threading.Event(), threading.Event()

    def wait(_: Any) -> Behaviour:
        arrived.set()
        release.wait(10)
        return Behaviour()

    upstream.default = wait
    with ThreadPoolExecutor() as pool:
        asked = {"model": model, "input": "One", "conversation": conversation, "stream": stream}
        first = pool.submit(lambda: list(web.responses.create(**asked)))
        assert arrived.wait(60)
        try:
            error = locked(web, conversation, model=model)
            locked(web, conversation, background=True)
            with pytest.raises(openai.BadRequestError):
                web.conversations.items.create(conversation, items=[{"role": "user", "content": "Three"}])
        finally:
            release.set()
        first.result(timeout=120)
    assert (error.code, error.param, error.type) == ("conversation_locked", "conversation", "invalid_request_error")
    assert (error.response.headers["retry-after"], error.response.headers["x-should-retry"]) == ("1", "true")
    assert len(upstream.requests) == 1
    web.responses.create(model=model, input="Two", conversation=conversation)
    assert said_to(upstream) == ["One", TEXT, "Two"]


@EACH
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_keeps_no_conversation_locked(
    web: Client, upstream: Stub, model: str, stream: bool
) -> None:
    conversation = web.conversations.create().id
    for behaviour in (Behaviour(status=500), Behaviour(cut_after=6)):
        upstream.queue(behaviour)
        with suppress(openai.APIStatusError):
            list(web.responses.create(model=model, input="One", conversation=conversation, stream=stream))
    with pytest.raises(openai.UnprocessableEntityError):
        web.responses.create(input="x" * 200_000, conversation=conversation, max_output_tokens=-1)
    web.responses.create(model=model, input="Two", conversation=conversation)


def test_a_client_that_leaves_keeps_no_conversation_locked(web: Client, upstream: Stub) -> None:
    conversation = web.conversations.create().id
    for events in (5, 0):
        upstream.queue(Behaviour(stall_after=events))
        with suppress(openai.APITimeoutError):
            asked = {"input": "One", "conversation": conversation, "stream": True}
            with web.with_options(timeout=1 if events == 0 else 60).responses.create(**asked) as stream:
                next(iter(stream))
        web.with_options(max_retries=10).responses.create(input="Two", conversation=conversation)


def test_a_process_that_has_ended_keeps_no_conversation_locked(web: Client, url: str) -> None:
    conversation = web.conversations.create().id
    held = update(Conversation).where(Conversation.id == conversation)
    with connected(Settings(database_url=url)) as connection:
        connection.execute(insert(Worker).values(id="gone", seen_at=time.time() - 7))
        connection.execute(held.values(turn="turn_1", worker="gone"))
        connection.commit()
    web.responses.create(input="Two", conversation=conversation)
    with connected(Settings(database_url=url)) as connection:
        connection.execute(insert(Worker).values(id="alive", seen_at=time.time() + 60))
        connection.execute(held.values(turn="turn_2", worker="alive"))
        connection.commit()
    assert locked(web, conversation).code == "conversation_locked"


def test_the_input_of_a_response_is_listed(web: Client) -> None:
    made = web.responses.create(input=[{"role": "user", "content": str(number)} for number in range(5)])
    listed = list(web.responses.input_items.list(made.id, order="asc", limit=2))
    assert [item.content[0].text for item in listed] == list("01234")
    assert len({item.id for item in listed}) == 5


def test_what_is_not_stored_is_not_there(web: Client) -> None:
    made = web.responses.create(input="One", store=False)
    assert made.store is False
    with pytest.raises(openai.NotFoundError):
        web.responses.retrieve(made.id)


def test_another_callers_are_not_found(web: Client, other: Client, upstream: Stub) -> None:
    conversation = web.conversations.create(items=[{"type": "message", "role": "user", "content": SAID}]).id
    made = web.responses.create(input=SAID, conversation=conversation)
    item = made.output[0].id
    upstream.requests.clear()
    asks: list[Callable[[], Any]] = [
        lambda: other.responses.retrieve(made.id),
        lambda: other.responses.delete(made.id),
        lambda: other.responses.cancel(made.id),
        lambda: other.responses.input_items.list(made.id),
        lambda: other.responses.create(input="Go on", previous_response_id=made.id),
        lambda: other.responses.create(input="Go on", conversation=conversation),
        lambda: other.conversations.retrieve(conversation),
        lambda: other.conversations.update(conversation, metadata={}),
        lambda: other.conversations.delete(conversation),
        lambda: other.conversations.items.list(conversation),
        lambda: other.conversations.items.create(
            conversation, items=[{"type": "message", "role": "user", "content": "x"}]
        ),
        lambda: other.conversations.items.retrieve(item, conversation_id=conversation),
        lambda: other.conversations.items.delete(item, conversation_id=conversation),
    ]
    for ask in asks:
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert SAID not in caught.value.message
    with pytest.raises(openai.BadRequestError, match="not stored"):
        other.responses.create(input=[{"type": "item_reference", "id": item}])
    assert upstream.requests == []
    assert web.responses.retrieve(made.id).id == made.id


@pytest.mark.parametrize("name", ["resp_%00", "resp_" + "a" * 300, "%F0%9F%98%80"])
def test_an_id_that_is_none_is_refused(served: str, name: str) -> None:
    answer = httpx2.get(f"{served}/v1/responses/{name}", headers={"Authorization": f"Bearer {KEYS['web']}"})
    assert answer.status_code in (404, 422)


def rows(url: str) -> str:
    """Return all that the tables hold, as text."""
    with connected(Settings(database_url=url)) as connection:
        tables = (Response, Item, Conversation)
        return repr([[tuple(row) for row in connection.execute(select(table.__table__))] for table in tables])


def test_deleted_is_deleted(web: Client, url: str) -> None:
    conversation = web.conversations.create(items=[{"type": "message", "role": "user", "content": "secret-1"}]).id
    web.responses.create(input="secret-2", conversation=conversation, metadata={"a": "secret-3"})
    alone = web.responses.create(input="secret-4", instructions="secret-5")
    kept = rows(url)
    assert [number for number in range(1, 6) if f"secret-{number}" not in kept] == []
    web.conversations.delete(conversation)
    web.responses.delete(alone.id)
    assert "secret-" not in rows(url)
    if file := make_url(url).database if url.startswith("sqlite") else None:
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    with pytest.raises(openai.NotFoundError):
        web.responses.retrieve(alone.id)


def test_a_turn_that_was_deleted_is_missed_by_those_after_it(web: Client) -> None:
    first = web.responses.create(input="One")
    second = web.responses.create(input="Two", previous_response_id=first.id)
    web.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        web.responses.create(input="Three", previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"


def test_a_history_is_no_larger_than_a_request_may_be(web: Client) -> None:
    first = web.responses.create(input="a" * 200_000)
    second = web.responses.create(input="b" * 120_000, previous_response_id=first.id)
    with pytest.raises(openai.UnprocessableEntityError, match="more than 300000 bytes"):
        web.responses.create(input="c", previous_response_id=second.id)


@EACH
def test_a_stored_stream_whose_events_come_one_by_one_is_whole(web: Client, upstream: Stub, model: str) -> None:
    upstream.queue(Behaviour(pace=0.05))
    events: list[Any] = list(web.responses.create(model=model, input="One", stream=True))
    assert events[-1].type == "response.completed"
    assert web.responses.retrieve(events[-1].response.id).output_text == TEXT


@EACH
def test_a_stream_that_breaks_is_stored_as_failed(web: Client, upstream: Stub, model: str) -> None:
    upstream.queue(Behaviour(cut_after=6))
    events: list[Any] = list(web.responses.create(model=model, input="One", stream=True))
    assert events[-1].type == "response.failed"
    kept = web.responses.retrieve(events[-1].response.id)
    assert (kept.status, kept.error and kept.error.code) == ("failed", events[-1].response.error.code)
    assert kept.id == events[0].response.id
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert TEXT.startswith(deltas)
    assert deltas
    assert kept.output_text == ("" if model == "native" else deltas), "nobody has read what was passed through"


@EACH
def test_a_stream_that_its_client_leaves_is_stored_as_cancelled(web: Client, upstream: Stub, model: str) -> None:
    upstream.queue(Behaviour(stall_after=5))
    with web.responses.create(model=model, input="One", stream=True) as stream:
        first: Any = next(iter(stream))
        next(event for event in stream if event.type == "response.output_text.delta")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            kept = web.responses.retrieve(first.response.id)
            assert kept.status == "cancelled"
            assert TEXT.startswith(kept.output_text)
            assert bool(kept.output_text) == (model != "native")
            return
        except openai.NotFoundError:
            time.sleep(0.05)
    pytest.fail("it was not stored")


def test_an_answer_that_fails_whole_is_an_error_and_not_stored(web: Client, upstream: Stub, url: str) -> None:
    upstream.queue(Behaviour(status=500))
    with pytest.raises(openai.APIStatusError):
        web.responses.create(input="never-stored")
    assert "never-stored" not in rows(url)


def test_what_is_old_is_deleted(web: Client, url: str) -> None:
    conversation = web.conversations.create().id
    old, new = (web.responses.create(input="One").id for _ in range(2))
    inside = web.responses.create(input="One", conversation=conversation).id
    month = int(time.time()) - 31 * 86400
    with connected(Settings(database_url=url)) as connection:
        connection.execute(update(Response).where(Response.id == old).values(created_at=month))
        connection.execute(update(Conversation).where(Conversation.id == conversation).values(used_at=month))
        connection.commit()
    with serve(create_app(Settings(database_url=url))):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and conversation in rows(url):
            time.sleep(0.05)
    kept = rows(url)
    assert (old in kept, inside in kept, conversation in kept, new in kept) == (False, False, False, True)


def test_without_a_key_nothing_is_kept(make_database: MakeDatabase) -> None:
    with serve(create_app(Settings(database_url=make_database()))) as base:
        body = {"model": "demo", "input": "Hello"}
        made = httpx2.post(f"{base}/v1/responses", json=body).json()
        assert (made["status"], made["store"]) == ("completed", False)
        assert httpx2.get(f"{base}/v1/responses/{made['id']}").status_code == 401
        assert httpx2.post(f"{base}/v1/responses", json=body | {"previous_response_id": made["id"]}).status_code == 400


def test_prompts_and_answers_are_in_no_log_line(web: Client, capfd: pytest.CaptureFixture[str]) -> None:
    made = web.responses.create(input=SAID)
    web.responses.create(input=SAID, previous_response_id=made.id)
    with pytest.raises(openai.NotFoundError):
        web.responses.create(input=SAID, previous_response_id="resp_none")
    logged = capfd.readouterr().out
    assert "/v1/responses" in logged
    assert SAID not in logged
    assert TEXT not in logged
