"""No answer breaks a file, and every answer comes back from the files as it was given."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from workspace import Render

TEXTS = {
    "quotes": """She said "yes", and 'no', and "\"\"three\"\"".""",
    "backslashes": r"C:\new\table \u0041 \ \\",
    "a hash": "# no comment",
    "non-ASCII": "Grüße, 世界, שלום",
    "emoji": "👩‍💻🚀",
    "Jinja": "{{ 7*7 }} {% raw %} {# gone #}",
    "TOML": ']\n[models.evil]\nupstream = "demo/echo"',
    "YAML": "yes: &anchor [*, !tag |",
    "Markdown": "<!-- ```\n~~~ <script>",
    "blanks": "  two  ",
    "a number": "0123",
    "a date": "2026-11-24",
}

MODELS = ['"]\\#{{7*7}}', "true", "a.b.c", "ft:gpt-4o:org::{%x%}", "openai/'x'"]


def documents(project: Path) -> dict[str, object]:
    """Parse every TOML, YAML and JSON file of a project."""
    read: dict[str, Callable[[str], object]] = {
        ".toml": tomllib.loads,
        ".yml": yaml.safe_load,
        ".yaml": yaml.safe_load,
        ".json": json.loads,
    }
    files = [path for path in project.rglob("*") if path.suffix in read and path.is_file()]
    return {str(path.relative_to(project)): read[path.suffix](path.read_text("utf-8")) for path in files}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_name_and_a_description_come_back_as_they_were_given(render: Render, text: str) -> None:
    name = text.replace("\n", " ")
    project = render(project_name=name, description=text)

    files = documents(project)
    settings = tomllib.loads((project / "app/settings.toml").read_text("utf-8"))
    assert (settings["name"], settings["description"]) == (name, text)
    assert set(settings["models"]) == {"gpt-4o", "demo"}
    assert tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]["description"] == text
    answers = files[".copier-answers.yml"]
    assert isinstance(answers, dict)
    assert (answers["project_name"], answers["description"]) == (name, text)
    assert (project / "README.md").read_text("utf-8").startswith(f"# {name}\n")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_description_can_not_swallow_the_readme(render: Render, text: str) -> None:
    """It stands in a block quote, which ends whatever it opens."""
    readme = (render(description=text) / "README.md").read_text("utf-8")
    _, quoted, rest = readme.split("\n\n", 2)
    assert all(line.startswith("> ") for line in quoted.splitlines())
    assert rest.startswith("A service that speaks")


@pytest.mark.parametrize("model", MODELS)
def test_a_model_name_is_one_key_of_the_table(render: Render, model: str) -> None:
    project = render(default_model=model)
    documents(project)
    settings = tomllib.loads((project / "app/settings.toml").read_text("utf-8"))
    assert settings["default_model"] == model
    assert set(settings["models"]) == {model, "demo"}


def test_addresses_come_back_as_they_were_given(render: Render) -> None:
    address = """https://llm.example/a"b'c\\d#e?f={{7*7}}"""
    project = render(api_base=address, package_index=address)
    documents(project)
    settings = tomllib.loads((project / "app/settings.toml").read_text("utf-8"))
    assert settings["models"]["gpt-4o"]["api_base"] == address
    index = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["tool"]["uv"]["index"]
    assert index == [{"name": "company", "url": address, "default": True}]


@pytest.mark.parametrize(
    ("answer", "origins"),
    [
        ("*", ["*"]),
        ("", []),
        ("https://a.example , http://localhost:5173", ["https://a.example", "http://localhost:5173"]),
    ],
)
def test_origins_become_a_list(render: Render, answer: str, origins: list[str]) -> None:
    settings = tomllib.loads((render(cors_origins=answer) / "app/settings.toml").read_text("utf-8"))
    assert settings["cors_origins"] == origins


@pytest.mark.parametrize(
    ("answers", "entry"),
    [
        ({}, {"upstream": "openai/gpt-4o", "defaults": {"temperature": 0.7, "max_tokens": 1024}}),
        ({"default_model": "gpt-5"}, {"upstream": "openai/gpt-5"}),
        ({"default_model": "openai/gpt-4o"}, {"upstream": "openai/gpt-4o"}),
        ({"default_model": "anthropic/claude-sonnet-4-5"}, {"upstream": "anthropic/claude-sonnet-4-5"}),
        (
            {"api_base": "http://vllm:8000/v1"},
            {"upstream": "openai/gpt-4o", "protocol": "openai", "api_base": "http://vllm:8000/v1"},
        ),
        (
            {"api_base": "http://vllm:8000/v1", "default_model": "openai/gpt-oss-20b"},
            {"upstream": "openai/openai/gpt-oss-20b", "protocol": "openai", "api_base": "http://vllm:8000/v1"},
        ),
        (
            {"api_base": "http://vllm:8000", "default_model": "hosted_vllm/Qwen/Qwen3-8B"},
            {"upstream": "hosted_vllm/Qwen/Qwen3-8B", "protocol": "openai", "api_base": "http://vllm:8000"},
        ),
    ],
)
def test_the_default_model_leads_to_the_named_provider(
    render: Render, answers: dict[str, str], entry: dict[str, object]
) -> None:
    settings = tomllib.loads((render(**answers) / "app/settings.toml").read_text("utf-8"))
    name = answers.get("default_model", "gpt-4o")
    assert settings["default_model"] == name
    assert settings["models"] == {name: entry, "demo": {"upstream": "demo/echo"}}
