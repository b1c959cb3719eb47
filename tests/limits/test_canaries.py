"""A canary in every secret and every prompt, through every fault of a provider: a whole process gives none away."""

import importlib
import json
from typing import Any

import pytest

from operations.servers import Process, Stub
from workspace import FULL_MATRIX

leaks: Any = importlib.import_module("tests.template.leaks")
FAULTS: dict[str, Any] = importlib.import_module("tests.template.faults").FAULTS


@pytest.mark.parametrize("log_format", ["console", "json"] if FULL_MATRIX else ["json"])
def test_a_process_gives_no_secret_and_no_prompt_away(log_format: str) -> None:
    with Stub() as stub:
        settings = leaks.settings(stub) | {"log_format": log_format}
        env = {
            f"APP_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in settings.items()
        }
        with Process(env=env | leaks.environment(stub) | {"LITELLM_LOG": "DEBUG"}) as process:
            process.wait_until_ready()
            answers = list(leaks.walk(process.url, stub, FAULTS.values()))
            process.terminate()
            assert process.wait(30) == 0
    assert len(answers) > 250
    assert sum("path=" in line or '"path":' in line for line in process.lines) >= len(answers)
    for text in [*answers, *process.lines]:
        assert leaks.CANARY not in text
        assert leaks.PROMPT not in text
