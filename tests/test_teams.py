"""The example in a project's README works."""

import re

from workspace import ROOT, Install, Render, run

README = (ROOT / "template/README.md.jinja").read_text("utf-8")
[EXAMPLE] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "app.dependencies" in block]

ROUTERS = "\nrouters: list[APIRouter] = [router]\nmiddleware: list[Middleware] = []\n"

TESTS = '''"""README's endpoint, which stands in app/own.py."""

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
'''


def test_readmes_endpoint_is_short() -> None:
    assert len(EXAMPLE.splitlines()) < 15


def test_readmes_endpoint_works_and_needs_a_key(render: Render, install: Install) -> None:
    """That a team's routes, metrics, models, settings and README break no test: updates/test_updated_projects.py."""
    project = render()
    imports = "from starlette.middleware import Middleware\n"
    (project / "app/own.py").write_text(f'"""Ours."""\n\n{imports}{EXAMPLE}{ROUTERS}', "utf-8")
    (project / "tests/test_team.py").write_text(TESTS, "utf-8")
    assert "2 passed" in run(install(project) / "pytest", "--quiet", "tests/test_team.py", cwd=project)


def test_the_tests_that_came_with_the_template_are_listed() -> None:
    """They run without what a team registers, so a new one has to be in the list."""
    tests = ROOT / "template/tests"
    listed = re.search(
        r'CAME_WITH_THE_TEMPLATE = frozenset\(\s*"""(.*?)"""', (tests / "conftest.py").read_text("utf-8"), re.DOTALL
    )
    assert listed
    assert set(listed[1].split()) == {path.stem for path in tests.glob("test_*.py")}
