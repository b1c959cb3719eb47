"""The option `database`: its page's examples, its tests on a real Postgres, and a job of the team's that is killed."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tests.stub import Behaviour, Stub

from workspace import ROOT, run

TEMPLATE = ROOT / "template"
PAGE = (TEMPLATE / "docs/database.md").read_text("utf-8")
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
PYTHON = Path(sys.executable)
KEPT = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "OTEL_"))}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with every file of the page."""
    product = tmp_path_factory.mktemp("product") / "product"
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", "data")
    shutil.copytree(TEMPLATE, product, ignore=ignored)
    for name, text in FILES.items():
        (product / name).write_text(text)
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


def test_the_examples_of_the_page_pass_their_tests_and_mypy(product: Path) -> None:
    assert len(FILES) == 4
    run(PYTHON.with_name("mypy"), cwd=product)
    url = f"sqlite+aiosqlite:///{product}/new.sqlite"
    env = KEPT | {"APP_ENV_FILE": "", "APP_DATABASE_URL": url}
    run(PYTHON, "-m", "app", "migrate", cwd=product, env=env)
    command = ("alembic", "revision", "--autogenerate", "--head", "own@head", "-m", "Add notes")
    assert f'uv run {" ".join(command[:-1])} "Add notes"' in PAGE
    run(PYTHON, "-m", *command, cwd=product, env=env)
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


def test_what_guards_the_database_holds_on_postgres(postgres: str) -> None:
    env = KEPT | {"TEST_POSTGRES_URL": postgres}
    run(PYTHON.with_name("pytest"), "-q", "-n0", "tests/template/database", cwd=TEMPLATE, env=env)
