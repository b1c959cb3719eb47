"""Settings come from five sources, and a mistake in any of them is told in one sentence."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from app.config import ModelEntry, Settings, SettingsError
from app.environment import load_settings
from app.llm.upstreams import Upstreams
from app.main import create_app
from tests.serving import PROJECT

CANARY = "sk-canary-0123456789"
DEMO = {"demo": {"upstream": "demo/echo"}}

Write = Callable[[str], None]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Give back the process's environment, which `.env` is read into."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def settings_file(tmp_path: Path) -> Write:
    """Write the file that stands for `app/settings.toml`."""

    def write(text: str) -> None:
        path = tmp_path / "settings.toml"
        path.write_text(text, "utf-8")
        os.environ["APP_SETTINGS_FILE"] = str(path)

    return write


@pytest.fixture
def env_file(tmp_path: Path) -> Write:
    """Write the file that stands for `.env`."""

    def write(text: str) -> None:
        path = tmp_path / "env"
        path.write_text(text, "utf-8")
        os.environ["APP_ENV_FILE"] = str(path)

    return write


def refusal() -> str:
    """Load the settings; return the sentence that refuses them."""
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_any_source_there_are_gpt_4o_and_the_demo_model_and_no_caller() -> None:
    settings = load_settings()
    assert settings.default_model == "gpt-4o"
    assert settings.models == {
        "gpt-4o": ModelEntry(upstream="openai/gpt-4o", defaults={"temperature": 0.7, "max_tokens": 1024}),
        "demo": ModelEntry(upstream="demo/echo"),
    }
    assert settings.callers == {}
    assert not settings.dev
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.cors_origins, settings.cors_credentials) == (["*"], False)
    assert settings.max_tokens_limit == 131072


def test_a_stronger_source_wins_over_each_weaker_one(settings_file: Write, env_file: Write) -> None:
    assert load_settings().port == 8000
    settings_file("port = 1")
    assert load_settings().port == 1
    env_file("APP_PORT=2")
    assert load_settings().port == 2
    os.environ["APP_PORT"] = "3"
    assert load_settings().port == 3
    assert load_settings(port=4).port == 4


def test_one_value_of_a_group_leaves_the_others_to_weaker_sources(settings_file: Write) -> None:
    settings_file("[timeouts]\nidle = 5\ntotal = 6")
    os.environ["APP_TIMEOUTS__IDLE"] = "7"
    timeouts = load_settings().timeouts
    assert (timeouts.connect, timeouts.idle, timeouts.total) == (10, 7, 6)


def test_env_file_goes_into_the_environment_and_overrides_nothing(env_file: Write) -> None:
    os.environ["OPENAI_API_KEY"] = "from the environment"
    env_file("OPENAI_API_KEY=from the file\nANTHROPIC_API_KEY=also from the file\nAPP_NAME=Ours\n")
    assert load_settings().name == "Ours"
    assert os.environ["OPENAI_API_KEY"] == "from the environment"
    assert os.environ["ANTHROPIC_API_KEY"] == "also from the file"


def test_env_file_refers_to_the_value_that_is_in_force(env_file: Write) -> None:
    os.environ["VLLM_HOST"] = "vllm:8000"
    env_file("VLLM_HOST=localhost:8000\nOPENAI_BASE_URL=http://${VLLM_HOST}/v1\n")
    load_settings()
    assert os.environ["OPENAI_BASE_URL"] == "http://vllm:8000/v1"


def test_env_file_is_read_by_the_loader_alone(env_file: Write) -> None:
    env_file("APP_NAME=Ours\nOPENAI_API_KEY=ours\n")
    assert Settings().name == "AI backend"
    settings = load_settings()
    del os.environ["OPENAI_API_KEY"]
    create_app(settings)
    assert "OPENAI_API_KEY" not in os.environ


def test_settings_file_names_another_file(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('name = "Other"')
    os.environ["APP_SETTINGS_FILE"] = str(path)
    assert load_settings().name == "Other"


def test_a_settings_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    os.environ["APP_SETTINGS_FILE"] = str(tmp_path / "gone.toml")
    assert refusal() == f"APP_SETTINGS_FILE names {tmp_path / 'gone.toml'}, which is no file"


@pytest.mark.parametrize(
    "given",
    [
        "https://a.example,https://b.example",
        " https://a.example , https://b.example ,",
        '["https://a.example", "https://b.example"]',
    ],
)
def test_a_list_is_read_from_commas_and_from_json(given: str) -> None:
    os.environ["APP_CORS_ORIGINS"] = given
    assert load_settings().cors_origins == ["https://a.example", "https://b.example"]


@pytest.mark.parametrize(("given", "read"), [("*", ["*"]), ("[]", []), ("", ["*"])])
def test_a_list_of_one_of_none_and_an_empty_variable(given: str, read: list[str]) -> None:
    os.environ["APP_CORS_ORIGINS"] = given
    assert load_settings().cors_origins == read


def test_app_models_replaces_the_table(settings_file: Write) -> None:
    settings_file('default_model = "demo"\n[models.a]\nupstream = "demo/echo"\n[models.b]\nupstream = "demo/echo"')
    os.environ["APP_MODELS"] = json.dumps(DEMO)
    assert set(load_settings().models) == {"demo"}


def test_app_callers_replaces_the_table(settings_file: Write) -> None:
    settings_file(f'[callers.a]\nkey_sha256 = "{"0" * 64}"')
    assert set(load_settings().callers) == {"a"}
    os.environ["APP_CALLERS"] = json.dumps({"b": {"key_sha256": ["1" * 64, "2" * 64]}})
    assert set(load_settings().callers) == {"b"}


def test_port_counts_where_app_port_is_unset(settings_file: Write) -> None:
    settings_file("port = 1")
    os.environ["PORT"] = "2"
    assert load_settings().port == 2
    os.environ["APP_PORT"] = "3"
    assert load_settings().port == 3


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("APP_DEFALT_MODEL", "APP_DEFAULT_MODEL"),
        ("APP_TIMEOUTS__IDEL", "APP_TIMEOUTS__IDLE"),
        ("app_cors_orgins", "APP_CORS_ORIGINS"),
        ("APP_MODEL", "APP_MODELS"),
        ("APP_SETTING_FILE", "APP_SETTINGS_FILE"),
    ],
)
def test_a_misspelt_variable_stops_with_the_nearest_name(variable: str, meant: str) -> None:
    os.environ[variable] = "x"
    assert refusal() == f"{variable} is not a setting; did you mean {meant}?"


def test_a_misspelt_variable_in_env_file_stops_too(env_file: Write) -> None:
    env_file("APP_DEFALT_MODEL=demo")
    assert "did you mean APP_DEFAULT_MODEL?" in refusal()


def test_a_variable_that_is_near_no_setting_is_told_at_start(capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["APP_REDIS_SERVICE_HOST"] = "10.0.0.1"
    with TestClient(create_app(load_settings())):
        pass
    [line] = [line for line in capsys.readouterr().out.splitlines() if "warning" in line and "APP_" in line]
    assert "APP_REDIS_SERVICE_HOST" in line


@pytest.mark.parametrize(
    ("text", "name", "meant"),
    [
        ('defalt_model = "demo"', "defalt_model", "default_model"),
        ("[timeouts]\nidel = 5", "timeouts.idel", "idle"),
        ('[models.demo]\nupstrem = "demo/echo"', "models.demo.upstrem", "upstream"),
        (f'[callers.web]\nkey_sha265 = "{"0" * 64}"', "callers.web.key_sha265", "key_sha256"),
    ],
)
def test_a_misspelt_key_of_the_file_stops_with_the_nearest_name(
    settings_file: Write, text: str, name: str, meant: str
) -> None:
    settings_file(text)
    assert f"{name} is not a setting; did you mean {meant}?" in refusal()


@pytest.mark.parametrize("table", ["APP_MODELS", "APP_CALLERS"])
def test_a_row_of_a_table_can_not_be_set_by_a_variable(table: str) -> None:
    os.environ[f"{table}__X__UPSTREAM"] = "demo/echo"
    assert refusal() == f"{table}__X__UPSTREAM: set this table as one JSON value, {table}"


@pytest.mark.parametrize("text", ["port = ", "[models", 'name = "x', "port = 1\nport = 2"])
def test_malformed_toml_is_told_with_its_place(settings_file: Write, text: str) -> None:
    settings_file(text)
    assert re.search(r"settings\.toml is not valid TOML: .*\(at (line \d|end of document)", refusal())


def test_malformed_json_is_told_with_its_variable() -> None:
    os.environ["APP_MODELS"] = f'["{CANARY}'
    assert refusal() == "APP_MODELS is not valid JSON"


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("APP_PORT", "70000", "port"),
        ("APP_LOG_LEVEL", "loud", "log_level"),
        ("APP_TIMEOUTS__IDLE", "0", "timeouts.idle"),
        ("APP_CORS_ORIGINS", "https://a.example https://b.example", "cors_origins"),
        ("APP_CORS_ORIGINS", '["https://a.example"', "cors_origins"),
        ("APP_MODELS", '{"x": {"upstream": "x", "api_base": "localhost:8000"}}', "models.x.api_base"),
    ],
)
def test_a_value_out_of_bounds_is_told_with_its_name(variable: str, value: str, name: str) -> None:
    os.environ[variable] = value
    assert refusal().startswith(f"setting {name}: ")


def test_credentials_from_any_origin_are_refused() -> None:
    os.environ["APP_CORS_CREDENTIALS"] = "true"
    assert refusal() == 'cors_credentials needs cors_origins by name, not "*"'


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"default_model": "gone"}, "default_model 'gone' has no [models.\"gone\"]"),
        ({"models": {"demo": {"upstream": "demo/echo", "fallbacks": ["gone"]}}}, "models.demo.fallbacks names 'gone'"),
        ({"callers": {"web": {"key_sha256": "0" * 64, "models": ["gone"]}}}, "callers.web.models names 'gone'"),
    ],
    ids=["default", "fallback", "caller"],
)
def test_a_model_that_is_not_in_the_table_is_named(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**{"models": DEMO, "default_model": "demo"} | given)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("APP_CALLERS", json.dumps({"web": {"key_sha256": CANARY}})),
        ("APP_CALLERS", f"[{CANARY}"),
        ("APP_MODELS", json.dumps({"x": {"upstream": "x", "api_base": f"me:{CANARY}@server"}})),
        ("APP_LIMIT_STORAGE", f"valkey://me:{CANARY}@server"),
        ("APP_PORT", CANARY),
    ],
)
def test_no_error_prints_what_was_given(variable: str, value: str) -> None:
    os.environ[variable] = value
    assert CANARY not in refusal()


def test_no_error_in_the_file_prints_what_was_given(settings_file: Write) -> None:
    settings_file(f"[callers.web]\nkey_sha256 = {CANARY}")
    assert CANARY not in refusal()


def test_no_error_of_pydantics_own_prints_what_was_given() -> None:
    callers: Any = {"web": {"key_sha256": CANARY}}
    with pytest.raises(ValidationError) as caught:
        Settings(callers=callers)
    assert CANARY not in str(caught.value)


def test_a_password_in_a_setting_is_in_no_repr() -> None:
    os.environ["APP_LIMIT_STORAGE"] = f"async+valkey://me:{CANARY}@server"
    settings = load_settings()
    assert CANARY in settings.limit_storage
    assert CANARY not in f"{settings!r} {settings}"


def test_a_provider_key_is_in_no_repr() -> None:
    os.environ["OPENAI_API_KEY"] = CANARY
    os.environ["HTTPS_PROXY"] = f"http://me:{CANARY}@proxy"
    target = Upstreams(load_settings()).targets["gpt-4o"]
    assert target.key == CANARY
    assert target.proxy
    assert CANARY in target.proxy
    assert CANARY not in f"{target!r} {target}"


def test_the_app_is_made_in_an_empty_environment() -> None:
    without_files = {"APP_SETTINGS_FILE": os.devnull, "APP_ENV_FILE": ""}
    code = "from app.main import app; print(app.title)"
    made = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code], cwd=PROJECT, env=without_files, capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stdout, made.stderr) == (0, "AI backend\n", "")
