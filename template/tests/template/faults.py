"""How providers misbehave: what is legal and only unusual, and what is a fault, with the error it becomes."""

import time
from dataclasses import dataclass
from email.utils import formatdate

from tests.stub import TEXT, Behaviour

PACE = 0.01
"""Seconds between events that a client should have received before the fault comes."""

HTML = b"<html><head><title>502 Bad Gateway</title></head><body><center>nginx</center></body></html>"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of the provider, and the error that a client gets for it.

    Attributes:
        behaviour: what the provider does.
        status: status of the error.
        code: code of the error.
        begun: a stream has begun by then, so that its error comes as an event.
        answers: which kinds of answer have this fault: whole ones, streams or both.
        anthropic: whether Anthropic's API has it too.
        slow: only a time limit finds it.
        retry_after: what the error's `Retry-After` is, in seconds and at the most.
    """

    behaviour: Behaviour
    status: int = 502
    code: str = "provider_error"
    begun: bool = False
    answers: frozenset[str] = frozenset({"whole", "stream"})
    anthropic: bool = True
    slow: bool = False
    retry_after: int | None = None


_STREAM = frozenset({"stream"})
_WHOLE = frozenset({"whole"})

LEGAL_VARIANTS = {
    "CRLF line ends": Behaviour(line_end="crlf"),
    "CR line ends": Behaviour(line_end="cr"),
    "comments": Behaviour(comments=True),
    "no blank after the colon": Behaviour(prefix="data:"),
    "several events in one packet": Behaviour(packet=1_000_000),
    "one event in many packets": Behaviour(packet=23, pace=0.0001),
    "packets that split CRLF": Behaviour(packet=1, line_end="crlf", text="Hi 世界"),
    "gzip": Behaviour(gzip=True),
    "gzip in packets": Behaviour(gzip=True, packet=100),
    "no [DONE] after the finish reason": Behaviour(done=False),
    "a stream of declared length": Behaviour(transfer="length"),
    "an end told by closing": Behaviour(transfer="close"),
    "no usage": Behaviour(usage=False),
    "huge chunks": Behaviour(text=TEXT + " " + "世" * 300_000),
    "a slow first token": Behaviour(delay_first=0.05),
    "slow headers": Behaviour(delay_headers=0.05),
}

FAULTS = {
    # The provider refuses the request.
    "400": Fault(behaviour=Behaviour(status=400), status=400, code="invalid_request_error"),
    "400 with a code": Fault(
        behaviour=Behaviour(status=400, code="context_length_exceeded"),
        status=400,
        code="context_length_exceeded",
        anthropic=False,
    ),
    "400 without a body": Fault(behaviour=Behaviour(status=400, body=b""), status=400, code="invalid_request"),
    "413": Fault(behaviour=Behaviour(status=413, code="request_too_large"), status=400, code="request_too_large"),
    "422": Fault(behaviour=Behaviour(status=422), status=400, code="invalid_request_error"),
    # It refuses us.
    "401": Fault(behaviour=Behaviour(status=401), code="provider_misconfigured"),
    "401 without a body": Fault(behaviour=Behaviour(status=401, body=b""), code="provider_misconfigured"),
    "402": Fault(behaviour=Behaviour(status=402), code="provider_misconfigured"),
    "403": Fault(behaviour=Behaviour(status=403), code="provider_misconfigured"),
    "404": Fault(behaviour=Behaviour(status=404), code="provider_misconfigured"),
    "429 for want of credit": Fault(
        behaviour=Behaviour(status=429, code="insufficient_quota"), code="provider_misconfigured", anthropic=False
    ),
    # Its other 4xx.
    "408": Fault(behaviour=Behaviour(status=408)),
    "409": Fault(behaviour=Behaviour(status=409)),
    "418": Fault(behaviour=Behaviour(status=418)),
    # It has too much to do.
    "429": Fault(behaviour=Behaviour(status=429), status=429, code="provider_rate_limited"),
    "429 without a body": Fault(behaviour=Behaviour(status=429, body=b""), status=429, code="provider_rate_limited"),
    "429 with Retry-After in seconds": Fault(
        behaviour=Behaviour(status=429, headers={"retry-after": "77"}),
        status=429,
        code="provider_rate_limited",
        retry_after=77,
    ),
    "429 with Retry-After as a date": Fault(
        behaviour=Behaviour(status=429, headers={"retry-after": formatdate(time.time() + 86_400, usegmt=True)}),
        status=429,
        code="provider_rate_limited",
        retry_after=86_400,
    ),
    # It fails.
    "500": Fault(behaviour=Behaviour(status=500)),
    "500 without a body": Fault(behaviour=Behaviour(status=500, body=b"")),
    "502 as an HTML page": Fault(behaviour=Behaviour(status=502, body=HTML, headers={"content-type": "text/html"})),
    "503": Fault(behaviour=Behaviour(status=503)),
    "529": Fault(behaviour=Behaviour(status=529)),
    "no answer, the connection closed": Fault(behaviour=Behaviour(status=0)),
    "no answer, the connection reset": Fault(behaviour=Behaviour(status=0, reset=True)),
    # It answers, but what can't be read.
    "200 with an error": Fault(behaviour=Behaviour(error_at=0)),
    "200 with an error in place of a stream": Fault(
        behaviour=Behaviour(body=b'{"error": {"message": "Overloaded", "type": "server_error", "code": null}}'),
        answers=_STREAM,
    ),
    "200 without a body": Fault(behaviour=Behaviour(body=b"")),
    "200 with an HTML page": Fault(behaviour=Behaviour(body=HTML, headers={"content-type": "text/html"})),
    "200 with JSON that is no answer": Fault(behaviour=Behaviour(body=b'{"hello": "world"}')),
    "JSON that breaks off": Fault(behaviour=Behaviour(bad_json_at=0)),
    "cut before the body": Fault(behaviour=Behaviour(cut_after=0)),
    "cut within a whole answer": Fault(behaviour=Behaviour(cut_after=2), answers=_WHOLE),
    "cut within a whole answer of undeclared length": Fault(
        behaviour=Behaviour(cut_after=2, transfer="close"), answers=_WHOLE
    ),
    # It fails within a stream.
    "an error event": Fault(behaviour=Behaviour(error_at=5, stall_after=6, pace=PACE), begun=True, answers=_STREAM),
    "a chunk of broken JSON": Fault(behaviour=Behaviour(bad_json_at=5, pace=PACE), begun=True, answers=_STREAM),
    "cut between events": Fault(behaviour=Behaviour(cut_after=5, pace=PACE), begun=True, answers=_STREAM),
    "cut between events of a stream that ends by closing": Fault(
        behaviour=Behaviour(cut_after=5, transfer="close", pace=PACE), begun=True, answers=_STREAM
    ),
    "cut within a chunk": Fault(behaviour=Behaviour(cut_at=b" stu", pace=PACE), begun=True, answers=_STREAM),
    "cut within a character": Fault(
        behaviour=Behaviour(cut_at="世".encode()[:2], pace=PACE), begun=True, answers=_STREAM
    ),
    "reset between events": Fault(behaviour=Behaviour(cut_after=5, reset=True, pace=PACE), begun=True, answers=_STREAM),
    "no finish reason and no [DONE]": Fault(
        behaviour=Behaviour(finished=0, done=False, pace=PACE), begun=True, answers=_STREAM
    ),
    # It is too slow.
    "headers that don't come": Fault(
        behaviour=Behaviour(delay_headers=60), status=504, code="provider_timeout", slow=True
    ),
    "a body that doesn't come": Fault(
        behaviour=Behaviour(stall_after=0), status=504, code="provider_timeout", slow=True
    ),
    "a whole answer that stalls": Fault(
        behaviour=Behaviour(stall_after=2), status=504, code="provider_timeout", slow=True, answers=_WHOLE
    ),
    "a stream that stalls": Fault(
        behaviour=Behaviour(stall_after=5), status=504, code="provider_timeout", begun=True, slow=True, answers=_STREAM
    ),
    "a stream that never finishes": Fault(
        behaviour=Behaviour(text=TEXT, repeat=10_000, pace=PACE),
        status=504,
        code="provider_timeout",
        begun=True,
        slow=True,
        answers=_STREAM,
    ),
}
