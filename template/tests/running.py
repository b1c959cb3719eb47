"""Apps in this process, on real sockets: a test can set what they wait for, and ask their models."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from app.config import Settings
from app.main import create_app
from tests.serving import serve
from tests.stub import Stub
from tests.wire import Call

Ask = Callable[..., Call]
"""Takes a model's public name and the fields of a request; sends it at once."""


def row(stub: Stub, **given: Any) -> dict[str, Any]:
    """Return a row of the model table that leads to a stub."""
    return {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"} | given


@contextlib.contextmanager
def running(key: str, models: dict[str, Any], **given: Any) -> Iterator[Ask]:
    """Serve these models, with settings that are given; yield what asks them. Calls last as long as the server."""
    defaults: dict[str, Any] = {
        "models": models,
        "default_model": next(iter(models)),
        "callers": {"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}},
        "retries": 0,
    }
    app = create_app(Settings.model_validate(defaults | given))
    with contextlib.ExitStack() as calls, serve(app) as url:
        yield lambda model, **fields: calls.enter_context(Call(url, key, model=model, **fields))


def request_line(lines: Sequence[Any]) -> Any:
    """Return the log line of the one request, which is written after its answer has been sent."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if found := [line for line in lines if line["event"] == "request"]:
            return found[0]
        time.sleep(0.01)
    raise AssertionError("no log line")
