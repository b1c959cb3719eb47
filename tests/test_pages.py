"""Pages and forms: their links lead somewhere, their commands are those of CI, their settings are those of app/."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from app.access.shared_storage import SharedStorage
from app.config import Settings, Timeouts
from app.llm.circuit_breaker import FAILURES, SECONDS
from app.llm.retries import FIRST_PAUSE, LONGEST_PAUSE, MAX_RETRY_AFTER

from workspace import ROOT, Install, Render, run, tree

TOOLS = Path(sys.executable).parent
DOCS = {page.name: page.read_text("utf-8") for page in sorted((ROOT / "template/docs").glob("*.md"))}
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


def test_every_setting_is_on_a_page() -> None:
    text = "\n".join([*DOCS.values(), (ROOT / "template/README.md.jinja").read_text("utf-8")])
    names = [*Settings.model_fields, *(f"timeouts.{name}" for name in Timeouts.model_fields)]
    missing = [
        name
        for name in names
        if not re.search(rf"`{name}\b|^\[?{name}\b|\[{name}[\].]|`--{name}`|\bAPP_{name.upper()}\b", text, re.MULTILINE)
    ]
    assert missing == []


def test_the_defaults_on_the_pages_are_those_of_the_settings() -> None:
    settings = Settings.model_construct()
    told = {}
    for text in DOCS.values():
        for name, default in re.findall(r"^\| `([\w.]+)` \| `?(\w+)`? \|", text, re.MULTILINE):
            group, _, field = name.rpartition(".")
            if hasattr(settings.timeouts if group else settings, field) and default != "none":
                told[name] = (default, getattr(settings.timeouts if group else settings, field))
    assert {"timeouts.total", "api_docs", "log_level", "keep_days"} <= set(told)
    assert {name: both for name, both in told.items() if both[0] != f"{both[1]}".lower()} == {}


@pytest.mark.parametrize("name", ["models-and-callers.md", "own-endpoints.md"])
def test_the_tables_of_a_page_can_be_set(name: str) -> None:
    """All of a page together, beside the rows of models that it only names."""
    shown: dict[str, Any] = {"models": {row: {"upstream": row} for row in ("gpt-4o", "demo", "text-embedding-3-small")}}
    blocks = re.findall(r"^```toml\n(.*?)^```", DOCS[name], re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        merge(shown, tomllib.loads(block.replace('"..."', f'"{"0" * 64}"')))
    assert Settings.model_validate(shown).models.keys() == shown["models"].keys()


def merge(tables: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(tables.get(key), dict):
            merge(tables[key], value)
        else:
            tables[key] = value


def test_each_address_of_a_valkey_on_a_page_can_be_set() -> None:
    addresses = {each for text in DOCS.values() for each in re.findall(r"async\+\w[^\s`\"]+", text)}
    assert len(addresses) > 4
    for address in addresses:
        SharedStorage(Settings(limit_storage=address).limit_storage, 1)


def test_the_page_on_models_tells_how_retries_and_circuit_breakers_wait() -> None:
    text = " ".join(DOCS["models-and-callers.md"].split())
    pauses = f"at most {FIRST_PAUSE:g} s, before each further one at most twice as long, up to {LONGEST_PAUSE:g} s"
    assert pauses in text
    assert f"asks for more than {MAX_RETRY_AFTER:g} s" in text
    assert f"up to `retries` times ({Settings.model_fields['retries'].default})" in text
    assert (FAILURES, f"skipped for {SECONDS:g} s" in text, "three calls in a row" in text) == (3, True, True)
