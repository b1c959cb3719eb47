"""The page as a test sees it, and the provider behind it."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Page, expect

from workspace import ROOT

# The template's own tests bring the provider. Their package is called `tests`, which the folder of these tests is not.
sys.path.append(str(ROOT / "template"))
Stub = importlib.import_module("tests.stub").Stub
Behaviour = importlib.import_module("tests.stub").Behaviour

KEY = "sk-app-browser"


def behave(stub: Any, **fields: Any) -> None:
    """Tell the provider how to answer from now on: well, but for the fields given."""
    stub.default = Behaviour(**fields)


def told(stub: Any) -> list[tuple[str, Any]]:
    """Return the messages of the last request that the provider got, each as role and content."""
    return [(message["role"], message["content"]) for message in stub.requests[-1].body["messages"]]


@dataclass
class Tab:
    """A page and what it did.

    Attributes:
        page: Playwright's.
        url: where the server listens.
        requests: the address of everything that it asked for.
        received: the size of everything that it got, in bytes, by address.
        faults: what the browser complained about: exceptions, and errors and warnings on its console.
    """

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def open(self) -> None:
        """Load the playground, and wait until it can be used."""
        self.page.goto(f"{self.url}/playground")
        expect(self.page.locator("#panel pre")).not_to_be_empty()

    def ask(self, text: str, *, until: str = ".done") -> None:
        """Send a message by keyboard, and wait for a state of its exchange."""
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")
        self.page.wait_for_selector(f"#state{until}", state="attached")

    def show(self, form: str) -> None:
        """Show the exchange as its events, as the request, or as code."""
        self.page.locator("#forms label", has_text=form).click()

    def fact(self, name: str) -> str:
        """Return what the exchange says under a heading."""
        return self.page.locator("#facts > div", has_text=name).locator("dd").inner_text()

    def settled(self) -> None:
        """Wait until the last frame is drawn."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


MakeTab = Callable[..., Tab]
