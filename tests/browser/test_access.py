"""Who can use the page: by keyboard, by screen reader, in the dark, on a phone."""

from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import expect

from browser.tab import MakeTab, Tab, behave

pytestmark = pytest.mark.xdist_group("browser")

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
PHONE = {"width": 360, "height": 740}
OVERFLOWING = """[...document.querySelectorAll("html, header, #fields, #messages, #composer, #facts, #forms, #panel")]
  .filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.id || box.tagName)"""
FOCUSED = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"


def has_no_serious_fault(tab: Tab) -> None:
    """Hold the page as it stands against axe-core's rules, best practices included."""
    tab.settled()
    tab.page.evaluate(AXE)
    found = tab.page.evaluate("axe.run()")["violations"]
    serious = [
        (fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found if fault["impact"] != "minor"
    ]
    assert serious == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{}, PHONE], ids=["desk", "phone"])
def test_axe_finds_no_fault_in_any_state(tab: MakeTab, stub: Any, scheme: str, size: dict[str, int]) -> None:
    opened = tab(color_scheme=scheme, **size)
    opened.page.locator("details").evaluate_all("all => all.forEach((one) => (one.open = true))")
    has_no_serious_fault(opened)
    behave(stub, stall_after=3)
    opened.ask("Hello", until=".streaming")
    has_no_serious_fault(opened)
    opened.page.keyboard.press("Escape")
    behave(stub, tool_calls=(("get_weather", '{"city": "Lisbon"}'),))
    opened.ask("Call it")
    has_no_serious_fault(opened)
    behave(stub, status=400)
    opened.page.fill("#message", "Result")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_selector("#state.failed", state="attached")
    has_no_serious_fault(opened)
    if size:
        opened.page.locator("label", has_text="Exchange").click()
        has_no_serious_fault(opened)
    assert "400" in opened.faults.pop()


def test_all_of_it_works_by_keyboard_alone(tab: MakeTab, stub: Any) -> None:
    opened = tab()
    page = opened.page
    while page.evaluate(FOCUSED) != "skip":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "message"
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Two")
    assert stub.requests == []
    page.keyboard.press("Enter")
    page.wait_for_selector("#state.done")
    assert stub.requests[-1].body["messages"][-1]["content"] == "One\nTwo"
    page.locator("#Events").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#panel")).to_contain_text("POST http")


def test_focus_goes_as_the_page_reads_and_is_always_seen(tab: MakeTab) -> None:
    page = tab().page
    while page.evaluate(FOCUSED) != "skip":
        page.keyboard.press("Tab")
    order = []
    while (at := page.evaluate(FOCUSED)) not in order:
        order.append(at)
        outlined = "getComputedStyle(document.activeElement.closest('.choice') ?? document.activeElement)"
        assert at == "BODY" or page.evaluate(f"{outlined}.outlineStyle") == "solid", at
        page.keyboard.press("Tab")
    top = ["skip", "clear", "model", "dialect", "temperature", "max_tokens", "key"]
    chat = ["messages", "system", "offered", "hello", "weather", "message", "send"]
    assert order == [*top, *chat, "curl", "panel", "copy", "BODY"]


def test_a_screen_reader_is_told_twice_for_an_answer_of_any_length(tab: MakeTab, stub: Any) -> None:
    behave(stub, repeat=100, pace=0.002)
    opened = tab()
    opened.page.evaluate(
        """() => {
          window.told = [];
          const live = document.querySelectorAll('[aria-live], [role=status], [role=alert], [role=log]');
          const note = (records) => records.forEach(({ target }) => window.told.push(target.textContent));
          for (const region of live) new MutationObserver(note).observe(region, { childList: true, subtree: true });
        }"""
    )
    opened.ask("Hello")
    expect(opened.page.locator("#announcer")).to_contain_text("done. Hello from the stub")
    assert len(opened.page.evaluate("window.told.filter(Boolean)")) == 2


def test_the_page_follows_the_colour_scheme(tab: MakeTab) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light, dark = (
        sum(tab(color_scheme=scheme).page.evaluate(f"{paper}.match(/\\d+/g).slice(0, 3).map(Number)"))
        for scheme in ("light", "dark")
    )
    assert light > 3 * 200
    assert dark < 3 * 50


@pytest.mark.parametrize("width", [360, 600, 895, 896, 1280, 2560])
def test_nothing_is_cut_off_at_any_width(tab: MakeTab, stub: Any, width: int) -> None:
    behave(stub, text="unbreakable" * 50)
    opened = tab(width=width, height=740)
    opened.ask("unbreakable" * 50)
    opened.settled()
    for shown in ("chat", "exchange"):
        opened.page.locator("#swap").evaluate("(box, on) => (box.checked = on)", shown == "exchange")
        opened.page.locator("details").evaluate_all("all => all.forEach((one) => (one.open = true))")
        assert opened.page.evaluate(OVERFLOWING) == []
        expect(opened.page.locator(f"#{shown}")).to_be_in_viewport()


def test_a_phone_shows_the_chat_or_the_exchange(tab: MakeTab) -> None:
    opened = tab(**PHONE)
    page = opened.page
    opened.ask("Hello")
    expect(page.locator("#chat")).to_be_visible()
    expect(page.locator("#exchange")).to_be_hidden()
    page.locator("label", has_text="Exchange").click()
    expect(page.locator("#chat")).to_be_hidden()
    expect(page.locator("#facts")).to_be_visible()
