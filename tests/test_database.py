"""The option `database`: its page's examples, its tests on a real Postgres, and a job of the team's that is killed."""

import asyncio
import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import create_engine, make_url, text
from tests.stub import Behaviour, Stub

from workspace import FULL_MATRIX, ROOT, CheckTypes, debian, run

TEMPLATE = ROOT / "template"
PAGE = (TEMPLATE / "docs/database.md").read_text("utf-8")
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
PYTHON = Path(sys.executable)
IGNORED = shutil.ignore_patterns("__pycache__", ".*_cache", "data")
Json = dict[str, Any]
KEPT = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "OTEL_"))}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with every file of the page."""
    product = tmp_path_factory.mktemp("product") / "product"
    shutil.copytree(TEMPLATE, product, ignore=IGNORED)
    for name, example in FILES.items():
        (product / name).write_text(example)
    own = product / "app/own.py"
    text = own.read_text().replace(
        "routers: list[APIRouter] = []", "routers: list[APIRouter] = [notes.router, research.router]"
    )
    own.write_text(
        text.replace(
            "from app.config import Group\n", "from app import notes, research\nfrom app.config import Group\n"
        )
    )
    return product


def test_the_examples_of_the_page_pass_their_tests_and_mypy(product: Path, check_types: CheckTypes) -> None:
    assert len(FILES) == 4
    if FULL_MATRIX:  # a minute's work
        check_types(PYTHON.with_name("mypy"), product, *FILES)
    url = f"sqlite+aiosqlite:///{product}/new.sqlite"
    env = KEPT | {"APP_ENV_FILE": "", "APP_DATABASE_URL": url}
    run(PYTHON, "-m", "app", "migrate", cwd=product, env=env)
    command = ("alembic", "revision", "--autogenerate", "--head", "own@head", "-m", "Add notes")
    assert f'uv run {" ".join(command[:-1])} "Add notes"' in PAGE
    run(PYTHON, "-m", *command, cwd=product, env=env)
    for checked in ("format --check", "check"):  # as its CI does
        run(PYTHON.with_name("ruff"), *checked.split(), "migrations", cwd=product)
    tests = [name for name in FILES if name.startswith("tests/")]
    run(PYTHON.with_name("pytest"), "-q", *tests, cwd=product, env=KEPT)


def test_a_job_of_the_teams_goes_on_after_its_process_was_killed(product: Path, tmp_path: Path) -> None:
    with Stub() as stub, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        stub.queue(Behaviour(text="One?\nTwo?"), Behaviour(text="1"), Behaviour(stall_after=1), Behaviour(text="2"))
        stub.queue(Behaviour(text="A page."))
        env = KEPT | {
            "APP_ENV_FILE": "",
            "APP_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/app.sqlite",
            "APP_PORT": str(port),
            "APP_MODELS": json.dumps({"gpt-4o": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}}),
        }

        def ask(path: str, method: str = "GET") -> dict[str, str]:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
            for _ in range(3000):
                try:
                    with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above
                        found: dict[str, str] = json.load(answer)
                        return found
                except OSError:
                    time.sleep(0.05)
            raise TimeoutError

        run(PYTHON, "-m", "app", "migrate", cwd=product, env=env)
        command: list[str | Path] = [
            PYTHON,
            "-c",
            "import sys, app.main, uvicorn; uvicorn.run(app.main.app, port=int(sys.argv[1]))",
            str(port),
        ]
        first = subprocess.Popen(
            command, cwd=product, env=env | {"APP_DEV": "true"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            job = ask("/research?topic=x", "POST")["job"]
            while len(stub.requests) < 3:
                time.sleep(0.05)
        finally:
            first.kill()
            first.wait()
        second = subprocess.Popen(
            command, cwd=product, env=env | {"APP_DEV": "true"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while (found := ask(f"/research/{job}"))["status"] != "SUCCESS":
                time.sleep(0.05)
        finally:
            second.kill()
            second.wait()
    assert found["page"] == "A page."
    assert len(stub.requests) == 5  # only what had not ended was asked again


@pytest.mark.skipif(not FULL_MATRIX, reason="as long as all others here: nightly")
def test_nothing_that_was_answered_is_lost_when_one_of_two_replicas_is_killed(postgres: str) -> None:
    """200 conversations of three turns at once. Who gets no answer asks the other replica."""
    server = make_url(postgres)
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE replicas"))
    engine.dispose()
    with Stub(Behaviour(delay_first=0.05)) as stub, ExitStack() as stack:
        env = KEPT | {
            "APP_ENV_FILE": "",
            "APP_DATABASE_URL": server.set(database="replicas").render_as_string(hide_password=False),
            "APP_MODELS": json.dumps({"gpt-4o": {"upstream": "openai/gpt-4o", "api_base": f"{stub.url}/v1"}}),
            "APP_DATABASE_TIMEOUT": "60",  # on a busy machine a connection is waited for
            "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(b"key").hexdigest()}}),
        }
        run(PYTHON, "-m", "app", "migrate", cwd=TEMPLATE, env=env)
        replicas = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
            command: list[str | Path] = [PYTHON, "-m", "app", "--port", str(port)]
            replica = subprocess.Popen(command, cwd=TEMPLATE, env=env, stdout=subprocess.DEVNULL)
            stack.callback(replica.wait)
            stack.callback(replica.kill)
            replicas.append((replica, f"http://127.0.0.1:{port}"))
        lost = asyncio.run(_converse([base for _, base in replicas], replicas[0][0].kill))
    assert lost == []


async def _converse(bases: list[str], kill: Callable[[], None], conversations: int = 200) -> list[str]:
    """Return the conversations from which an answer is missing."""
    headers, limits = {"Authorization": "Bearer key"}, httpx2.Limits(max_connections=400)
    async with httpx2.AsyncClient(headers=headers, timeout=120, limits=limits) as client:

        async def ask(method: str, path: str, number: int, body: Json | None = None) -> Json:
            for attempt in range(3000):
                try:
                    answer = await client.request(method, f"{bases[(number + attempt) % 2]}{path}", json=body)
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)  # not started yet, or killed
                    continue
                if answer.status_code == 400 and answer.json()["error"]["code"] == "conversation_locked":
                    await asyncio.sleep(0.05)  # by a request to the replica that was killed
                    continue
                assert answer.status_code == 200, answer.text
                found: Json = answer.json()
                return found
            raise TimeoutError

        async def converse(number: int) -> str | None:
            name = (await ask("POST", "/v1/conversations", number, {}))["id"]
            answered = []
            for turn in range(3):
                asked = {"input": f"{number}.{turn}", "conversation": name}
                answered.append((await ask("POST", "/v1/responses", number, asked))["output"][0]["id"])
                if (number, turn) == (conversations // 2, 1):
                    kill()
            items = (await ask("GET", f"/v1/conversations/{name}/items?order=asc&limit=100", 1))["data"]
            said = [item["id"] for item in items if item["id"] in answered]
            return None if said == answered else name

        found = await asyncio.gather(*map(converse, range(conversations)))
    return [name for name in found if name]


def test_what_guards_the_database_holds_on_postgres(postgres: str) -> None:
    """What is asked of its tables; nightly everything, which mostly waits for processes that are started and killed."""
    env = KEPT | {"TEST_POSTGRES_URL": postgres}
    tests = "tests/template/database" if FULL_MATRIX else "tests/template/database/test_state.py"
    run(PYTHON.with_name("pytest"), "-q", "-n0", tests, cwd=TEMPLATE, env=env)


def test_the_pages_backups_can_be_gone_back_to_and_its_move_to_postgres_moves_all(
    postgres: str, tmp_path: Path
) -> None:
    debian("pg_dump", "postgresql-client")
    project = shutil.copytree(TEMPLATE, tmp_path / "project", ignore=IGNORED)
    address = postgres.rpartition("/")[0]
    engine = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in ("moved", "restored"):
            connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    backup, dump, move = re.findall(r"```sh\n(.*?)```", PAGE.partition("## Backups")[2], re.DOTALL)
    env = KEPT | {"APP_ENV_FILE": "", "APP_DATABASE_URL": ""}

    def shell(commands: str, **addresses: str) -> None:
        for shown, real in addresses.items():
            commands = commands.replace(f"user:password@host/{shown}", f"{address.partition('//')[2]}/{real}")
        commands = commands.replace("uv run python", "python")
        path = f"{PYTHON.parent}:{os.environ['PATH']}"
        run("sh", "-e", "-c", commands, cwd=project, env=env | {"PATH": path})

    shell("python -m app migrate")
    with closing(sqlite3.connect(project / "data/app.sqlite")) as file, file:
        file.execute("INSERT INTO kept_conversations VALUES ('conv_1', 'web', 1, 1, '{}', NULL, NULL)")
        file.commit()
        shell(backup)  # while it is in use
    for path in (project / "data").glob("*.sqlite*"):
        path.unlink()
    for path in project.glob("backup-*.sqlite"):
        path.rename(project / "data" / path.name.removeprefix("backup-"))
    shell(move, name="moved")
    shell(dump, name="moved", empty="restored")
    for name in ("moved", "restored"):
        engine = create_engine(f"{address}/{name}")
        with engine.connect() as connection:
            assert connection.execute(text("SELECT id, caller FROM kept_conversations")).all() == [("conv_1", "web")]
            assert connection.scalar(text("SELECT count(*) FROM dbos.workflow_status")) == 0
        engine.dispose()
