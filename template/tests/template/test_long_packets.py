"""What a stream's packets cost grows with their bytes, and not with those that came before them."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from app.llm.relay import Relay
from app.llm.stream_state import StreamState

MOST_SECONDS = 3.0
"""Of this process's own time, for a megabyte; each case took longer where it was looked at again and again."""
TARGET: Any = SimpleNamespace(name="m")


def chunk(content: bytes) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % content


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[start : start + size] for start in range(0, len(stream), size)]


@pytest.mark.parametrize(
    "packets",
    [
        pytest.param(cut(chunk(b"x" * 1_000_000), 200), id="one event in many packets"),
        pytest.param([b":\n\n" * 300_000], id="many comments in one packet"),
        pytest.param([chunk(b"") * 4000 + chunk(b"\xff")], id="what is no text behind many chunks"),
    ],
)
def test_a_megabyte_of_a_stream_is_soon_passed_on(packets: list[bytes]) -> None:
    relay = Relay(TARGET, StreamState())
    relay.feed(chunk(b"first"))
    started = time.process_time()
    for packet in packets:
        relay.feed(packet)
    assert time.process_time() - started < MOST_SECONDS
