"""A legal variant is a whole answer, and a fault is none: what the table says of them rests on that."""

import json
import re
import zlib

import pytest
from tests.stub import Stub
from tests.template.faults import FAULTS, LEGAL_VARIANTS, Fault

from stub.raw import CHAT, MESSAGES, PATIENCE, Raw, ask


@pytest.mark.parametrize("name", LEGAL_VARIANTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_legal_variant_is_whole(stub: Stub, name: str, stream: bool) -> None:
    behaviour = LEGAL_VARIANTS[name]
    raw = ask(stub, behaviour, stream=stream)
    body = zlib.decompress(raw.body, wbits=31) if behaviour.gzip else raw.body
    assert (raw.status, raw.ending) == (200, "complete")
    said = "".join(re.findall(r'"content": "([^"]*)"', body.decode()))
    assert said == behaviour.text
    assert b'"finish_reason": "stop"' in body


@pytest.mark.parametrize(
    ("fault", "kind", "path"),
    [
        pytest.param(fault, kind, path, id=f"{name}, {kind}, {path}")
        for name, fault in FAULTS.items()
        for kind in sorted(fault.answers)
        for path in ([CHAT, MESSAGES] if fault.anthropic else [CHAT])
    ],
)
def test_a_fault_is_no_whole_answer(stub: Stub, fault: Fault, kind: str, path: str) -> None:
    patience = PATIENCE if fault.slow or fault.behaviour.stall_after else 10
    raw = ask(stub, fault.behaviour, path, stream=kind == "stream", patience=patience)
    assert raw.ending != "complete" or raw.status != 200 or not _readable(raw)
    if fault.behaviour.status:
        assert raw.status in {0, fault.behaviour.status}
    if fault.begun:
        assert b"Hello" in raw.body


def _readable(raw: Raw) -> bool:
    """Tell whether a complete body is a whole answer."""
    try:
        if "event-stream" in raw.head:
            return all(json.loads(event) for event in raw.events if event != "[DONE]") and (
                b'"finish_reason": "stop"' in raw.body or b'"stop_reason": "end_turn"' in raw.body
            )
        return {"id", "model", "usage"} <= set(json.loads(raw.body))
    except json.JSONDecodeError:
        return False
