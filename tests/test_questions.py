"""What the questions accept, and how they refuse."""

import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from workspace import Render, questions, tree

QUESTIONS = questions()

NAME = "Leave control characters and line breaks out of the name."
SLUG = "Use ASCII letters and digits, with dots, dashes and underscores between them."
DESCRIPTION = "Leave control characters out of the description."
ADDRESS = "Give an address such as http://localhost:8001/v1, without a user, a password or blanks."
ORIGIN = "An origin is * or scheme://host[:port], in lower case and without a path."
INDEX = "Give an address such as https://pypi.example.com/simple, without a user, a password or blanks."

REFUSED = [
    ("project_name", "", "Give the project a name."),
    ("project_name", " \t ", "Give the project a name."),
    ("project_name", "two\nlines", NAME),
    ("project_name", "bell\a", NAME),
    ("project_name", "separator\u2028", NAME),
    ("project_slug", "", SLUG),
    ("project_slug", "-backend", SLUG),
    ("project_slug", "my backend", SLUG),
    ("project_slug", "bäckend", SLUG),
    ("project_slug", "backend\n", SLUG),
    ("project_slug", "Prometheus_Client", "The project needs the library of that name, so it can't have it itself."),
    ("description", "escape\x1b[31m", DESCRIPTION),
    ("description", "return\r", DESCRIPTION),
    ("description", "half a character \ud83d", DESCRIPTION),
    ("description", "delete\x7f", DESCRIPTION),
    ("api_base", "localhost:8001", ADDRESS),
    ("api_base", "https://user:secret@llm.example/v1", ADDRESS),
    ("api_base", "https://llm.example/a b", ADDRESS),
    ("api_base", "https://llm.example/v1\n", ADDRESS),
    ("default_model", "", "Give the model's name, without blanks."),
    ("default_model", "gpt 4o", "Give the model's name, without blanks."),
    ("default_model", "gpt-4o\n", "Give the model's name, without blanks."),
    ("default_model", "demo", "The demo model is built in; name a real one."),
    ("default_model", "anthropic/", "Give the model's name as provider/model."),
    ("default_model", "claude-sonnet-4-5", "Name the vendor too, as in anthropic/claude-sonnet-4-5."),
    ("default_model", "Gemini-3-pro", "Name the vendor too, as in anthropic/claude-sonnet-4-5."),
    ("cors_origins", "example.com", ORIGIN),
    (
        "cors_origins",
        "https://example.com/",
        ORIGIN,
    ),
    (
        "cors_origins",
        "https://a.example,,*",
        ORIGIN,
    ),
    (
        "cors_origins",
        "https://Example.com",
        ORIGIN,
    ),
    ("package_index", "pypi.example.com", INDEX),
    ("package_index", "https://me:secret@pypi.example.com/simple", INDEX),
    ("ci", "jenkins", "Invalid choice"),
]

ACCEPTED = [
    ("project_slug", "My.Back_end-2"),
    ("project_slug", "x"),
    ("description", ""),
    ("description", "two\nlines"),
    ("api_base", "http://127.0.0.1:8001"),
    ("api_base", "http://[::1]:8001/v1"),
    ("default_model", "bedrock/arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.claude-v1:0"),
    ("default_model", "hosted_vllm/Qwen/Qwen3-8B"),
    ("cors_origins", ""),
    ("cors_origins", "https://a.example, http://localhost:5173 ,capacitor://localhost, http://[::1]:3000"),
    ("package_index", "https://pypi.example.com/simple"),
]


@pytest.mark.parametrize(("question", "answer", "message"), REFUSED)
def test_a_wrong_answer_is_refused_with_a_sentence(render: Render, question: str, answer: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - Copier's own, and its text is what is tested
        render(**{question: answer})
    assert message in str(refusal.value)


@pytest.mark.parametrize(("question", "answer"), ACCEPTED)
def test_an_unusual_answer_is_taken(render: Render, question: str, answer: str) -> None:
    project = render(**{question: answer})
    assert yaml.safe_load((project / ".copier-answers.yml").read_text())[question] == answer


def test_each_question_has_help_a_default_and_a_check() -> None:
    for name, question in QUESTIONS.items():
        assert question["help"].strip(), name
        assert "default" in question, name
        assert "validator" in question or "choices" in question or question["type"] == "bool", name
    assert len(QUESTIONS) <= 11


@pytest.mark.parametrize("question", [name for name in QUESTIONS if "validator" in QUESTIONS[name]])
def test_each_validator_is_seen_to_refuse(question: str) -> None:
    assert question in {name for name, _, _ in REFUSED}


@pytest.mark.parametrize(
    ("name", "slug"),
    [("Ask Me 2!", "ask-me-2"), ("--Backend--", "backend"), ("Помощник", "ai-backend"), ("R&D's bot", "r-d-s-bot")],
)
def test_the_slug_is_derived_from_the_name(render: Render, name: str, slug: str) -> None:
    answers = yaml.safe_load((render(project_name=name) / ".copier-answers.yml").read_text())
    assert answers["project_slug"] == slug


def test_a_name_of_another_vendor_is_fine_on_a_server_of_ones_own(render: Render) -> None:
    project = render(api_base="https://api.deepseek.com/v1", default_model="deepseek-chat")
    assert '[models."deepseek-chat"]' in (project / "app/settings.toml").read_text()


def test_a_dependency_of_the_project_is_no_name_for_it(render: Render) -> None:
    """uv would take the project itself for the library, and install nothing."""
    rendered = tomllib.loads((render() / "pyproject.toml").read_text())
    for requirement in rendered["project"]["dependencies"] + rendered["dependency-groups"]["dev"]:
        library = requirement.replace("[", ">").split(">")[0]
        with pytest.raises(ValueError, match="The project needs the library of that name"):
            render(project_slug=library)


def test_enter_at_every_question_gives_the_default_project(source: Path, tmp_path: Path, render: Render) -> None:
    """The questions are asked on a terminal, where every help text is rendered."""
    copier = Path(sys.executable).with_name("copier")
    terminal, far_end = pty.openpty()
    copying = subprocess.Popen(
        [copier, "copy", source, tmp_path / "asked"], stdin=far_end, stdout=far_end, stderr=far_end, close_fds=True
    )
    os.close(far_end)
    seen = b""
    try:
        for question in QUESTIONS.values():
            words = question["help"].split("{")[0].split()[:3]
            while " ".join(words).encode() not in seen:
                seen += os.read(terminal, 65536)
            os.write(terminal, b"\r")
            seen = b""
        while chunk := _read(terminal):
            seen += chunk
            if "🎤".encode() in chunk:  # a fork may ask more (docs/forking.md)
                os.write(terminal, b"\r")
        assert copying.wait(30) == 0, seen.decode()
    finally:
        copying.kill()
        os.close(terminal)
    assert tree(tmp_path / "asked") == tree(render())


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports the end of a terminal as an error
        return b""
