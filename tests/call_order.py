"""Prints the functions of template/app in the order in which one streamed request first enters each of them.

    cd template && python ../tests/call_order.py MODEL

MODEL is `demo`, or `direct`: the stub of the generated project's tests, reached by the direct adapter. The output is a
JSON list of pairs: the module's path below app/, and the function's qualified name.
"""

import asyncio
import hashlib
import importlib
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

TEMPLATE = Path.cwd()
APP = TEMPLATE / "app"
KEY = "sk-app-order"


class Recorder:
    """A profile function. It keeps each function of app/ once, in the order in which they were first entered."""

    def __init__(self) -> None:
        self.order: dict[tuple[str, str], None] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(APP):
            self.order.setdefault((str(path.relative_to(APP)), frame.f_code.co_qualname))


async def ask(app: Any, model: str) -> bytes:
    """Send one streamed request to an ASGI application that is running; return the body of its response."""
    message = {"role": "user", "content": "Hello"}
    body = json.dumps({"model": model, "stream": True, "messages": [message]}).encode()
    received = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if received:
            return received.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"authorization", f"Bearer {KEY}".encode()),
        ],
        "client": ("127.0.0.1", 40000),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return b"".join(message.get("body", b"") for message in sent[1:])


async def record(model: str, upstream: dict[str, str]) -> Recorder:
    """Serve one request with a fresh application; return what it entered."""
    settings = importlib.import_module("app.config").Settings(
        default_model="demo",
        models={"demo": {"upstream": "demo/echo"}, "direct": upstream},
        callers={"test": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest(), "tokens_per_minute": 1_000_000}},
        retries=0,
    )
    app = importlib.import_module("app.main").create_app(settings)
    recorder = Recorder()
    async with app.router.lifespan_context(app):
        sys.setprofile(recorder)
        try:
            body = await ask(app, model)
        finally:
            sys.setprofile(None)
    assert body.endswith(b"data: [DONE]\n\n"), body
    return recorder


def main(model: str) -> None:
    """Print the order for one model."""
    sys.path[0] = str(TEMPLATE)
    stub = importlib.import_module("tests.stub").Stub()
    with stub:
        upstream = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}
        recorder = asyncio.run(record(model, upstream))
    sys.stderr.write(json.dumps(list(recorder.order)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
