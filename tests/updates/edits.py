"""What teams do to a generated project. Each edit is scripted, and can tell whether it is still there."""

import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from workspace import ROOT, run

OWN = '''"""Ours: routers and middleware."""

from fastapi import APIRouter
from prometheus_client import Counter
from pydantic import BaseModel
from starlette.middleware import Middleware

from app.dependencies import LLM
from app.team_header import TeamHeader

router = APIRouter()
asked = Counter("summaries_asked", "Summaries that were asked for.")


class Text(BaseModel):
    text: str


@router.post("/summaries")
async def summarize(body: Text, llm: LLM) -> dict[str, str | None]:
    asked.inc()
    answer = await llm.complete(model="demo", messages=[{"role": "user", "content": body.text}])
    return {"summary": answer.content}


@router.get("/status", openapi_extra={"security": []})
async def status() -> dict[str, str]:
    return {"status": "ours"}


routers: list[APIRouter] = [router]
middleware: list[Middleware] = [Middleware(TeamHeader)]
'''

TEAM_HEADER = '''"""Says on every response which team runs this service."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class TeamHeader:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_team(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-team", b"search")]
            await send(message)

        await self.app(scope, receive, send_with_team)
'''

TEST = '''"""What our team added works, whatever the template's updates bring."""

from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from app.limits import Limiter
from app.main import create_app
from app.models import ChatRequest


def test_our_endpoint_answers_and_our_middleware_speaks(client: TestClient) -> None:
    before = REGISTRY.get_sample_value("summaries_asked_total") or 0
    answer = client.post("/summaries", json={"text": "a long story"})
    assert answer.json() == {"summary": "You said: a long story"}
    assert answer.headers["x-team"] == "search"
    assert REGISTRY.get_sample_value("summaries_asked_total") == before + 1
    assert client.get("/status").json() == {"status": "ours"}


def test_our_line_in_main_runs() -> None:
    assert create_app().state.team == "search"


def test_our_field_is_checked() -> None:
    assert "team" in ChatRequest.model_fields


def test_our_import_of_a_module_that_moved_works() -> None:
    limiter: type[Limiter] = Limiter
    assert limiter.__module__ == "app.access.limits"
'''

README = "# Answers for Search\n\nRun by the search team. `uv run python -m app --dev` starts it.\n"

MODEL = """[models.claude]
upstream = "anthropic/claude-sonnet-4-5"

"""
CALLER = f'''
[callers.web]
key_sha256 = "{"0" * 64}"
models = ["claude"]
'''
ORIGINS = 'cors_origins = ["https://search.example"]\n'
GRACE = "    shutdown_grace: float = Field(default=60,"
LINE = '    app.state.team = "search"\n'
FIELD = "    team: str | None = Field(default=None, max_length=64)\n"
IGNORED = "\n/notes/\n"
DELIVERY = {
    "Dockerfile": ("EXPOSE 8000\n", "EXPOSE 8000\nLABEL team=search\n"),
    ".dockerignore": ("**/__pycache__\n", "**/__pycache__\n**/notes\n"),
    "k8s/base/kustomization.yaml": ("kind: Kustomization\n", "kind: Kustomization\nnamespace: search\n"),
    "k8s/base/deployment.yaml": ("memory: 384Mi", "memory: 512Mi"),
}
"""Files that an option's answer changes a line of: what stands there, and what a team makes of it."""
JOBS = {
    ".github/workflows/ci.yml": """
  deploy:
    name: Deploy
    needs: test
    runs-on: ubuntu-latest
    timeout-minutes: 5
    permissions: {}
    steps:
      - run: echo deployed
""",
    ".gitlab-ci.yml": """
deploy:
  stage: test
  script:
    - echo deployed
""",
}


class Edit(NamedTuple):
    """An edit: what is done, how, and whether a project has it."""

    name: str
    apply: Callable[[Path], None]
    kept: Callable[[Path], bool]


def write(name: str, path: str, text: str) -> Edit:
    """Return an edit that writes a whole file."""
    return Edit(name, lambda project: put(project / path, text), lambda project: read(project / path) == text)


def replace(name: str, path: str, old: str, new: str) -> Edit:
    """Return an edit that replaces what stands once in a file."""

    def apply(project: Path) -> None:
        before = read(project / path)
        assert before.count(old) == 1, f"{path} has {old!r} {before.count(old)} times, so {name!r} can't be done"
        put(project / path, before.replace(old, new))

    return Edit(name, apply, lambda project: new in read(project / path))


