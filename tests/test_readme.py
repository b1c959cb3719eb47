"""README's commands do what it says, on a machine with Python and pip alone."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace import ROOT, questions, run, snapshot

README = (ROOT / "README.md").read_text("utf-8")
START, _, TEST, UPDATE = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
BODY = re.findall(r"-d '(.*)'", README)[0]
SETTINGS = re.compile(r"APP_|PORT|VIRTUAL_ENV|PYTEST|OPENAI|.*_API_KEY")


def commit(repository: Path) -> None:
    run("git", "add", ".", cwd=repository)
    run("git", "-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "Work", cwd=repository)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with what stands in this working tree."""
    clone = snapshot(tmp_path_factory.mktemp("machine") / "clone")
    run("git", "init", "--quiet", cwd=clone)
    commit(clone)
    return clone


@pytest.fixture(scope="module")
def machine(clone: Path) -> dict[str, str]:
    """The environment of a machine that has Python and pip, and neither uv nor a setting."""
    venv.create(clone.parent / "python", with_pip=True)
    kept = {name: value for name, value in os.environ.items() if not SETTINGS.match(name)}
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    return kept | {"PATH": f"{clone.parent / 'python/bin'}:/usr/bin:/bin", "APP_PORT": str(port)}


@pytest.fixture(scope="module", autouse=True)
def served(clone: Path, machine: dict[str, str]) -> Iterator[str]:
    """The address that README's first command serves."""
    url = f"http://127.0.0.1:{machine['APP_PORT']}"
    log = clone.parent / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", "-c", START], cwd=clone, env=machine, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()  # noqa: S310 - http, on this machine
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail(log.read_text())
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def post(url: str, body: str) -> tuple[int, str]:
    request = urllib.request.Request(  # noqa: S310 - http, on this machine
        f"{url}/v1/chat/completions", body.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - see above
            return response.status, response.read().decode()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


def test_the_first_command_serves_the_demo_model(served: str) -> None:
    status, streamed = post(served, BODY)
    assert status == 200
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert len(chunks) > 2
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def test_no_other_model_answers_by_accident(served: str) -> None:
    status, answer = post(served, BODY.replace('"demo"', '"gpt-4o"'))
    assert status == 503
    assert json.loads(answer)["error"]["code"] == "provider_not_configured"


def test_the_project_of_the_first_command_can_be_updated(clone: Path, machine: dict[str, str]) -> None:
    project = clone.parent / "my-backend"
    run("git", "init", "--quiet", cwd=project)
    (project / "app/own.py").write_text("routers = []\nmiddleware = []\n")
    commit(project)
    with (clone / "template/.env.example").open("a") as file:
        file.write("# A later line.\n")
    commit(clone)

    run("bash", "-c", UPDATE.replace("uvx", "python -m uv tool run") + " --defaults", cwd=project, env=machine)

    assert (project / ".env.example").read_text().endswith("# A later line.\n")
    assert (project / "app/own.py").read_text() == "routers = []\nmiddleware = []\n"
    changed = run("git", "status", "--porcelain", "--untracked-files=all", cwd=project).split("\n")
    assert {line for line in changed if line} == {" M .copier-answers.yml", " M .env.example"}


def test_the_command_for_those_who_have_uv_does_the_same() -> None:
    without_pip = START.removeprefix("python -m pip install uv && ")
    assert f"`{without_pip.replace('python -m uv tool run', 'uvx').replace('python -m uv', 'uv')}`" in README


def test_ci_runs_the_tests_by_the_second_command() -> None:
    install, test = TEST.split(" && ")
    script = (ROOT / ".ci/run").read_text()
    assert install == "python -m pip install uv"
    assert script.splitlines()[-1] == f"exec {test}"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_readme_lists_the_questions_in_their_order_with_their_defaults() -> None:
    asked = questions()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE))
    assert list(rows) == list(asked)
    for name, default in rows.items():
        used = {True: "yes", False: "no"}.get(asked[name]["default"], asked[name]["default"])
        assert default.strip("`") == used or (default, used) == ("none", "") or name in ("project_slug", "description")


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) < 130
