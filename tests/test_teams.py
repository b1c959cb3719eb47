"""What a team makes of its project breaks none of the tests that came with it."""

import re

from workspace import ROOT, Install, Render, run

README = (ROOT / "template/README.md.jinja").read_text("utf-8")
[EXAMPLE] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "app.dependencies" in block]

METRIC = """
from fastapi import Request
from prometheus_client import Counter
from starlette.middleware import Middleware

asked = Counter("summaries_asked", "Summaries that were asked for.")


@router.get("/status", openapi_extra={"security": []})
async def status(request: Request) -> dict[str, str]:
    asked.inc()
    return {"status": "ours"}


routers: list[APIRouter] = [router]
middleware: list[Middleware] = []
"""

SETTINGS = """
[models.local]
upstream = "openai/qwen3-8b"
api_base = "http://localhost:8001/v1"
fallbacks = ["demo"]
requests_per_minute = 100

[callers.web]
key_sha256 = "{hash}"
models = ["local"]
tokens_per_minute = 1000

[timeouts]
idle = 5
total = 50
"""
TOP = 'log_format = "json"\nmax_in_flight = 5\nretries = 0\nplayground = true\n'

TESTS = '''"""README's endpoint, which stands in app/own.py, and ours."""

from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from app.main import create_app
from tests.conftest import MakeSettings


def test_the_endpoint_answers(client: TestClient) -> None:
    answer = client.post("/summaries", json={"text": "a long story"})
    assert answer.json() == {"summary": "You said: Summarize: a long story"}
    assert answer.headers["x-request-id"]


def test_the_endpoint_needs_a_key(settings: MakeSettings) -> None:
    with TestClient(create_app(settings())) as client:
        answer = client.post("/summaries", json={"text": "a long story"})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_our_own_route_is_counted(client: TestClient) -> None:
    before = REGISTRY.get_sample_value("summaries_asked_total") or 0
    assert client.get("/status").json() == {"status": "ours"}
    assert REGISTRY.get_sample_value("summaries_asked_total") == before + 1
'''


def test_readmes_endpoint_is_short() -> None:
    assert len(EXAMPLE.splitlines()) < 15


def test_routes_metrics_models_settings_and_a_readme_of_a_team_break_no_test(render: Render, install: Install) -> None:
    """The tests of its own modules run in a project that a team has edited in updates/test_updated_projects.py."""
    project = render()
    (project / "app/own.py").write_text(f'"""Ours."""\n\n{EXAMPLE}{METRIC}', "utf-8")
    settings = project / "app/settings.toml"
    settings.write_text(TOP + settings.read_text("utf-8") + SETTINGS.format(hash="0" * 64), "utf-8")
    (project / "README.md").write_text("# Ours\n", "utf-8")
    (project / "tests/test_team.py").write_text(TESTS, "utf-8")
    commands = install(project)
    run(commands / "python", "-c", "from app.main import app", cwd=project, env={})
    assert "passed" in run(commands / "pytest", "--quiet", cwd=project)