def replace_if_there(name: str, path: str, old: str, new: str) -> Edit:
    """Return an edit as `replace` does, of a file that not all projects have."""
    edit = replace(name, path, old, new)
    return Edit(
        name,
        lambda project: edit.apply(project) if (project / path).exists() else None,
        lambda project: not (project / path).exists() or edit.kept(project),
    )


def append(name: str, path: str, text: str) -> Edit:
    """Return an edit that adds to the end of a file, where there is one."""

    def apply(project: Path) -> None:
        if (project / path).exists():
            put(project / path, read(project / path) + text)

    return Edit(name, apply, lambda project: not (project / path).exists() or text in read(project / path))


def default_origins(project: Path) -> None:
    """Let other websites call than the answers said."""
    path = project / "app/settings.toml"
    lines = read(path).splitlines(keepends=True)
    [number] = [number for number, line in enumerate(lines) if line.startswith("cors_origins = ")]
    put(path, "".join([*lines[:number], ORIGINS, *lines[number + 1 :]]))


def add_dependency(project: Path) -> None:
    """`uv add jinja2`, in a project that has a lock."""
    declared, locked = with_dependency(read(project / "pyproject.toml"))
    put(project / "pyproject.toml", declared)
    put(project / "uv.lock", locked)


@cache
def with_dependency(declared: str) -> tuple[str, str]:
    """Return a pyproject.toml after `uv add`, and its lock. Most projects declare the same, so this is done once."""
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder, "pyproject.toml"), declared)
        shutil.copy(ROOT / "uv.lock", folder)
        uv = os.environ.get("UV", "uv")
        run(uv, "add", "--quiet", "--no-sync", "--python", sys.executable, "jinja2", cwd=Path(folder))
        return read(Path(folder, "pyproject.toml")), read(Path(folder, "uv.lock"))


def rename(project: Path) -> None:
    """Rename a file of the template's."""
    (project / RENAMED).rename(project / RENAMED_TO)


def depends(project: Path) -> bool:
    """Tell whether the dependency is declared."""
    declared = tomllib.loads(read(project / "pyproject.toml"))["project"]["dependencies"]
    return any(requirement.startswith("jinja2>=") for requirement in declared)


DELETED = "tests/test_logs.py"
RENAMED, RENAMED_TO = ".env.example", ".env.sample"

EDITS = [
    write("a router and a middleware in app/own.py", "app/own.py", OWN),
    write("an own middleware", "app/team_header.py", TEAM_HEADER),
    write("an own test", "tests/test_team.py", TEST),
    write("README rewritten", "README.md", README),
    replace("a line in main.py", "app/main.py", "    return app\n", LINE + "    return app\n"),
    replace(
        "a field in a schema",
        "app/models.py",
        "\n    @property\n    def wants_usage",
        FIELD + "\n    @property\n    def wants_usage",
    ),
    replace("a changed default in config.py", "app/config.py", "    shutdown_grace: float = Field(default=30,", GRACE),
    replace(
        "another model in settings.toml",
        "app/settings.toml",
        "# Built in: needs no key",
        MODEL + "# Built in: needs no key",
    ),
    append("a caller in settings.toml", "app/settings.toml", CALLER),
    Edit(
        "other websites in settings.toml",
        default_origins,
        lambda project: ORIGINS in read(project / "app/settings.toml"),
    ),
    Edit("a dependency, by uv add", add_dependency, depends),
    *(append(f"a job in {path}", path, job) for path, job in JOBS.items()),
    *(replace_if_there(f"a line in {path}", path, *lines) for path, lines in DELIVERY.items()),
    append("a line in .gitignore", ".gitignore", IGNORED),
    Edit(
        "a file deleted", lambda project: (project / DELETED).unlink(), lambda project: not (project / DELETED).exists()
    ),
    Edit(
        "a file renamed",
        rename,
        lambda project: (project / RENAMED_TO).exists() and not (project / RENAMED).exists(),
    ),
]


def edit(project: Path) -> None:
    """Apply all edits."""
    for change in EDITS:
        change.apply(project)


def lost(project: Path) -> list[str]:
    """Return the names of edits that a project doesn't have, or no longer."""
    return [change.name for change in EDITS if not change.kept(project)]


def read(path: Path) -> str:
    return path.read_text("utf-8")


def put(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
