"""llmprobe, which grades a server's chat, Responses and Messages, finds no fault on any way to a model."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import copier
import pytest

from clients.test_clients import HERE, KEY, TOOLS, _is_ready
from operations.servers import Program, free_port
from workspace import FULL_MATRIX, run

OWN = '''"""An own model that passes everything on to the demo model, which need not pause between its words here."""

from app.llm import demo

demo.PAUSE = 0


async def through(request, llm):
    fields = request.model_dump(exclude_unset=True, exclude={"model", "stream", "stream_options", "n"})
    async for chunk in llm.stream(model="demo", **fields):
        yield chunk


models = {"through": through}
'''
WAYS: dict[str, dict[str, Any]] = {
    "demo": {"upstream": "demo/echo"},
    "direct": {"upstream": "openai/demo"},
    "passed through": {"upstream": "openai/demo", "speaks": ["responses", "messages"]},
    "LiteLLM": {"upstream": "openai/demo", "protocol": "litellm"},
    "own": {"upstream": "own/through"},
}
"""Ways to the demo model. Some lead from the service to itself, as to any server that speaks OpenAI's protocol."""


@pytest.fixture(scope="module")
def served(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    project = tmp_path_factory.mktemp("probed") / "project"
    copier.run_copy(str(source), project, defaults=True, quiet=True)
    (project / "app/own.py").write_text(OWN, "utf-8")
    port = free_port()
    own = {"api_base": f"http://127.0.0.1:{port}/v1", "api_key_env": "SELF_KEY"}
    models = {name: row | (own if row["upstream"] == "openai/demo" else {}) for name, row in WAYS.items()}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "OPENAI_"))} | {
        "APP_PORT": str(port),
        "APP_MODELS": json.dumps(models),
        "APP_DEFAULT_MODEL": "demo",
        "APP_CALLERS": json.dumps({"test": {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}}),
        "APP_RETRIES": "0",
        "SELF_KEY": KEY,
    }
    with Program(sys.executable, "-m", "app", ready=lambda: _is_ready(port), cwd=project, env=env):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def llmprobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ignored = shutil.ignore_patterns("node_modules")
    folder = shutil.copytree(HERE / "ui", tmp_path_factory.mktemp("llmprobe") / "npm", ignore=ignored)
    trusting = os.environ | {"NODE_USE_SYSTEM_CA": "1"}
    run(TOOLS / "npm", "ci", "--no-audit", "--no-fund", cwd=folder, env=trusting)
    return folder / "node_modules/.bin/llmprobe"


@pytest.mark.skipif(not FULL_MATRIX, reason="as much work as all other clients: nightly")
@pytest.mark.parametrize("model", WAYS)
def test_a_model_conforms_in_every_dialect(served: str, llmprobe: Path, tmp_path: Path, model: str) -> None:
    options = ["-m", model, "-k", KEY, "--full", "--no-bench", "--no-save", "--json"]
    env = os.environ | {"HOME": str(tmp_path), "PATH": f"{TOOLS}:{os.environ['PATH']}"}
    output = run(llmprobe, served, *options, cwd=tmp_path, env=env)
    graded = json.loads(output)["conformance"]
    assert graded["passed"] == graded["total"], graded
    checks = {surface["surface"]: surface["total"] for surface in graded["bySurface"]}
    assert min(checks[dialect] for dialect in ("chat", "responses", "messages")) >= 75
