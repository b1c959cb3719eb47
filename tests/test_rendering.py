"""What holds for every rendered project, without running it."""

import ast
import re
import shutil
import sys
import tomllib
from pathlib import Path

import copier
import pytest

from shapes import SHAPES
from workspace import ROOT, Render, configuration, run, tree

COPIER = Path(sys.executable).with_name("copier")
POINTER = "{% yield pointer from moved %}{{ pointer[0] }}{% endyield %}"
"""One file for updates alone, rendered to a pointer for each entry of `moved` in copier.yml."""
OPTION_FILES: dict[tuple[str, str | bool], list[str]] = {
    ("ci", "github"): [".github/workflows/ci.yml", ".github/workflows/template.yml"],
    ("ci", "gitlab"): [".gitlab-ci.yml"],
    ("ci", "none"): [],
    ("container", True): [
        ".dockerignore",
        "Dockerfile",
        "compose.yaml",
        "monitoring/alerts.yml",
        "monitoring/grafana/dashboards/backend.json",
        "monitoring/grafana/provisioning/dashboards/backend.yml",
        "monitoring/grafana/provisioning/datasources/prometheus.yml",
        "monitoring/prometheus.yml",
    ],
    ("container", False): [],
    ("kubernetes", True): [
        "k8s/base/autoscaler.yaml",
        "k8s/base/deployment.yaml",
        "k8s/base/disruption.yaml",
        "k8s/base/kustomization.yaml",
        "k8s/base/network.yaml",
        "k8s/base/service.yaml",
        "k8s/base/settings.toml",
        "k8s/base/valkey.yaml",
        "k8s/overlays/production/kustomization.yaml",
    ],
    ("kubernetes", False): [],
    ("database", False): [],
}
FOLDERS = ("app/database/", "migrations/", "tests/database/", "tests/template/database/")
"""Folders of the option `database`: whatever is in them belongs to it."""
OPTION_FILES["database", True] = [
    *("alembic.ini", "docs/database.md", "monitoring/grafana/dashboards/database.json"),
    *(name for name in tree(ROOT / "template") if name.startswith(FOLDERS) and "__pycache__" not in name),
]


def test_updating_md_names_what_is_deleted_with_each_option(render: Render) -> None:
    page = (ROOT / "template/UPDATING.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)(?:=\w+)?` \| (`.*) \|$", page, re.MULTILINE)
    told = {(option, name) for option, names in rows for name in re.findall(r"`([^`]+)`", names)}
    assert {option for option, _ in told} == {option for option, _ in OPTION_FILES}
    needless = set(told)
    for on in ({"ci": "github"}, {"ci": "gitlab"}, {"container": True}, {"kubernetes": True}, {"database": True}):
        [option] = on
        off = {"ci": "none"} if option == "ci" else {option: False}
        every = {"kubernetes": True, "database": True}
        for file in tree(render(**every | on)).keys() - tree(render(**every | off)).keys():
            named = {name for of, name in told if of == option}
            names = {name for name in named if file == name or (name.endswith("/") and file.startswith(name))}
            assert names, f"{option}: {file}"
            needless -= {(option, name) for name in names}
    assert needless == set()


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_no_jinja_and_no_stub_file_is_left(source: Path, render: Render, answers: dict[str, str | bool]) -> None:
    from_jinja = {name.removesuffix(".jinja") for name in tree(source / "template") if name.endswith(".jinja")}
    for name, content in tree(render(**answers)).items():
        assert not re.search(r"[{}]|\.jinja$", name), name
        if name in from_jinja or name == ".copier-answers.yml":
            assert not re.search(rb"\{\{|\{%|\{#", content), name
        assert content == b"" or name.endswith(".png") or re.fullmatch(rb"\S.*\S\n", content, re.DOTALL), name


def test_python_is_the_same_in_every_project(source: Path, render: Render) -> None:
    python = {name: content for name, content in tree(source / "template").items() if name.endswith(".py")}
    assert python
    for answers in SHAPES.values():
        rendered = tree(render(**answers))
        expected = python if answers.get("database") else {k: v for k, v in python.items() if not k.startswith(FOLDERS)}
        assert {name: content for name, content in rendered.items() if name.endswith(".py")} == expected


