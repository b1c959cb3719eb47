"""Coding agents, set up as docs/clients.md says: each runs a shell command, sees its result, and finishes."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from platform import machine
from typing import Any

import pytest

from clients.test_clients import HERE, KEY, TOOLS, Backend, backend, stubs
from workspace import FULL_MATRIX, ROOT, run

__all__ = ["backend", "stubs"]

pytestmark = [
    pytest.mark.skipif(not FULL_MATRIX, reason="1.2 GB of programs: nightly"),
    pytest.mark.skipif((sys.platform, machine()) != ("linux", "x86_64"), reason="programs for one kind of machine"),
]
SECTION = (
    (ROOT / "template/docs/clients.md").read_text("utf-8").partition("\n## Coding agents\n")[2].partition("\n## ")[0]
)
CODEX_TOML, CODEX, CLAUDE, OPENCODE_JSON, OPENCODE, CLINE = re.findall(r"```\w+\n(.*?)\n```", SECTION, re.DOTALL)
BUILT_IN = "-c openai_base_url=http://127.0.0.1:8000/v1 -m gpt-4o"
"""Codex's own provider, which tries a WebSocket first."""
ALONE = "exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox"
COMMANDS = {
    "codex": f"{CODEX} {ALONE} 'Write the file.'",
    "codex with a WebSocket": f"{CODEX} {ALONE} {BUILT_IN} 'Write the file.'",
    "claude": f"{CLAUDE} -p 'Write the file.' --allowedTools Bash",
    "opencode": f"{OPENCODE} --auto 'Write the file.'",
    "opencode as openai": f"{OPENCODE.replace('app/', 'openai/')} --auto 'Write the file.'",
    "opencode as anthropic": f"{OPENCODE.replace('app/', 'anthropic/')} --auto 'Write the file.'",
    "cline": f"{CLINE} --timeout 100 'Write the file.'",
}
"""The page's commands, and what makes each do one task without asking anybody."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where npm has put the agents' own programs, under the names that one types."""
    folder = shutil.copytree(HERE / "agents", tmp_path_factory.mktemp("agents") / "npm")
    trusting = os.environ | {"NODE_USE_SYSTEM_CA": "1"}
    run(TOOLS / "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder, env=trusting)
    modules = folder / "node_modules"
    for name, pattern in {
        "claude": "@anthropic-ai/claude-code-linux-*/claude",
        "opencode": "opencode-linux-*/bin/opencode",
        "cline": "@cline/cli-linux-*/bin/cline",
    }.items():
        for program in modules.glob(pattern):
            program.chmod(0o755)
            (modules / ".bin" / name).unlink(missing_ok=True)
            (modules / ".bin" / name).symlink_to(program)
    return modules / ".bin"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_coding_agent_runs_a_tool_and_finishes(
    backend: Backend, stubs: dict[str, Any], programs: Path, tmp_path: Path, name: str
) -> None:
    def here(text: str) -> str:
        there = {"http://127.0.0.1:8000/v1": backend[0], "http://127.0.0.1:8000": backend[0].removesuffix("/v1")}
        for old, new in (there | {"gpt-4o": "agent"}).items():
            text = text.replace(old, new)
        return text

    home = tmp_path / "home"
    (home / ".codex").mkdir(parents=True)
    if name == "codex":
        (home / ".codex/config.toml").write_text(here(CODEX_TOML))
    setup = json.loads(here(OPENCODE_JSON))
    if " as " in name:
        setup["provider"] = {name.rpartition(" ")[2]: setup["provider"]["app"]}
        for provider in setup["provider"].values():
            del provider["npm"]
    (tmp_path / "opencode.json").write_text(json.dumps(setup))
    ours = ("OPENAI_", "ANTHROPIC_", "CLAUDE", "CODEX", "XDG_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"HOME": str(home), "IS_SANDBOX": "1", "APP_KEY": KEY, "PATH": f"{programs}:{TOOLS}:{os.environ['PATH']}"}
    env |= {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "CODEX_API_KEY": KEY}
    env |= {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    output = run("sh", "-ec", here(COMMANDS[name]), cwd=tmp_path, env=env)
    assert "Sunny." in output
    assert (tmp_path / "proof.txt").read_text() == "written by the agent\n"
    *_, last = (request.body["messages"][-1] for request in stubs["agent"].requests)
    assert last["role"] == "tool"
