"""A server that drains tells everybody so, and an open stream comes to its end meanwhile."""

# ruff: noqa: SLF001 - nothing else tells of the requests in flight

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from structlog.testing import capture_logs

from app import middleware
from app.http.draining import Drain
from app.http.exchange import Exchange
from app.main import create_app
from tests.conftest import MakeSettings
from tests.serving import Process, serve
from tests.stub import TEXT, Behaviour, Stub
from tests.template.running import row
from tests.template.test_server_protocol import BIG, Line, eventually

HELLO: dict[str, Any] = {"model": "direct", "messages": [{"role": "user", "content": "Hello"}]}


def test_a_draining_server_says_so(key: str) -> None:
    callers = {"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}}
    with Stub(Behaviour(pace=0.3)) as stub:
        models = {"direct": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}}
        env = {"APP_CALLERS": json.dumps(callers), "APP_MODELS": json.dumps(models), "APP_DEFAULT_MODEL": "direct"}
        with (
            Process(env=env) as process,
            openai.OpenAI(base_url=f"{process.url}/v1", api_key=key, max_retries=0) as client,
            client.chat.completions.create(**HELLO, stream=True) as stream,
        ):
            next(stream)
            process.terminate()
            with pytest.raises(openai.InternalServerError) as caught:
                _ask_until_refused(client)
            assert (caught.value.code, caught.value.type) == ("draining", "server_error")
            assert caught.value.response.headers["retry-after"]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
            assert process.wait(60) == 0


def _ask_until_refused(client: openai.OpenAI) -> None:
    """Ask for the models until that is refused: a signal takes a moment."""
    for _ in range(100):
        client.models.list()


@contextlib.contextmanager
def draining(settings: MakeSettings, stub: Stub, **given: Any) -> Iterator[tuple[str, Drain]]:
    """Serve an app; yield its address, and what knows its requests in flight."""
    app = create_app(settings(models={"m": row(stub)}, default_model="m", retries=0, **given))
    with serve(app) as url:
        yield url, app.state.drain


def end(drain: Drain, ending: Callable[[Exchange], object]) -> None:
    """Do something to every request in flight, in the loop of the server."""
    for exchange in list(drain.in_flight):
        assert exchange._task
        exchange._task.get_loop().call_soon_threadsafe(ending, exchange)


def cancel(exchange: Exchange) -> None:
    """Cancel a request, as uvicorn does when its own time for open ones is over."""
    assert exchange._task
    exchange._task.cancel()


def test_a_request_that_waits_for_a_place_at_the_end_is_told_too(
    settings: MakeSettings, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(middleware, "WAIT_FOR_PLACE", 600)
    with (
        Stub(Behaviour(delay_headers=600)) as stub,
        draining(settings, stub, max_in_flight=1) as (url, drain),
        Line(url, key) as holder,
        Line(url, key) as waiting,
    ):
        holder.send(holder.post())
        assert stub.wait_until(lambda: stub.in_flight == 1)
        waiting.send(waiting.post())
        assert eventually(lambda: len(drain.in_flight) == 2)
        end(drain, lambda exchange: exchange.abort(drain.error()))
        for line in (holder, waiting):
            response = line.response()
            assert response.status == 503
            assert json.loads(response.body)["error"]["code"] == "draining"
            assert response.headers["x-request-id"]
    assert "Exception in ASGI application" not in caplog.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_that_nobody_reads_to_its_end_is_logged_as_left(
    settings: MakeSettings, key: str, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")
    behaviour = Behaviour(text="x" * 10_000, repeat=3000) if stream else BIG
    with (
        Stub(behaviour) as stub,
        draining(settings, stub) as (url, drain),
        Line(url, key, window=4096) as line,
        capture_logs() as lines,
    ):
        line.send(line.post(stream=stream))
        assert line.socket.recv(1)
        [exchange] = drain.in_flight
        if stream:
            time.sleep(2)  # until all buffers are full
            end(drain, lambda exchange: exchange.abort(drain.error()))
            assert eventually(lambda: exchange.error == "draining")
        else:
            assert eventually(lambda: exchange.sent_all)
        end(drain, cancel)
        assert eventually(lambda: not drain.in_flight)
        assert eventually(lambda: any(said["event"] == "request" for said in lines))
    [said] = [said for said in lines if said["event"] == "request"]
    assert said["status"] == 499
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
