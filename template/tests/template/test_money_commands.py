"""`python -m app prices` writes prices into the settings file; `python -m app spend` shows what is spent."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import main
from app.access import price_list, spend
from app.access.price_list import proposed
from app.access.windows import Window
from app.config import ModelEntry

SETTINGS = """\
# Ours.
default_model = "gpt-4o"  # the usual

[models."gpt-4o"]
upstream = "openai/gpt-4o" # at OpenAI
defaults = { max_tokens = 10 }

[models.dear]
  price = { input = 1, output = 2 }   # by contract
upstream = "vendor/dear"

# The last one.
[models.demo]
upstream = "demo/echo"
"""
LISTED: dict[str, Any] = {
    "gpt-4o": {
        "litellm_provider": "openai",
        "input_cost_per_token": 2.5e-06,
        "input_cost_per_token_priority": 4.25e-06,
        "cache_read_input_token_cost": 1.25e-06,
        "output_cost_per_token": 1e-05,
    },
    "vendor/dear": {
        "litellm_provider": "vendor",
        "input_cost_per_token": 1.25e-06,
        "input_cost_per_token_above_200k_tokens": 2.5e-06,
        "cache_creation_input_token_cost": 3e-06,
        "output_cost_per_token": 1e-05,
        "output_cost_per_token_above_200k_tokens": 1.5e-05,
        "output_cost_per_reasoning_token": 2e-05,
        "input_cost_per_image": 0.0003,
    },
    "small": {"litellm_provider": "openai", "mode": "embedding", "input_cost_per_token": 2e-08},
    "half": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 2e-08},
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text(SETTINGS)
    for name, value in {"APP_SETTINGS_FILE": str(file), "APP_ENV_FILE": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(price_list, "price_list", lambda: LISTED)
    return file


def test_prices_are_written_into_their_rows_and_nothing_else_changes(file: Path) -> None:
    assert main(["prices"]) == 0
    expected = SETTINGS.replace(
        '[models."gpt-4o"]\n', '[models."gpt-4o"]\nprice = { input = 2.5, cached = 1.25, output = 10 }\n'
    ).replace(
        "  price = { input = 1, output = 2 }   # by contract\n",
        "price = { input = 2.5, cache_write = 3, output = 15, reasoning = 20, image = 0.0003 }\n",
    )
    assert file.read_text() == expected
    assert main(["prices", "--check"]) == 0


def test_prices_go_into_the_file_that_the_env_file_names(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(f"APP_SETTINGS_FILE={file}\n")
    monkeypatch.delenv("APP_SETTINGS_FILE")
    monkeypatch.setenv("APP_ENV_FILE", str(tmp_path / ".env"))
    assert main(["prices"]) == 0
    assert "price = { input = 2.5, cached = 1.25, output = 10 }" in file.read_text()


def test_check_tells_what_differs_and_writes_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "--check"]) == 1
    assert file.read_text() == SETTINGS
    dear = "price = { input = 2.5, cache_write = 3, output = 15, reasoning = 20, image = 0.0003 }"
    assert capsys.readouterr().out.splitlines() == [
        "gpt-4o: price = { input = 2.5, cached = 1.25, output = 10 }",
        f"dear: {dear}" + " (it was: price = { input = 1, output = 2 })",
    ]


def test_prices_of_the_models_that_are_named_alone_are_written(file: Path) -> None:
    assert main(["prices", "gpt-4o"]) == 0
    assert "input = 1, output = 2 }   # by contract" in file.read_text()
    assert main(["prices", "--check", "gpt-4o"]) == 0


@pytest.mark.parametrize(
    "rows",
    [
        'models = { "gpt-4o" = { upstream = "openai/gpt-4o" } }\n',
        '[models]\n"gpt-4o" = { upstream = "openai/gpt-4o" }\n',
    ],
)
def test_a_row_that_is_written_otherwise_is_told_to_be_edited_by_hand(
    file: Path, capsys: pytest.CaptureFixture[str], rows: str
) -> None:
    file.write_text(rows)
    assert main(["prices"]) == 0
    assert "Add this to its row: price = { input = 2.5" in capsys.readouterr().out
    assert file.read_text() == rows


def test_a_file_that_an_edit_would_break_is_left_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '[models."gpt-4o"]\nupstream = "openai/gpt-4o"\n[models."gpt-4o".price]\ninput = 1\noutput = 1\n'
    file.write_text(text)
    assert main(["prices"]) == 1
    assert "by hand" in capsys.readouterr().err
    assert file.read_text() == text


def test_lines_keep_their_ends(file: Path) -> None:
    file.write_bytes(SETTINGS.replace("\n", "\r\n").encode())
    assert main(["prices"]) == 0
    assert b"\n" not in file.read_bytes().replace(b"\r\n", b"")


def test_what_the_list_does_not_know_is_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('default_model = "x"\n[models.x]\nupstream = "nobody/x"\n')
    assert main(["prices", "--check"]) == 0
    assert "no price for nobody/x. Write one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "price"),
    [
        ({"upstream": "openai/small"}, {"input": 0.02}),
        ({"upstream": "small"}, {"input": 0.02}),
        ({"upstream": "openai/half"}, None),
        ({"upstream": "other/gpt-4o"}, None),
    ],
    ids=str,
)
def test_a_price_is_that_of_the_models_own_vendor(row: dict[str, Any], price: Any) -> None:
    assert proposed({"m": ModelEntry(**row)}, LISTED) == {"m": price}


@pytest.mark.parametrize(
    "row", [{"upstream": "demo/echo"}, {"upstream": "own/m"}, {"upstream": "gpt-4o", "api_base": "http://vllm:8000/v1"}]
)
def test_a_model_that_no_vendor_sells_gets_no_price(row: dict[str, Any]) -> None:
    assert proposed({"m": ModelEntry(**row)}, LISTED) == {}


def test_the_list_is_read_without_importing_litellm(file: Path) -> None:
    program = "import sys\nfrom app.__main__ import main\nmain(['prices'])\nassert 'litellm' not in sys.modules\n"
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ, check=True)  # noqa: S603 - ours
    assert tomllib.loads(file.read_text())["models"]["gpt-4o"]["price"]["input"] > 0


# What is spent.

BUDGETS = {
    "APP_CALLERS": json.dumps({"web": {"key_sha256": "0" * 64, "usd_per_day": 5, "usd_per_month": 50}}),
    "APP_USD_PER_MONTH": "200",
    "APP_LIMIT_STORAGE": "async+valkey://host",
}


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    class Storage:
        def __init__(self, *_: object) -> None: ...
        async def read(self, windows: list[Window]) -> list[int]:
            return [1_250_000 for _ in windows]

        async def close(self) -> None: ...

    monkeypatch.setattr(spend, "SharedStorage", Storage)
    for name, value in BUDGETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("file", "budgets")
@pytest.mark.parametrize(
    ("arguments", "names"), [([], ["caller web"] * 2 + ["service al"]), (["--caller", "web"], ["caller web"] * 2)]
)
def test_spend_shows_each_budget(capsys: pytest.CaptureFixture[str], arguments: list[str], names: list[str]) -> None:
    assert main(["spend", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10].strip() for line in lines] == names
    assert "1.250000 of 5.00 USD    25%  until 20" in lines[0]


@pytest.mark.usefixtures("file", "budgets")
def test_spend_says_what_it_can_not_show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["spend", "--caller", "nobody"]) == 1
    assert "no budget is set here" in capsys.readouterr().err
    monkeypatch.setenv("APP_LIMIT_STORAGE", "async+memory://")
    assert main(["spend"]) == 1
    assert "the memory of each process" in capsys.readouterr().err
