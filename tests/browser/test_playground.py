"""What a person does on the page, and what the provider behind it sees."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from browser.tab import KEY, MakeTab, behave, told

pytestmark = pytest.mark.xdist_group("browser")


def test_the_first_load_is_ready_to_type(tab: MakeTab) -> None:
    page = tab().page
    expect(page.locator("#message")).to_be_focused()
    expect(page.locator("#model")).to_have_value("stub")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("#panel")).to_contain_text("curl --no-buffer")


def test_a_fresh_project_answers_by_its_demo_model(tab: MakeTab, fresh: str) -> None:
    opened = tab(fresh)
    page = opened.page
    page.goto(fresh)
    assert page.url == f"{fresh}/playground"
    page.get_by_role("button", name="Say hello").click()
    page.wait_for_selector("#state.done")
    expect(page.locator(".answer")).to_contain_text("You said: Say hello in five languages")
    assert opened.fact("Model") == "demo"


def test_a_model_without_a_key_names_the_variable_to_set(tab: MakeTab) -> None:
    expect(tab().page.locator("#model option[value='gpt-4o']")).to_contain_text("OPENAI_API_KEY")


def test_the_page_weighs_less_than_20_kilobytes(tab: MakeTab, show_figures: Callable[[str], None]) -> None:
    loaded = tab()
    loaded.page.wait_for_load_state("networkidle")
    total = sum(loaded.received.values())
    show_figures(f"the playground weighs {total} bytes: {loaded.received}")
    assert {"/playground", "/playground/style.css", "/playground/main.js"} < set(loaded.received)
    assert total < 20_000


def test_an_answer_shows_what_it_cost(tab: MakeTab) -> None:
    opened = tab()
    opened.ask("Hello")
    assert opened.fact("Cost in USD") == f"{(7 + 8 * 10) / 1e6:.6f}"


def test_a_request_carries_what_was_set_and_nothing_else(tab: MakeTab, stub: Any) -> None:
    opened = tab()
    opened.ask("Hello")
    assert stub.requests[-1].body.keys() == {"model", "messages", "stream", "stream_options"}
    opened.page.fill("#system", "Be brief.")
    opened.page.fill("#temperature", "0")
    opened.page.fill("#max_tokens", "16")
    opened.ask("And again")
    body = stub.requests[-1].body
    assert (body["temperature"], body["max_tokens"]) == (0, 16)
    assert [role for role, _ in told(stub)] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(("field", "value"), [("temperature", "2.1"), ("max_tokens", "0"), ("tools", "{nonsense")])
def test_what_is_out_of_bounds_is_not_sent(tab: MakeTab, stub: Any, field: str, value: str) -> None:
    page = tab().page
    page.locator("details", has=page.locator(f"#{field}")).evaluate("details => details.open = true")
    page.fill(f"#{field}", value)
    page.fill("#message", "Hello")
    page.press("#message", "Enter")
    expect(page.locator(f"#{field}")).to_be_focused()
    expect(page.locator("#message")).to_have_value("Hello")
    assert stub.requests == []


def test_an_earlier_exchange_can_be_looked_at_again(tab: MakeTab) -> None:
    opened = tab()
    opened.ask("First")
    opened.ask("Second")
    opened.page.locator(".meta").first.click()
    opened.show("Request")
    expect(opened.page.locator("#panel")).to_contain_text("First")
    expect(opened.page.locator("#panel")).not_to_contain_text("Second")


def test_the_key_stays_in_its_tab_and_out_of_the_code(tab: MakeTab, closed: str) -> None:
    opened = tab(closed)
    page = opened.page
    opened.ask("Hello", until=".failed")
    expect(page.locator(".problem")).to_contain_text("401 Unauthorized")
    assert "401" in opened.faults.pop()
    page.fill("#key", KEY)
    opened.ask("Hello")
    for form in ("Events", "Request", "curl", "Python", "JavaScript"):
        opened.show(form)
        assert KEY not in page.content()
    page.reload()
    expect(page.locator("#key")).to_have_value(KEY)
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, JSON.stringify(sessionStorage)]")
    assert kept == ["{}", "", json.dumps({"caller-key": KEY}, separators=(",", ":"))]
    other = page.context.new_page()
    other.goto(f"{closed}/playground")
    expect(other.locator("#key")).to_have_value("")


def test_a_tool_call_is_shown_as_plain_data_and_can_be_answered(tab: MakeTab, stub: Any) -> None:
    behave(stub, tool_calls=(("get_weather", '{"city": "<b>Lisbon</b>"}'),))
    opened = tab()
    page = opened.page
    page.get_by_role("button", name="Call a tool").click()
    page.wait_for_selector("#state.done")
    expect(page.locator(".call")).to_contain_text('get_weather call_0{"city": "<b>Lisbon</b>"}')
    assert stub.requests[-1].body["tools"][0]["function"]["name"] == "get_weather"
    behave(stub)
    page.get_by_label("Result of get_weather").fill("18 degrees")
    page.keyboard.press("Enter")
    expect(page.locator(".answer").last).to_contain_text("Hello from the stub")
    *_, asked, result = stub.requests[-1].body["messages"]
    assert asked["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "<b>Lisbon</b>"}'}
    assert result == {"role": "tool", "tool_call_id": "call_0", "content": "18 degrees"}


def test_several_tool_calls_are_answered_one_by_one(tab: MakeTab, stub: Any) -> None:
    behave(stub, tool_calls=(("first", "{}"), ("second", "{}")))
    opened = tab()
    opened.ask("Call both")
    behave(stub)
    opened.page.get_by_label("Result of first").fill("1")
    opened.page.keyboard.press("Enter")
    opened.page.get_by_label("Result of second").fill("2")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator(".answer").last).to_contain_text("Hello from the stub")
    assert told(stub)[-2:] == [("tool", "1"), ("tool", "2")]


@pytest.mark.parametrize("dialect", ["Responses", "Messages"])
def test_a_conversation_is_had_and_shown_in_each_dialect(tab: MakeTab, stub: Any, dialect: str) -> None:
    behave(stub, tool_calls=(("first", '{"city": "Lisbon"}'), ("second", "{}")))
    opened = tab()
    page = opened.page
    page.select_option("#dialect", dialect)
    page.fill("#system", "Be brief.")
    page.fill("#max_tokens", "16")
    page.locator("#offered").click()
    page.fill("#tools", json.dumps([{"type": "function", "function": {"name": "first", "parameters": {}}}]))
    opened.ask("Call both")
    expect(page.locator(".call").first).to_have_text('first call_0{"city": "Lisbon"}')
    behave(stub)
    for result in ("1", "2"):
        page.fill("#message", result)
        page.press("#message", "Enter")
    expect(page.locator(".answer").last).to_have_text("Hello from the stub. Grüße, 世界! 👋")
    opened.ask("And now?")
    assert opened.requests[-1].endswith(f"/v1/{dialect.lower()}")
    assert [role for role, _ in told(stub)] == ["system", "user", "assistant", "tool", "tool", "assistant", "user"]
    calls = stub.requests[-1].body["messages"][2]["tool_calls"]
    assert [(call["id"], call["function"]["name"]) for call in calls] == [("call_0", "first"), ("call_1", "second")]
    assert (opened.fact("Tokens in"), opened.fact("Tokens out")) == ("7", "8")
    assert stub.requests[-1].body["max_completion_tokens"] == 16
    last = {"Responses": "response.completed", "Messages": "message_stop"}[dialect]
    expect(page.locator(".events")).to_contain_text(last)


@pytest.mark.parametrize("dialect", ["Responses", "Messages"])
def test_what_goes_wrong_is_told_in_each_dialect(tab: MakeTab, stub: Any, dialect: str) -> None:
    opened = tab()
    opened.page.select_option("#dialect", dialect)
    behave(stub, cut_after=4, pace=0.01)
    opened.ask("Hello", until=".failed")
    expect(opened.page.locator(".problem")).to_contain_text("cut off")
    behave(stub, status=400, message="Not so.")
    opened.ask("Hello", until=".failed")
    expect(opened.page.locator(".problem").last).to_contain_text("Not so.")
    opened.faults.clear()


def test_what_an_own_model_does_with_its_tools_is_shown(tab: MakeTab) -> None:
    opened = tab()
    page = opened.page
    expect(page.locator("#model option[value='agent']")).to_have_text("agent (own code)")
    expect(page.locator("#model option[value='demo']")).to_have_text("demo (echoes what you say)")
    page.select_option("#model", "agent")
    opened.ask("Weather?")
    expect(page.locator(".call")).to_have_text(
        [re.compile(r'^weather call_\w+{"city":"demo"}$'), re.compile(r"^weather: result call_\w+Sun in demo$")]
    )
    expect(page.locator(".answer")).to_have_text("You said: Sun in demo")
    expect(page.get_by_label("Message", exact=True)).to_be_visible()


def test_clear_clears_the_tools_and_focus_returns_to_the_message(tab: MakeTab, stub: Any) -> None:
    behave(stub, tool_calls=(("get_weather", '{"city":"Lisbon"}'),))
    opened = tab()
    page = opened.page
    page.get_by_role("button", name="Call a tool").click()
    page.wait_for_selector("#state.done")
    expect(page.locator("#message")).to_be_focused()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#tools")).to_have_value("")
    expect(page.locator("#offered")).to_have_text("None offered")


def test_a_phone_is_told_where_the_events_are(tab: MakeTab) -> None:
    expect(tab(width=390).page.locator("#phone")).to_be_visible()
    expect(tab().page.locator("#phone")).to_be_hidden()


HOSTILE = (
    "<script>document.title = 'owned'</script> <img src=x onerror=\"document.title = 'owned'\"> "
    "[a link](javascript:document.title='owned') <a href=\"javascript:document.title='owned'\">another</a>"
)


def test_what_a_model_says_is_text_and_does_nothing(tab: MakeTab, stub: Any) -> None:
    behave(stub, text=HOSTILE)
    opened = tab()
    page = opened.page
    opened.ask(HOSTILE)
    opened.settled()
    assert page.locator(".answer").text_content() == HOSTILE
    behave(stub, tool_calls=((HOSTILE, HOSTILE),))
    opened.ask("Call it")
    behave(stub, status=400, message=HOSTILE)
    page.fill("#message", HOSTILE)
    page.keyboard.press("Enter")
    for form in ("Events", "Request", "curl", "Python", "JavaScript"):
        opened.show(form)
    assert page.title() == "Playground"
    assert page.locator("main :is(a, img, script, iframe)").count() == 0
    assert page.locator("script").count() == 1
    opened.faults.clear()


def test_nothing_but_its_own_files_may_run(tab: MakeTab) -> None:
    """The policy holds even where text becomes HTML by some mistake."""
    opened = tab()
    opened.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\">')")
    opened.page.wait_for_timeout(200)
    assert opened.page.title() == "Playground"
    assert any("Content Security Policy" in fault for fault in opened.faults)
    opened.faults.clear()
