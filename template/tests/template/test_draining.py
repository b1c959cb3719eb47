"""OpenAI's own client reads the error of a server that drains, and an open stream to its end meanwhile."""

import hashlib
import json
from typing import Any

import openai
import pytest

from tests.serving import Process
from tests.stub import TEXT, Behaviour, Stub

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
