"""Clients in their stateful modes, which their authors make the default, on SQLite and on a real Postgres."""

import hashlib
import http.client
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from operations.servers import Behaviour, Program, Stub, free_port
from workspace import FULL_MATRIX, ROOT, run

pytestmark = pytest.mark.skipif(not FULL_MATRIX, reason="a project's test_state.py has OpenAI's client: nightly")

HERE = Path(__file__).parent
TOOLS = Path(sys.executable).parent
KEY = "sk-app-test"


def agent(body: Any) -> Any:
    """Call the tool; when its result is there, tell which turn of the conversation this is."""
    if body["messages"][-1]["role"] != "tool":
        return Behaviour(tool_calls=(("weather", json.dumps({"city": "Zürich"})),))
    turns = sum(message["role"] == "user" for message in body["messages"])
    return Behaviour(text=f"turn {turns}: Sunny.")


@pytest.fixture(scope="module", params=["SQLite", "Postgres"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with a database."""
    if request.param == "SQLite":
        database = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('state')}/app.sqlite"
    else:
        server = make_url(request.getfixturevalue("postgres"))
        engine = create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("CREATE DATABASE clients"))
        engine.dispose()
        database = server.set(database="clients").render_as_string(hide_password=False)
    port = free_port()
    with Stub(agent) as stub:
        row = {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}
        env = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "OPENAI_"))} | {
            "APP_ENV_FILE": "",
            "APP_PORT": str(port),
            "APP_DATABASE_URL": database,
            "APP_MODELS": json.dumps({"agent": row}),
            "APP_DEFAULT_MODEL": "agent",
            "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}}),
        }
        run(sys.executable, "-m", "app", "migrate", cwd=ROOT / "template", env=env)

        def is_ready() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            with closing(connection), suppress(OSError):
                connection.request("GET", "/ready")
                return connection.getresponse().status == http.client.OK
            return False

        with Program(sys.executable, "-m", "app", ready=is_ready, cwd=ROOT / "template", env=env):
            yield f"http://127.0.0.1:{port}/v1"


def test_openai_agents_goes_on_by_ids_conversations_and_sessions(url: str, tmp_path: Path) -> None:
    script = shutil.copy(HERE / "state.py", tmp_path)
    client = ("run", "--quiet", "--no-project", "--isolated", "--python", sys.executable)
    output = run(
        *(os.environ.get("UV", "uv"), *client, "--with", "openai-agents==0.24.0"),
        *("python", script, url, KEY),
        cwd=tmp_path,
    )
    assert output.split() == ["previous_response_id", "conversation_id", "session"] * 2


def test_ai_sdk_refers_to_stored_items(url: str, tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "state", tmp_path / "client")
    trusting = os.environ | {"NODE_USE_SYSTEM_CA": "1"}
    run(TOOLS / "npm", "ci", "--no-audit", "--no-fund", cwd=folder, env=trusting)
    assert run(TOOLS / "node", "session.mjs", url, KEY, cwd=folder).split() == ["whole", "streamed"]
