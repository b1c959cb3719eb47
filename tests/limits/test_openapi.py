"""What the OpenAPI page says is so: Schemathesis finds nothing in all that it makes up from it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from operations.servers import Process, Stub
from workspace import FULL_MATRIX

KEY = "key"
HOOKS = Path(__file__).with_name("model_names.py")


DIALECTS = "^/v1/(responses|messages)"
PATHS = {
    "all but the dialects": ("--exclude-path-regex", DIALECTS),
    # The page has no schema for a conversation's items: what fits the page may still be refused.
    "the dialects": ("--include-path-regex", DIALECTS, "--exclude-checks", "positive_data_acceptance"),
}
SELECTED = {"all but the dialects": "7 selected / 10 total", "the dialects": "3 selected / 10 total"}


RUNS = [("all but the dialects", 2), ("the dialects", 1)]
if FULL_MATRIX:
    RUNS += [("all but the dialects", 1), ("the dialects", 2)]


@pytest.mark.parametrize(("paths", "seed"), RUNS)
def test_schemathesis_finds_nothing_with_all_its_checks(tmp_path: Path, paths: str, seed: int) -> None:
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
                [program, "run", f"{server.url}/openapi.json", *checks, *PATHS[paths], *key, "--no-color"],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(HOOKS.parent), "SCHEMATHESIS_HOOKS": HOOKS.stem},
                text=True,
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert SELECTED[paths] in done.stdout
            assert not [line for line in server.lines if "unexpected" in line]
