"""What the tests stand on: a provider of our own, settings that lead to it, and an app that is open to one key."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from app import own
from app.config import Settings
from app.dependencies import get_llm
from tests.fakes import FakeLLM
from tests.serving import WITHOUT_OWN, Backend, Process, environment
from tests.serving import serve as serve_app
from tests.shutdown import SCENES, Ending, play
from tests.stub import Stub


@contextlib.contextmanager
def without_own() -> Iterator[None]:
    """Empty app/own.py within the block: what is made there has nothing of the team's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("routers", "public_routers", "middleware", "models", "lifespan", "OwnSettings"):
            patch.delattr(own, name, raising=False)
        yield


with without_own():  # importing it makes an app, for which the team's settings may be missing here
    from app.main import create_app

MakeSettings = Callable[..., Settings]
Serve = Callable[[Settings], str]

WithFake = Callable[..., TestClient]
AsCaller = Callable[..., TestClient]

KEY = "sk-app-test"
pytest_plugins = ["tests.database.fixtures"] if find_spec("app.database") else []
OF_THE_TEMPLATE = Path(__file__).parent / "template"
CAME_WITH_THE_TEMPLATE = frozenset(
    """
    test_access test_calls test_http test_limits test_logs test_metrics test_openai_client
    test_openai_errors test_openapi test_own_endpoints test_playground test_shutdown test_streams
    """.split()
)
"""Tests of the service itself. They run without what app/own.py registers, so that nothing in it breaks them; in the
processes that they start, tests/without_own sees to that."""

