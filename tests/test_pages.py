"""Pages and forms for contributors: their links lead somewhere, and their commands are those that CI runs."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from workspace import ROOT, Install, Render, run, tree

TOOLS = Path(sys.executable).parent
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"")


def dead_links(folder: Path) -> Iterator[str]:
    """Yield the relative links of a folder's Markdown pages that lead to no file."""
    for name in tree(folder):
        page = folder / name
        if page.suffix == ".md":
            for found in LINK.findall(page.read_text("utf-8")):
                link = found[0] or found[1]
                if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists():
                    yield f"{name}: {link}"


def test_the_links_of_a_projects_pages_lead_to_files(render: Render) -> None:
    assert list(dead_links(render())) == []


def test_the_links_of_this_repositorys_pages_lead_to_files(source: Path) -> None:
    assert list(dead_links(source)) == []


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("[gone](docs/gone.md) [here](page.md#part) [web](https://example.com)\n")
    assert list(dead_links(tmp_path)) == ["page.md: docs/gone.md"]


@pytest.mark.parametrize("page", ["AGENTS.md", "CONTRIBUTING.md"])
def test_a_projects_page_asks_for_every_check_of_its_ci(render: Render, page: str) -> None:
    project = render()
    checks = re.findall(r"run: uv run --no-sync (\w+)", (project / ".github/workflows/ci.yml").read_text("utf-8"))
    text = (project / page).read_text("utf-8")
    assert {"ruff", "mypy", "pytest"} <= set(checks)
    assert [check for check in checks if not re.search(rf"^uv run {check}\b", text, re.MULTILINE)] == []


def test_the_hooks_before_a_commit_run_the_projects_own_ruff(render: Render, install: Install) -> None:
    project = render()
    tools = install(project)
    (source,) = yaml.safe_load((project / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert source["repo"] == "local"  # nothing is downloaded, and nothing has a version of its own
    untidy = project / "app/untidy.py"
    for hook in source["hooks"]:
        untidy.write_text("import os\nx = {  'a':1 }\n")
        uv, command, program, *arguments = hook["entry"].split()
        assert (uv, command, program, hook["language"]) == ("uv", "run", "ruff", "system")
        run(tools / program, *arguments, "app/untidy.py", cwd=project)
        assert untidy.read_text() == {
            "ruff-check": "x = {  'a':1 }\n",
            "ruff-format": 'import os\n\nx = {"a": 1}\n',
        }[hook["id"]]  # fmt: skip


def test_the_issue_forms_fit_githubs_schema(tmp_path: Path) -> None:
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    schema = ("--builtin-schema", "vendor.github-issue-forms")
    assert [form.stem for form in forms] == ["bug", "idea"]
    run(TOOLS / "check-jsonschema", *schema, *forms, cwd=ROOT)
    bad = tmp_path / "bad.yml"
    bad.write_text(forms[0].read_text("utf-8").replace("type: input", "type: inputs"))
    with pytest.raises(AssertionError, match="inputs"):
        run(TOOLS / "check-jsonschema", *schema, bad, cwd=ROOT)


def test_an_editor_is_told_how_every_file_is_written(source: Path) -> None:
    """No trailing blanks and a newline at the end, as .editorconfig says."""
    for name, content in tree(source).items():
        if b"\0" not in content and content and not name.endswith(".svg"):
            assert content.endswith(b"\n"), name
            assert not re.search(rb"[ \t\r]$", content, re.MULTILINE), name
