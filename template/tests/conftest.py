"""What the tests stand on: a provider of our own, settings that lead to it, and an app that is open to one key."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from app.config import Settings
from app.main import create_app
from tests.serving import Backend, Process
from tests.serving import serve as serve_app
from tests.stub import Stub

MakeSettings = Callable[..., Settings]
Serve = Callable[[Settings], str]

KEY = "sk-app-test"


@pytest.fixture(scope="session")
def key() -> str:
    """The key of the caller `test`."""
    return KEY


@pytest.fixture(scope="session")
def headers(key: str) -> dict[str, str]:
    """Headers that carry the key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A provider that answers well until told otherwise."""
    with Stub() as stub:
        yield stub


@pytest.fixture
def settings(stub: Stub, key: str) -> MakeSettings:
    """Make settings: `gpt-4o` at the stub, the demo model and the caller `test`, but for what is given."""

    def make(**given: Any) -> Settings:
        defaults: dict[str, Any] = {
            "models": {
                "gpt-4o": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"},
                "demo": {"upstream": "demo/echo"},
            },
            "callers": {"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest()}},
            "retries": 0,
        }
        return Settings(**(defaults | given))

    return make


@pytest.fixture
def client(settings: MakeSettings, headers: dict[str, str]) -> Iterator[TestClient]:
    """A client in this process, with the key: without one, the app serves nobody but the demo model."""
    with TestClient(create_app(settings()), headers=headers) as client:
        yield client


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve an app with given settings on a real socket until the test ends; return its base URL."""
    with contextlib.ExitStack() as servers:
        yield lambda settings: servers.enter_context(serve_app(create_app(settings)))


@pytest.fixture(scope="session", autouse=True)
def begun(request: pytest.FixtureRequest) -> None:
    """LiteLLM takes seconds to load, so backends that a test will want load it while the tests before it run."""
    if any("backend" in getattr(test, "fixturenames", ()) for test in request.session.items):
        request.getfixturevalue("backends")


@pytest.fixture(scope="session")
def backends() -> Iterator[tuple[Future[Backend], Future[Backend]]]:
    """The two below, as soon as each is ready."""
    limits = {"first_token": 0.6, "idle": 0.6, "total": 1.2}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        patient, hasty = (stack.enter_context(_backend(timeouts)) for timeouts in ({}, limits))
        yield pool.submit(_ready, patient), pool.submit(_ready, hasty)


@pytest.fixture(scope="session")
def backend(backends: tuple[Future[Backend], Future[Backend]]) -> Backend:
    """A server for the whole session, with models on every way to a provider."""
    return backends[0].result()


@pytest.fixture(scope="session")
def hasty(backends: tuple[Future[Backend], Future[Backend]]) -> Backend:
    """The same, with little patience."""
    return backends[1].result()


def _ready(backend: Backend) -> Backend:
    backend.process.wait_until_ready()
    for model, stream in itertools.product(backend.upstreams, (False, True)):  # LiteLLM's first calls take long too
        with contextlib.suppress(openai.APIError):
            said = backend.client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Hello"}], stream=stream
            )
            list(said if isinstance(said, openai.Stream) else ())
    backend.stub.requests.clear()
    return backend


@contextlib.contextmanager
def _backend(timeouts: dict[str, float]) -> Iterator[Backend]:
    with Stub() as stub:
        openai_api = {"api_base": f"{stub.url}/v1"}
        via_litellm = openai_api | {"protocol": "litellm"}
        models = {
            "direct": {"upstream": "openai/gpt-4o"} | openai_api,
            "litellm": {"upstream": "openai/gpt-4.1"} | via_litellm,
            "litellm-embeddings": {"upstream": "openai/text-embedding-3-small"} | via_litellm,
            "anthropic": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": stub.url},
        }
        env = {
            "APP_MODELS": json.dumps(models),
            "APP_DEFAULT_MODEL": "direct",
            "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}}),
            "APP_RETRIES": "0",
            "APP_TIMEOUTS": json.dumps(timeouts),
        }
        with (
            Process(env=env, ready=False) as process,
            openai.OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0) as client,
        ):
            upstreams = {name: row["upstream"].partition("/")[2] for name, row in models.items()}
            yield Backend(process, stub, client, upstreams)