def test_nothing_asks_for_trust() -> None:
    """Tasks, migrations and extensions run code on the user's machine."""
    assert not {"_tasks", "_migrations", "_jinja_extensions"} & set(configuration())


def test_python_in_the_template_holds_no_jinja(source: Path) -> None:
    for name, content in tree(source / "template").items():
        if name.endswith(".py"):
            assert "{" not in name
            assert not re.search(rb"\{%|\{\{", content), name


def test_every_file_of_the_template_is_rendered_or_belongs_to_an_option(source: Path, render: Render) -> None:
    rendered = set(tree(render()))
    optional = {name for names in OPTION_FILES.values() for name in names} | {"k8s/base/postgres.yaml"}
    named = {name.removesuffix(".jinja") for name in tree(source / "template")}
    assert named - {"{{_copier_conf.answers_file}}", POINTER} | {".copier-answers.yml"} == rendered | optional


@pytest.mark.parametrize("choice", OPTION_FILES, ids=lambda choice: f"{choice[0]}={choice[1]}")
def test_an_option_brings_its_files_and_no_others(render: Render, choice: tuple[str, str | bool]) -> None:
    question, answer = choice
    rendered = set(tree(render(**{question: answer})))
    for (other, value), names in OPTION_FILES.items():
        if other == question:
            for name in names:
                assert (name in rendered) == (value == answer), name


def test_what_working_in_the_template_leaves_behind_is_not_copied(source: Path, tmp_path: Path, render: Render) -> None:
    used = shutil.copytree(source, tmp_path / "used")
    for name in [".env", ".venv/x", "app/__pycache__/main.pyc", ".mypy_cache/x", ".pytest_cache/x", "uv.lock"]:
        (used / "template" / name).parent.mkdir(parents=True, exist_ok=True)
        (used / "template" / name).write_text("left\n")
    copier.run_copy(str(used), tmp_path / "project", defaults=True, quiet=True)
    assert set(tree(tmp_path / "project")) == set(tree(render()))


def test_a_copy_from_a_clone_without_tags_says_its_version(source: Path, tmp_path: Path) -> None:
    clone = shutil.copytree(source, tmp_path / "clone")
    run("git", "init", "--quiet", cwd=clone)
    run("git", "add", ".", cwd=clone)
    run("git", "-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "Work", cwd=clone)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    said = run(COPIER, "copy", "--defaults", clone, tmp_path / "project", cwd=tmp_path)
    assert f"\nAI backend is ready, from copier-ai-backend {version}. Start it" in said


def test_a_question_that_vanished_stops_the_copy(source: Path, tmp_path: Path) -> None:
    """Otherwise the files that hang on it would vanish too, without a word."""
    changed = shutil.copytree(source, tmp_path / "changed")
    questions = (changed / "copier.yml").read_text("utf-8")
    (changed / "copier.yml").write_text(questions.replace("\nci:\n", "\nformerly_ci:\n"), "utf-8")
    with pytest.raises(AssertionError, match="'ci' is undefined"):
        run(COPIER, "copy", "--defaults", changed, tmp_path / "project", cwd=tmp_path)


def test_this_repository_installs_what_a_project_depends_on(render: Render) -> None:
    """template/ runs and is checked where it stands, with exactly the libraries that a project asks for."""
    project = tomllib.loads((render(database=True) / "pyproject.toml").read_text())
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    wanted = set(project["project"]["dependencies"] + project["dependency-groups"]["dev"])
    assert wanted <= set(groups["template"]) | {item for item in groups["dev"] if isinstance(item, str)}
    assert set(groups["template"]) <= wanted


def test_what_speaks_to_models_knows_nothing_of_fastapi(source: Path) -> None:
    for path in (source / "template/app/llm").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.split(".")[0] == "fastapi"], path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "fastapi", path