LOAD_LITELLM = frozenset(
    """
    test_addresses test_embeddings test_families test_http test_litellm_work test_logs
    test_openai_client test_own_endpoints test_own_models test_provider_keys test_providers_fail test_requests
    test_retries test_secrets test_start_settings test_streams test_tokens_for_nothing test_warm test_whose_fault
    """.split()
)
"""Tests that load LiteLLM, in their own process or in that of the fixture `backend`."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests of the template's own modules, unless the command line names their folder."""
    return True if collection_path == OF_THE_TEMPLATE and not _names_the_template(config) else None


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes run the tests: three for the template's own, which mostly wait, else this one."""
    return 3 if _names_the_template(config) else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of `--dist=loadfile`: the files that load LiteLLM share one process, since it takes seconds of CPU time."""
    if config.getoption("dist") != "loadfile":
        return None
    scheduling = import_module("xdist.scheduler").LoadFileScheduling(config, log)
    file_of = scheduling._split_scope  # noqa: SLF001 - what it is there for

    def scope_of(test: str) -> str:
        file: str = file_of(test)
        return "LiteLLM" if Path(file).stem in LOAD_LITELLM else file

    scheduling._split_scope = scope_of  # noqa: SLF001
    return scheduling


def _names_the_template(config: pytest.Config) -> bool:
    named = [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    return any(path.is_relative_to(OF_THE_TEMPLATE) for path in named)


@pytest.fixture(scope="module", autouse=True)
def nothing_of_ones_own(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty app/own.py, and the registry of the team's metrics, for the tests that came with the template."""
    if not (request.path.is_relative_to(OF_THE_TEMPLATE) or request.path.stem in CAME_WITH_THE_TEMPLATE):
        yield
        return
    with without_own(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.telemetry.metrics.REGISTRY", CollectorRegistry())
        patch.setenv("PYTHONPATH", environment(**WITHOUT_OWN)["PYTHONPATH"])
        yield


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
def own_settings() -> dict[str, Any]:
    """The table `[own]`, since tests don't read app/settings.toml. Your test module may have this fixture too."""
    return {}


@pytest.fixture
def settings(stub: Stub, key: str, own_settings: dict[str, Any]) -> MakeSettings:
    """Make settings: `gpt-4o` at the stub, the demo model and the caller `test`, but for what is given."""

    def make(**given: Any) -> Settings:
        defaults: dict[str, Any] = {
            "models": {
                "gpt-4o": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"},
                "demo": {"upstream": "demo/echo"},
            },
            "callers": {"test": {"key_sha256": hashlib.sha256(key.encode()).hexdigest(), "metrics": True}},
            "retries": 0,
            "own": own_settings,
        }
        return Settings(**(defaults | given))

    return make


@pytest.fixture
def client(settings: MakeSettings, headers: dict[str, str]) -> Iterator[TestClient]:
    """A client in this process, with the key: without one, the app serves nobody but the demo model."""
    with TestClient(create_app(settings()), headers=headers) as client:
        yield client


@pytest.fixture
def without_key(settings: MakeSettings) -> Iterator[TestClient]:
    """A client without a key."""
    with TestClient(create_app(settings())) as client:
        yield client


@pytest.fixture
def as_caller(settings: MakeSettings) -> Iterator[AsCaller]:
    """Make a client with the key of another caller: its name, and fields of its row, such as `models=["demo"]`."""
    with contextlib.ExitStack() as clients:

        def make(name: str, **row: Any) -> TestClient:
            callers = {name: {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest(), **row}}
            client = TestClient(create_app(settings(callers=callers)), headers={"Authorization": f"Bearer {KEY}"})
            return clients.enter_context(client)

        yield make


@pytest.fixture
def with_fake(settings: MakeSettings, headers: dict[str, str]) -> Iterator[WithFake]:
    """Make a client with the key, of an app whose endpoints get a FakeLLM for `LLM`.

    With a second argument, `outside`, what runs outside requests gets that one: `app.state.llm` and `app.llm_for`.
    """
    with contextlib.ExitStack() as clients:

        def make(fake: FakeLLM, outside: FakeLLM | None = None) -> TestClient:
            app = create_app(settings())
            app.dependency_overrides[get_llm] = lambda: fake
            if outside:
                app.state.llm = outside
                vars(app)["llm_for"] = lambda _: outside
            return clients.enter_context(TestClient(app, headers=headers))

        yield make


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve an app with given settings on a real socket until the test ends; return its base URL."""
    with contextlib.ExitStack() as servers:
        yield lambda settings: servers.enter_context(serve_app(create_app(settings)))


@pytest.fixture(scope="session", autouse=True)
def begun(request: pytest.FixtureRequest) -> None:
    """What takes seconds by itself begins at once, where a test will want it, and goes on beside the earlier tests.

    Not where processes share the tests: each of them knows all, and not which it will run.
    """
    if hasattr(request.config, "workerinput"):  # pytest-xdist's
        return
    wanted = {name for test in request.session.items for name in getattr(test, "fixturenames", ())}
    for name, slow in {"backend": "loading", "endings": "endings"}.items():
        if name in wanted:
            request.getfixturevalue(slow)


@pytest.fixture(scope="session")
def loading() -> Iterator[Future[Backend]]:
    """The backend below, as soon as it has loaded LiteLLM."""
    with _backend() as backend, ThreadPoolExecutor(1) as pool:
        yield pool.submit(_ready, backend)


@pytest.fixture(scope="session")
def backend(loading: Future[Backend]) -> Backend:
    """A server for the whole session, with models on every way to a provider."""
    return loading.result()


@pytest.fixture(scope="session")
def endings() -> Iterator[dict[str, Future[Ending]]]:
    """The end of a server in every scene, some of them at a time: most of a scene is waiting."""
    with ThreadPoolExecutor(3) as pool:
        yield {name: pool.submit(play, scene, KEY) for name, scene in SCENES.items()}


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
def _backend() -> Iterator[Backend]:
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
        }
        with (
            Process(env=env | WITHOUT_OWN, ready=False) as process,
            openai.OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0) as client,
        ):
            upstreams = {name: row["upstream"].partition("/")[2] for name, row in models.items()}
            yield Backend(process, stub, client, upstreams)
