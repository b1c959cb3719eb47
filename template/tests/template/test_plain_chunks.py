"""Which events of a stream are passed on without being parsed: those of which parsing could tell nothing."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from app.llm.native import BEFORE_VALUE
from app.llm.plain_chunks import PlainChunks

CHUNK = {"id": "1", "choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": None}]}


def event(content: Any = "A", *, ascii_only: bool = True, **fields: Any) -> bytes:
    chunk = json.loads(json.dumps(CHUNK)) | fields
    chunk["choices"][0]["delta"] = {"content": content}
    return b"data: " + json.dumps(chunk, ensure_ascii=ascii_only).encode() + b"\n\n"


def learnt(**fields: Any) -> PlainChunks:
    plain = PlainChunks()
    assert plain.at(event(**fields), 0) == (0, 0), "nothing is known yet"
    plain.learn(event(**fields), CHUNK | fields)
    return plain


ONE_TEXT, TWO_TEXTS = learnt(), learnt(obfuscation="x")


@settings(derandomize=True)
@given(st.lists(st.text(), min_size=1, max_size=4), st.booleans())
@example(['\\"}], "usage": {"x": 1}', "\\", '"content": "'], True)
def test_chunks_that_differ_in_their_texts_need_no_parsing(texts: list[str], ascii_only: bool) -> None:
    cases: list[tuple[PlainChunks, dict[str, Any]]] = [(ONE_TEXT, {}), (TWO_TEXTS, {"obfuscation": "y"})]
    for plain, fields in cases:
        try:
            packet = b"".join(event(text, ascii_only=ascii_only, **fields) for text in texts)
        except UnicodeEncodeError:
            return
        assert plain.at(packet, 0) == (len(packet), len(texts))


@settings(derandomize=True)
@given(st.binary(max_size=12) | st.text(alphabet='\\\\"u0a{}[],: \n', max_size=12).map(str.encode))
@example(b'", "x": "')
@example(b"\\")
def test_what_needs_no_parsing_is_valid_and_says_nothing_else(text: bytes) -> None:
    cases: list[tuple[PlainChunks, dict[str, Any]]] = [(ONE_TEXT, {}), (TWO_TEXTS, {"obfuscation": "y"})]
    for plain, fields in cases:
        changed = event(**fields).replace(b'"A"', b'"' + text + b'"')
        end, count = plain.at(changed + event(**fields), 0)
        for said in (changed + event(**fields))[:end].split(b"\n\n")[:count]:
            chunk = from_json(said.removeprefix(b"data: "), allow_inf_nan=False)
            chunk["choices"][0]["delta"]["content"] = "A"
            assert chunk == CHUNK | fields


def test_an_event_that_is_shorter_than_what_is_the_same_in_all_is_parsed() -> None:
    unterminated = event().replace(b'"A"', b'"')
    assert ONE_TEXT.at(unterminated, 0) == (0, 0)


@pytest.mark.parametrize(
    "other",
    [
        event(usage={"total_tokens": 1}),
        event(error={"message": "x"}),
        event(content=None),
        event(choices=[{"index": 0, "finish_reason": "stop"}]),
        event().replace(b"\n\n", b"\r\n\r\n"),
        event().removesuffix(b"\n"),
        event().replace(b'"A"', b'"\xff"'),
        b": comment\n\n",
        b"data: [DONE]\n\n",
    ],
)
@pytest.mark.parametrize("plain", [ONE_TEXT, TWO_TEXTS], ids=["one text", "two texts"])
def test_any_other_event_is_parsed(plain: PlainChunks, other: bytes) -> None:
    assert plain.at(other, 0) == (0, 0)
    assert plain.at(event("B") + other, 0)[1] in (0, 1)


@pytest.mark.parametrize(
    "more", [{"usage": {"total_tokens": 1}}, {"choices": []}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
)
def test_a_chunk_that_says_more_is_no_pattern(more: dict[str, Any]) -> None:
    plain = PlainChunks()
    said = b"data: " + json.dumps(CHUNK | more).encode() + b"\n\n"
    plain.learn(said, CHUNK | more)
    assert plain.at(said, 0) == (0, 0)


DELTA = {
    "responses": {"type": "response.output_text.delta", "sequence_number": 4, "item_id": "m", "delta": "A"},
    "messages": {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "A"}},
}


def delta(dialect: str, text: str = "A", number: str = "4") -> bytes:
    said = json.dumps(DELTA[dialect]).replace('"A"', json.dumps(text)).replace(": 4", f": {number}")
    return f"event: {DELTA[dialect]['type']}\ndata: {said}\n\n".encode()


@pytest.mark.parametrize("dialect", DELTA)
def test_deltas_of_another_dialect_that_differ_in_texts_and_numbers_need_no_parsing(dialect: str) -> None:
    plain = PlainChunks()
    plain.remember(delta(dialect), BEFORE_VALUE)
    packet = delta(dialect, 'said "so"', "10") + delta(dialect, "", "0")
    assert plain.at(packet, 0) == (len(packet), 2)


@pytest.mark.parametrize("number", ["01", "-", "", "1 2", "x", "1.", "1e", '"1"', "[1]", "1" * 5000])
def test_a_delta_whose_number_is_none_is_parsed(number: str) -> None:
    plain = PlainChunks()
    plain.remember(delta("responses"), BEFORE_VALUE)
    assert plain.at(delta("responses", "B", number), 0) == (0, 0)
