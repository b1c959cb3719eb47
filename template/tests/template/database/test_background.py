"""Answers in the background: queued at once, made once whatever happens, polled, streamed and cancelled."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from app.access.callers import hash_key
from app.config import Settings
from app.database.replay import Replay
from app.main import create_app
from tests.database.fixtures import POSTGRES, MakeDatabase
from tests.serving import Process, environment, free_port, serve
from tests.stub import TEXT, Behaviour, Stub
from tests.template.database.test_state import EACH, KEYS, Client, Json

KILLS = int(os.environ.get("KILLS", "1"))
FINAL = ("completed", "incomplete", "failed", "cancelled")
LONG = " ".join(f"word{number}" for number in range(60))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(autouse=True)
def clean(upstream: Stub) -> None:
    upstream.default = Behaviour()
    upstream.requests.clear()


def tables(stub: Stub) -> Json:
    """Return the models and callers of the settings."""
    at_stub: Json = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}
    callers: Json = {name: {"key_sha256": hash_key(key)} for name, key in KEYS.items()}
    callers["rare"] = {"key_sha256": hash_key("sk-app-rare"), "requests_per_minute": 1}
    callers["single"] = {"key_sha256": hash_key("sk-app-single"), "max_in_flight": 1}
    callers["narrow"] = {"key_sha256": hash_key("sk-app-narrow"), "models": ["native"]}
    return {
        "default_model": "bridged",
        "models": {"bridged": at_stub, "native": at_stub | {"speaks": ["responses"]}},
        "callers": callers,
        "retries": 0,
    }


@pytest.fixture(scope="module")
def served(upstream: Stub, make_database: MakeDatabase) -> Iterator[str]:
    with serve(create_app(Settings(database_url=make_database(), **tables(upstream)))) as base:
        yield base


@contextlib.contextmanager
def client_of(base: str, key: str = KEYS["web"]) -> Iterator[Client]:
    with openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def web(served: str) -> Iterator[Client]:
    with client_of(served) as client:
        yield client


def until(found: Callable[[], Any], seconds: float = 120) -> Any:
    """Return what is found at last."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    raise TimeoutError


def ended(web: Client, response: str) -> Any:
    """Return a response when it is complete."""

    def look() -> Any:
        made = web.responses.retrieve(response)
        return made if made.status in FINAL else None

    return until(look)


