"""Apps in this process, on real sockets: a test can set what they wait for, and ask their models."""

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from fastapi import FastAPI

from app.__main__ import main
from app.config import Settings, Timeouts
from app.main import create_app
from tests.serving import serve
from tests.stub import Stub
from tests.wire import Call


class Ask:
    """Asks the models of a server by their public names. Each call lasts as long as the server.

    Args:
        app: the app that is served.
        url: its base URL.
        key: the caller's key.
        calls: closes the calls in the end.
    """

    def __init__(self, app: FastAPI, url: str, key: str, calls: contextlib.ExitStack) -> None:
        self.url, self.key, self._app, self._calls = url, key, app, calls

    def __call__(self, model: str, **fields: Any) -> Call:
        """Send a request at once."""
        return self._calls.enter_context(Call(self.url, self.key, model=model, **fields))

    @property
    def in_flight(self) -> int:
        """Calls of callers with a limit on calls in flight that have not ended."""
        return sum(self._app.state.upstreams.limiter.in_flight.values())

    def taken(self, limit: str) -> int:
        """Return the tokens that are taken from a limit, such as `caller/test`, once no limited call is in flight."""
        deadline = time.monotonic() + 60
        while self.in_flight and time.monotonic() < deadline:
            time.sleep(0.002)
        storage = self._app.state.upstreams.limiter.storage.own
        return int(storage._counts[f"tokens/{limit}"][1])  # noqa: SLF001

    @property
    def metrics(self) -> list[str]:
        """The lines of `/metrics`."""
        return str(self._app.state.metrics.render().decode()).splitlines()

    @property
    def state(self) -> Any:
        """What the app holds."""
        return self._app.state

    @property
    def breakers(self) -> Any:
        """The circuit breakers of the models."""
        return self._app.state.upstreams.retries._breakers  # noqa: SLF001 - nobody else asks

    @contextlib.contextmanager
    def waiting(self, **seconds: float) -> Iterator[None]:
        """Give the calls that start inside the `with` block other time limits; healthy calls outside keep the usual."""
        upstreams = self._app.state.upstreams
        settings = upstreams.settings
        upstreams.settings = settings.model_copy(update={"timeouts": Timeouts(**seconds)})
        try:
            yield
        finally:
            upstreams.settings = settings


def row(stub: Stub, **given: Any) -> dict[str, Any]:
    """Return a row of the model table that leads to a stub."""
    return {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"} | given


def said_by(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
    """Run a command line that ends by itself, in this process; return its exit code and the lines that it printed."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, env or {}),
        mock.patch("app.__main__.end_at_once"),  # it would leave its handlers of signals behind
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        return main([*arguments]), printed.getvalue().splitlines()


@contextlib.contextmanager
def running(key: str, models: dict[str, Any], **given: Any) -> Iterator[Ask]:
    """Serve these models, with settings that are given; yield what asks them."""
    defaults: dict[str, Any] = {
        "models": models,
        "default_model": next(iter(models)),
        "callers": {"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}},
        "retries": 0,
    }
    app = create_app(Settings.model_validate(defaults | given))
    with contextlib.ExitStack() as calls, serve(app) as url:
        while app.state.upstreams.failing():  # LiteLLM is still being loaded
            time.sleep(0.02)
        yield Ask(app, url, key, calls)


def request_line(lines: Sequence[Any]) -> Any:
    """Return the log line of the one request, which is written after its answer has been sent."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := [line for line in lines if line["event"] == "request"]:
            return found[0]
        time.sleep(0.01)
    raise AssertionError("no log line")
