"""What the OpenAPI page says is so: Schemathesis finds nothing in all that it makes up from it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from operations.servers import Process, Stub

KEY = "key"
HOOKS = Path(__file__).with_name("model_names.py")


@pytest.mark.parametrize("seed", [1, 2])
def test_schemathesis_finds_nothing_with_all_its_checks(tmp_path: Path, seed: int) -> None:
    with Stub() as stub:
        models = {"stub": {"upstream": "openai/m", "api_base": f"{stub.url}/v1"}, "demo": {"upstream": "demo/echo"}}
        env = {
            "APP_MODELS": json.dumps(models),
            "APP_DEFAULT_MODEL": "stub",
            "APP_CALLERS": json.dumps({"web": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}}),
            "APP_API_DOCS": "true",
            "APP_MAX_TOKENS_LIMIT": str(2**200),  # a bound of the deployment, which the page can't know
        }
        with Process(env=env) as server:
            program = Path(sys.executable).with_name("schemathesis")
            checks = ("--checks", "all", "--max-examples", "60", "--seed", str(seed), "--continue-on-failure")
            key = ("--header", f"Authorization: Bearer {KEY}")
            done = subprocess.run(
                [program, "run", f"{server.url}/openapi.json", *checks, *key, "--no-color"],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(HOOKS.parent), "SCHEMATHESIS_HOOKS": HOOKS.stem},
                text=True,
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "7 selected / 7 total" in done.stdout
            assert not [line for line in server.lines if "unexpected" in line]