def texts(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


@EACH
def test_an_answer_is_queued_at_once_and_polled(web: Client, upstream: Stub, model: str) -> None:
    upstream.queue(Behaviour(delay_first=1))
    started = time.monotonic()
    made = web.responses.create(model=model, input="One", background=True)
    assert (made.status, made.background, made.output, made.store) == ("queued", True, [], True)
    assert web.responses.retrieve(made.id).status in ("queued", "in_progress")
    assert time.monotonic() - started < 1 or upstream.requests == []
    done = ended(web, made.id)
    assert (done.status, done.output_text, done.background, done.id) == ("completed", TEXT, True, made.id)
    assert done.created_at == made.created_at
    assert done.usage.total_tokens > 0
    goes_on = web.responses.create(model=model, input="Two", previous_response_id=made.id)
    assert goes_on.status == "completed"
    asked = json.dumps(upstream.requests[-1].body, ensure_ascii=False)
    assert ("One" in asked, TEXT in asked, "Two" in asked) == (True, True, True)


@EACH
def test_an_answer_is_streamed_and_streamed_again_from_any_event(web: Client, upstream: Stub, model: str) -> None:
    upstream.queue(Behaviour(pace=0.02))
    events = list(web.responses.create(model=model, input="One", background=True, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert texts(events) == TEXT == events[-1].response.output_text
    assert {event.response.id for event in events if hasattr(event, "response")} == {events[0].response.id}
    for after in (0, 4, len(events) - 2, len(events) - 1, 10_000):
        again = list(web.responses.retrieve(events[0].response.id, stream=True, starting_after=after))
        assert again == events[after + 1 :]
    kept = web.responses.retrieve(events[0].response.id)
    assert kept.output == events[-1].response.output


def test_a_conversation_takes_no_other_request_until_an_answer_in_it_has_ended(web: Client, upstream: Stub) -> None:
    conversation = web.conversations.create().id
    upstream.queue(Behaviour(stall_after=4))
    first = web.responses.create(input="One", conversation=conversation, background=True)
    until(lambda: upstream.requests)
    for background in (False, True):
        with pytest.raises(openai.BadRequestError, match="Another request in this conversation"):
            web.responses.create(input="Two", conversation=conversation, background=background)
    web.responses.cancel(first.id)
    second = web.responses.create(input="Two", conversation=conversation, background=True)
    assert ended(web, second.id).status == "completed"
    web.responses.create(input="Three", conversation=conversation)
    items = web.conversations.items.list(conversation, order="asc")
    assert [item.content[0].text for item in items] == ["One", "Two", TEXT, "Three", TEXT]


def test_a_client_that_leaves_ends_nothing(web: Client, upstream: Stub) -> None:
    upstream.queue(Behaviour(pace=0.02))
    with web.responses.create(input="One", background=True, stream=True) as stream:
        first = next(iter(stream))
    assert ended(web, first.response.id).output_text == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_cancelled(web: Client, upstream: Stub, stream: bool) -> None:
    upstream.queue(Behaviour(stall_after=4))
    made = web.responses.create(input="One", background=True, stream=stream)
    if stream:
        events = iter(made)
        made = next(events).response
    until(lambda: web.responses.retrieve(made.id).status == "in_progress")
    assert web.responses.cancel(made.id).status == "cancelled"
    assert web.responses.cancel(made.id).status == "cancelled"
    until(upstream.requests[0].closed.is_set)
    assert web.responses.retrieve(made.id).status == "cancelled"
    if stream:
        *_, last = events
        assert last.response.status == "cancelled"


def test_an_answer_that_is_deleted_while_it_is_made_is_gone(web: Client, upstream: Stub) -> None:
    upstream.queue(Behaviour(stall_after=4))
    made = web.responses.create(input="One", background=True)
    until(lambda: web.responses.retrieve(made.id).status == "in_progress")
    web.responses.delete(made.id)
    until(upstream.requests[0].closed.is_set)
    with pytest.raises(openai.NotFoundError):
        web.responses.retrieve(made.id)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_told(web: Client, upstream: Stub, stream: bool) -> None:
    upstream.queue(Behaviour(status=500))
    made = web.responses.create(input="One", background=True, stream=stream)
    if stream:
        *_, last = made
        made = last.response
    done = ended(web, made.id)
    assert (done.status, done.error.code) == ("failed", "provider_error")


def test_what_cant_work_is_refused_at_once(web: Client, served: str) -> None:
    with pytest.raises(openai.NotFoundError):
        web.responses.create(model="none", input="One", background=True)
    with pytest.raises(openai.APIStatusError, match="leave store: false out"):
        web.responses.create(input="One", background=True, store=False)
    with client_of(served, "sk-app-narrow") as narrow, pytest.raises(openai.PermissionDeniedError):
        narrow.responses.create(input="One", background=True)
    made = web.responses.create(input="One")
    with pytest.raises(openai.APIStatusError, match="background"):
        web.responses.cancel(made.id)
    with pytest.raises(openai.APIStatusError, match="background and stream"):
        web.responses.retrieve(made.id, stream=True)


def test_an_answer_is_one_request_of_its_callers_limit(served: str, upstream: Stub) -> None:
    with client_of(served, "sk-app-rare") as rare:
        made = rare.responses.create(input="One", background=True)
        until(lambda: upstream.requests)
        until(lambda: rare.responses.retrieve(made.id).status == "completed")
        with pytest.raises(openai.RateLimitError):
            rare.responses.create(input="Two", background=True)


def test_an_answer_waits_while_its_callers_limit_is_reached(served: str, upstream: Stub) -> None:
    upstream.queue(Behaviour(pace=0.2))
    with client_of(served, "sk-app-single") as single:
        made = [single.responses.create(input=text, background=True) for text in ("One", "Two")]
        assert [ended(single, each.id).output_text for each in made] == [TEXT, TEXT]


# --- Processes that end -----------------------------------------------------------------------------------------------


WARM = """
import os, runpy, sys
import uvicorn
import app.database.service, app.dependencies, app.http.server_protocol, app.routers.chat, app.routers.responses
os.environ["APP_PORT"] = sys.argv[1]
sys.argv = ["app"]
for _ in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        runpy.run_module("app", run_name="__main__")
    print(child, flush=True)
    os.waitpid(child, 0)
"""
"""Starts `python -m app` for each line that it reads, tells its id, and waits for its end. What it has imported need
not be imported at each start, which takes seconds; nothing else is shared."""


@contextlib.contextmanager
def warm(env: dict[str, str]) -> Iterator[Callable[[], tuple[str, int]]]:
    """Yield a function that starts a process which serves, and returns its base URL and its id."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    starter = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", WARM, str(port)],
        env=environment(**env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert starter.stdin is not None
    assert starter.stdout is not None
    to, told = starter.stdin, starter.stdout

    def is_up() -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{base}/health").is_success
        return False

    def start() -> tuple[str, int]:
        to.write("start\n")
        to.flush()
        process = int(told.readline())
        until(is_up)
        return base, process

    with starter:
        yield start
        to.close()


def read_on(base: str, name: str, events: list[Json]) -> None:
    """Read the events that a stream has not brought yet, until it ends or its process does."""
    after = f"&starting_after={events[-1]['sequence_number']}" if events else ""
    url = f"{base}/v1/responses/{name}?stream=true{after}"
    headers = {"Authorization": f"Bearer {KEYS['web']}"}
    with (
        contextlib.suppress(httpx2.TransportError),
        httpx2.stream("GET", url, headers=headers, timeout=60) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line[6:]))  # noqa: PERF401 - what came before the end is kept


def is_open(events: list[Json]) -> bool:
    return not events or events[-1]["type"] != "response.completed"


def kill_often(env: dict[str, str], polled: set[str], streamed: dict[str, list[Json]]) -> None:
    """Ask for answers and read their events, of processes that are killed while they make them."""
    with warm(env) as start, ThreadPoolExecutor(100) as readers:
        for kill in range(KILLS):
            base, process = start()
            with client_of(base) as web:
                polled.add(web.responses.create(input="One", background=True).id)
                with web.responses.create(
                    model="native" if kill % 2 else "bridged", input="Two", background=True, stream=True
                ) as events:
                    streamed[next(iter(events)).response.id] = []
                reading = [
                    readers.submit(read_on, base, name, seen) for name, seen in streamed.items() if is_open(seen)
                ]
                time.sleep(random.uniform(0, 1.5))  # noqa: S311 - at any moment
                os.kill(process, signal.SIGKILL)
            for each in reading:
                each.result()


def test_answers_survive_the_end_of_the_process_at_any_moment(upstream: Stub, make_database: MakeDatabase) -> None:
    upstream.default = Behaviour(text=LONG, pace=0.02)
    given = tables(upstream) | {"database_url": make_database()}
    env = {f"APP_{k.upper()}": json.dumps(v) if isinstance(v, dict) else str(v) for k, v in given.items()}
    polled: set[str] = set()
    streamed: dict[str, list[Json]] = {}

    # On Postgres beside another replica, which is not killed and takes over.
    with Process(env=env) if POSTGRES else contextlib.nullcontext():
        kill_often(env, polled, streamed)
    with Process(env=env) as process, client_of(process.url) as web:
        for name in [*polled, *streamed]:
            done = ended(web, name)
            assert (done.status, done.output_text) == ("completed", LONG)
        for name, seen in streamed.items():
            read_on(process.url, name, seen)
    for events in streamed.values():
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        said = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert "".join(said) == LONG
        assert len([event for event in events if event["type"] == "response.output_item.added"]) == 1


# --- A second attempt -------------------------------------------------------------------------------------------------


def answer_of(*pieces: str, name: str = "msg_1") -> list[Json]:
    """Return the events of an answer."""
    place = {"item_id": name, "output_index": 0, "content_index": 0}
    item: Json = {"type": "message", "id": name, "role": "assistant", "status": "in_progress", "content": []}
    done = item | {"status": "completed", "content": [{"type": "output_text", "text": "".join(pieces)}]}
    return [
        {"type": "response.in_progress", "response": {"status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        *({"type": "response.output_text.delta", **place, "delta": piece} for piece in pieces),
        {"type": "response.output_text.done", **place, "text": "".join(pieces)},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        {"type": "response.completed", "response": {"status": "completed", "output": [done]}},
    ]


@pytest.mark.parametrize("cut", range(8))
def test_a_second_attempt_that_says_the_same_goes_on_where_the_first_has_stopped(cut: int) -> None:
    first = answer_of("He", "llo ", "world")
    replay = Replay(first[:cut], 2)
    told = [event for new in answer_of("Hel", "lo wor", "ld", name="msg_2") for event in replay.take(new)]
    whole = first[:cut] + told
    assert "".join(event["delta"] for event in whole if "delta" in event) == "Hello world"
    kinds = [event["type"] for event in whole if "delta" not in event]
    assert kinds == [event["type"] for event in first if "delta" not in event]
    assert {event["item_id"] for event in whole if "item_id" in event} == {"msg_1" if cut > 1 else "msg_2"}
    if cut < 7:
        assert [item["id"] for item in whole[-1]["response"]["output"]] == ["msg_1" if cut > 1 else "msg_2"]


@pytest.mark.parametrize("other", [("Help",), ("He",), ("Bye", "!")])
def test_a_second_attempt_that_says_something_else_follows_what_the_first_has_said(other: tuple[str, ...]) -> None:
    first = answer_of("He", "llo ", "world")[:4]
    replay = Replay(first, 2)
    told = [event for new in answer_of(*other) for event in replay.take(new)]
    assert told[0]["type"] == "response.output_item.done"
    assert (told[0]["item"]["id"], told[0]["item"]["status"]) == ("msg_1", "incomplete")
    assert told[0]["item"]["content"][0]["text"] == "Hello "
    assert [event["output_index"] for event in told if "output_index" in event] == [0] + [1] * (len(told) - 2)
    assert "".join(event["delta"] for event in told if "delta" in event) == "".join(other)
    output = told[-1]["response"]["output"]
    assert [(item["id"], item["status"]) for item in output] == [("msg_1", "incomplete"), ("msg_1_2", "completed")]
