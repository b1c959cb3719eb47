"""The page's modules by themselves: the parser of server-sent events, and the code to copy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from browser.tab import KEY, MakeTab, Tab, behave
from workspace import ROOT, run

pytestmark = pytest.mark.xdist_group("browser")

STREAMS = {
    "LF": ("data: Grüße 👋\n\ndata:two\n\n", ["Grüße 👋", "two"]),
    "CRLF": ("data: one\r\n\r\ndata: two\r\n\r\n", ["one", "two"]),
    "CR": ("data: one\r\rdata: two\r\r", ["one", "two"]),
    "mixed ends": ("data: one\r\n\ndata: two\r\r\n", ["one", "two"]),
    "several lines": ("data: one\ndata: two\r\ndata\n\n", ["one\ntwo\n"]),
    "comments": (": ping\n\n:\ndata: one\n: inside\n\n", [": ping", ": ", ": inside", "one"]),
    "other fields": ("event: x\nid: 1\nretry: 5\nunknown: y\ndata: one\n\n", ["one"]),
    "only one blank is dropped": ("data:  one \n\n", [" one "]),
    "colons": ("data: a: b:c\n\n", ["a: b:c"]),
    "byte order mark": ("\ufeffdata: one\n\n", ["one"]),
    "no data, no event": ("event: x\n\n\n\n", []),
    "an unfinished event": ("data: one\n\ndata: two\n", ["one"]),
}
PARSE = """async ([bytes, size]) => {
  const { EventParser } = await import("/playground/sse.js");
  const parser = new EventParser();
  const events = [];
  for (let at = 0; at < bytes.length; at += size) {
    events.push(...parser.push(Uint8Array.from(bytes.slice(at, at + size))));
  }
  return events.map(({ data, comment }) => data ?? `: ${comment}`);
}"""
AWKWARD = 'It\'s "quoted": $HOME `id` \\n true, null\n\t{ \u2028 } 👋 %s'


@pytest.mark.parametrize(("stream", "events"), STREAMS.values(), ids=STREAMS)
def test_events_are_the_same_however_the_packets_fall(tab: MakeTab, stream: str, events: list[str]) -> None:
    page = tab().page
    sent = list(stream.encode())
    for size in range(1, len(sent) + 1):
        assert page.evaluate(PARSE, [sent, size]) == events, size


@pytest.mark.parametrize("line_end", ["lf", "crlf", "cr"])
def test_a_stream_is_read_from_small_packets_with_comments(tab: MakeTab, stub: Any, line_end: str) -> None:
    behave(stub, line_end=line_end, comments=True, packet=7)
    opened = tab()
    opened.ask("Hello")
    assert opened.page.locator(".answer").inner_text() == "Hello from the stub. Grüße, 世界! 👋"


def code(tab: Tab, form: str) -> str:
    """Return what the copy button puts on the clipboard."""
    tab.show(form)
    tab.page.locator("#copy").click()
    expect(tab.page.locator("#copied")).to_have_text("Copied")
    copied: str = tab.page.evaluate("navigator.clipboard.readText()")
    return copied


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with OpenAI's and Anthropic's JavaScript SDKs in it."""
    folder = shutil.copytree(ROOT / "tests/browser/openai", tmp_path_factory.mktemp("npm") / "openai")
    run(Path(sys.executable).with_name("npm"), "ci", "--no-audit", "--no-fund", cwd=folder)
    return folder


UV = [os.environ.get("UV", "uv"), "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable]
WITH_ANTHROPIC = [*UV, "--with", "anthropic==2.14.0", "python"]


@pytest.mark.parametrize("form", ["curl", "Python", "JavaScript"])
@pytest.mark.parametrize(
    ("server", "dialect"),
    [("dev", "Chat completions"), ("closed", "Chat completions"), ("closed", "Responses"), ("closed", "Messages")],
)
def test_copied_code_runs_as_it_stands(
    tab: MakeTab, stub: Any, sdk: Path, request: pytest.FixtureRequest, form: str, server: str, dialect: str
) -> None:
    opened = tab(request.getfixturevalue(server), permissions=["clipboard-read", "clipboard-write"])
    opened.page.select_option("#dialect", dialect)
    opened.page.fill("#key", KEY if server == "closed" else "")
    opened.page.fill("#system", AWKWARD)
    opened.page.locator("#offered").click()
    opened.page.fill("#tools", json.dumps([{"type": "function", "function": {"name": "f", "strict": None}}]))
    opened.page.fill("#temperature", "0.5")
    opened.ask(AWKWARD)
    (sdk / "chat.mjs").write_text(code(opened, form))
    command = {
        "curl": ["sh", "chat.mjs"],
        "Python": [*(WITH_ANTHROPIC if dialect == "Messages" else [sys.executable]), "chat.mjs"],
        "JavaScript": [str(Path(sys.executable).with_name("node")), "chat.mjs"],
    }[form]
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    done = subprocess.run(command, cwd=sdk, env=env | {"CALLER_KEY": KEY}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "世界" in done.stdout
    page, copied = stub.requests[-2:]
    assert copied.body == page.body
    assert page.body["messages"][-1]["content"] == AWKWARD


def test_without_a_clipboard_the_code_is_selected(tab: MakeTab) -> None:
    page = tab().page
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.locator("#copy").click()
    expect(page.locator("#copied")).to_contain_text("Selected")
    assert page.evaluate("String(getSelection())").startswith("curl --no-buffer")
