"""Answers on their way: how they come in, stop, break and are asked for again."""

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from browser.tab import MakeTab, behave, told

pytestmark = pytest.mark.xdist_group("browser")

STOPS = 5
STOP_SECONDS = 0.2


def test_an_answer_streams_in_with_its_figures(tab: MakeTab, stub: Any) -> None:
    behave(stub, text="Grüße, 世界! 👋 ", repeat=30, pace=0.01)
    opened = tab()
    page = opened.page
    opened.ask("Hello", until=".streaming")
    expect(page.locator(".running .answer")).to_contain_text("Grüße")
    page.wait_for_selector("#state.done")
    opened.settled()
    assert page.locator(".answer").inner_text().count("Grüße, 世界! 👋") == 30
    assert page.locator("#state").inner_text().startswith("200 done · ")
    assert float(opened.fact("First chunk").removesuffix(" ms")) > 0
    assert 10 < float(opened.fact("Chunks a second")) < 100
    assert [opened.fact(name) for name in ("Tokens in", "Tokens out")] == ["7", "91"]
    assert [opened.fact(name) for name in ("Model", "Finish reason")] == ["stub", "stop"]
    assert re.fullmatch(r"[\w-]{8,}", opened.fact("Request id"))
    assert page.locator("#timeline path").get_attribute("d")


def test_the_provider_sees_a_stop_within_a_fifth_of_a_second(
    tab: MakeTab, stub: Any, show_figures: Callable[[str], None]
) -> None:
    behave(stub, repeat=1000, pace=0.02)
    opened = tab()
    seconds = []
    for number in range(STOPS):
        opened.ask(f"Question {number}", until=".streaming")
        expect(opened.page.locator(".running .answer")).to_contain_text("Hello from the stub")
        pressed = time.monotonic()
        opened.page.keyboard.press("Escape")
        assert stub.requests[-1].closed.wait(5)
        seconds.append(stub.requests[-1].closed_at - pressed)
        opened.page.wait_for_selector("#state.stopped")
    show_figures(f"the provider saw a stop after {', '.join(f'{each:.3f}' for each in sorted(seconds))} s")
    assert statistics.median(seconds) < STOP_SECONDS
    expect(opened.page.locator(".answer").last).to_contain_text("Hello from the stub")


def test_the_button_stops_too_and_a_stopped_answer_stays_in_the_history(tab: MakeTab, stub: Any) -> None:
    behave(stub, text="one two three", stall_after=3)
    opened = tab()
    opened.ask("Count", until=".streaming")
    expect(opened.page.locator(".answer")).to_have_text("one two")
    opened.page.get_by_role("button", name="Stop").click()
    opened.page.wait_for_selector("#state.stopped")
    behave(stub)
    opened.ask("Go on")
    assert told(stub) == [("user", "Count"), ("assistant", "one two"), ("user", "Go on")]


def test_retry_asks_the_last_question_anew(tab: MakeTab, stub: Any) -> None:
    opened = tab()
    opened.ask("Hello")
    behave(stub, text="Another answer")
    opened.page.get_by_role("button", name="Retry").click()
    expect(opened.page.locator(".answer")).to_have_text("Another answer")
    expect(opened.page.locator("#message")).to_be_focused()
    assert told(stub) == [("user", "Hello")]


def test_clear_stops_and_forgets(tab: MakeTab, stub: Any) -> None:
    behave(stub, repeat=1000, pace=0.02)
    opened = tab()
    opened.ask("Hello", until=".streaming")
    opened.page.get_by_role("button", name="Clear").click()
    assert stub.requests[-1].closed.wait(5)
    expect(opened.page.locator(".turn")).to_have_count(0)
    behave(stub)
    opened.ask("Anew")
    assert told(stub) == [("user", "Anew")]


def test_an_error_is_told_in_words_with_what_to_do(tab: MakeTab, stub: Any) -> None:
    behave(stub, status=429, headers={"Retry-After": "12"})
    opened = tab()
    opened.ask("Hello", until=".failed")
    problem = opened.page.locator(".problem")
    expect(problem).to_contain_text("429 Too Many Requests")
    expect(problem).to_contain_text("provider_rate_limited")
    expect(problem).to_contain_text("retry after 12 s")
    expect(opened.page.locator("#panel")).to_contain_text('"status":429')
    assert re.fullmatch(r"[\w-]{8,}", opened.fact("Request id"))
    behave(stub)
    opened.page.get_by_role("button", name="Retry").click()
    expect(problem).to_have_count(0)
    expect(opened.page.locator(".answer")).to_contain_text("Hello from the stub")
    assert "429" in opened.faults.pop()


def test_a_model_without_a_key_says_so_when_asked(tab: MakeTab) -> None:
    opened = tab()
    opened.page.select_option("#model", "gpt-4o")
    opened.ask("Hello", until=".failed")
    expect(opened.page.locator(".problem")).to_contain_text("OPENAI_API_KEY")
    assert "503" in opened.faults.pop()


def test_a_stream_that_breaks_keeps_what_came_and_says_why(tab: MakeTab, stub: Any) -> None:
    behave(stub, text="one two three", cut_after=3)
    opened = tab()
    opened.ask("Count", until=".failed")
    expect(opened.page.locator(".answer")).to_have_text("one two")
    expect(opened.page.locator(".problem")).to_contain_text("provider_error")


def test_a_server_that_is_gone_is_told_from_an_error(tab: MakeTab) -> None:
    opened = tab()
    opened.page.context.set_offline(True)
    opened.ask("Hello", until=".failed")
    expect(opened.page.locator(".problem")).to_contain_text("The server can't be reached")
    assert "ERR_INTERNET_DISCONNECTED" in opened.faults.pop()
