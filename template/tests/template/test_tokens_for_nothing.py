"""Nobody gets tokens for nothing: what nobody has counted is estimated, and what nobody can know stays reserved."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from app.access.callers import hash_key
from tests.stub import Behaviour, Stub
from tests.template.running import Ask, row, running
from tests.wire import CHAT, HELLO, Call

EMBEDDINGS, RESPONSES, MESSAGES = "/v1/embeddings", "/v1/responses", "/v1/messages"
WORDS = 300
SAID = "word " * WORDS
ASKED = 2000
"""The answer's bound, which is what is reserved for it."""
LIMIT = 100_000_000


@pytest.fixture(scope="module")
def provider() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def ask(provider: Stub, key: str) -> Iterator[Ask]:
    models = {
        "direct": row(provider),
        "litellm": row(provider, protocol="litellm"),
        "anthropic": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": provider.url},
        "native": row(provider, speaks=["responses", "messages"]),
        "with a fallback": row(provider, fallbacks=["direct"]),
        "demo": {"upstream": "demo/echo"},
    }
    limits = {"tokens_per_minute": LIMIT, "max_in_flight": 100}
    callers = {"test": {"key_sha256": hash_key(key), **limits}}
    with running(key, models, callers=callers, max_tokens_limit=ASKED) as ask:
        yield ask


def taken_by(ask: Ask, act: Callable[[], object]) -> int:
    """Return the tokens that were taken from the caller's limit when what `act` does has ended."""

    def remaining() -> int:
        deadline = time.monotonic() + 60
        while ask.in_flight and time.monotonic() < deadline:
            time.sleep(0.002)
        return int(ask("demo", max_tokens=1).headers["x-ratelimit-remaining-tokens"])

    start = remaining()
    before = remaining()
    act()
    return before - remaining() - (start - before)


@dataclass(frozen=True)
class Way:
    """A way to get tokens for nothing.

    Attributes:
        least: tokens that it takes at least.
        behaviour: how the provider answers.
        then: how it answers after that.
        leaves_after: the client leaves after so many events; 0 is before the first; None never.
        waits: the time limits of the call.
        path: where to.
        fields: the request's, on top of the usual.
    """

    least: int
    behaviour: Behaviour = field(default_factory=Behaviour)
    then: tuple[Behaviour, ...] = ()
    leaves_after: int | None = None
    waits: dict[str, float] = field(default_factory=dict)
    path: str = CHAT
    fields: dict[str, Any] = field(default_factory=dict)

    def try_it(self, ask: Ask, provider: Stub, model: str) -> int | None:
        fields: dict[str, Any] = {"messages": HELLO, "max_tokens": ASKED}
        if self.path in (EMBEDDINGS, RESPONSES):
            fields = {"input": SAID} if self.path == EMBEDDINGS else {"input": "Hello", "max_output_tokens": ASKED}
        provider.forget()
        provider.queue(self.behaviour, *self.then)
        with ask.waiting(**self.waits) if self.waits else contextlib.nullcontext():
            sent = len(provider.requests)
            with Call(ask.url, ask.key, self.path, patience=30, **(fields | {"model": model} | self.fields)) as call:
                if self.leaves_after is None:
                    assert call.body
                for _ in range(self.leaves_after or 0):
                    next(call.events)
                assert provider.wait_until(lambda: len(provider.requests) > sent)
                return call.status if self.leaves_after is None else None


def usage(**counts: Any) -> Behaviour:
    """Answer with a usage of one's own."""
    message = {"role": "assistant", "content": SAID}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return Behaviour(body=json.dumps({"id": "a", "object": "chat.completion", "choices": [choice], **counts}).encode())


def events(*usages: Any, text: str = "word ", times: int = WORDS) -> Behaviour:
    """Stream the text, with a usage in the last chunk, or one in each of the last."""

    def chunk(choices: list[Any], **more: Any) -> str:
        return f"data: {json.dumps({'id': 'a', 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    chunks = [chunk([{"index": 0, "delta": {"content": text}}]) for _ in range(times)]
    chunks.append(chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    chunks += [chunk([], usage=usage) for usage in usages]
    return Behaviour(
        body="".join([*chunks, "data: [DONE]\n\n"]).encode(), headers={"content-type": "text/event-stream"}
    )


def vectors(**counts: Any) -> Behaviour:
    """Answer embeddings with a usage of one's own."""
    rows = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
    return Behaviour(body=json.dumps({"object": "list", "data": rows, "model": "m", **counts}).encode())


PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
FILM = {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "word " * 4000}}]
STREAM = {"stream": True}
FALLBACK = {"model": "with a fallback"}
SPEAKS = Behaviour(text=SAID, usage=False)
WAITS = Behaviour(delay_headers=60)
SLOW = Behaviour(text=SAID, stall_after=20)


def asked(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}]} | fields


def embedding(least: int, behaviour: Behaviour, **fields: Any) -> Way:
    return Way(least, behaviour, path=EMBEDDINGS, fields=fields)


WAYS = {
    # Whole answers whose usage says nothing, or nothing that can be so.
    "no usage": Way(WORDS, SPEAKS),
    "usage is null": Way(WORDS, usage(usage=None)),
    "usage is empty": Way(WORDS, usage(usage={})),
    "usage is a list": Way(WORDS, usage(usage=[7, 300])),
    "usage is a number": Way(WORDS, usage(usage=307)),
    "usage is zero": Way(WORDS, usage(usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})),
    "usage is negative": Way(WORDS, usage(usage={"prompt_tokens": -7, "completion_tokens": -300})),
    "usage is words": Way(WORDS, usage(usage={"prompt_tokens": "seven", "completion_tokens": "many"})),
    "usage is true": Way(WORDS, usage(usage={"prompt_tokens": True, "completion_tokens": True})),
    "usage is infinite": Way(WORDS, usage(usage={"prompt_tokens": 7, "completion_tokens": float("inf")})),
    "usage is absurd": Way(WORDS, usage(usage={"prompt_tokens": 7, "completion_tokens": 10**30})),
    "usage is floats": Way(1300, usage(usage={"prompt_tokens": 7.0, "completion_tokens": 1300.0})),
    "usage is a total alone": Way(1300, usage(usage={"total_tokens": 1300})),
    "usage is of the prompt alone": Way(WORDS, usage(usage={"prompt_tokens": 7})),
    "usage leaves out what was thought": Way(
        1300, usage(usage={"prompt_tokens": 7, "completion_tokens": 300, "total_tokens": 1300})
    ),
    # Whole answers of which nobody knows what they took.
    "the answer is not JSON": Way(ASKED, Behaviour(text=SAID, bad_json_at=0)),
    "the answer has no choice": Way(ASKED, Behaviour(body=b'{"choices": [], "usage": {"prompt_tokens": -1}}')),
    "the answer has no message": Way(ASKED, Behaviour(body=b'{"choices": ["Hello"]}')),
    "the answer is an error": Way(ASKED, Behaviour(error_at=0)),
    "the answer is cut off": Way(ASKED, Behaviour(text=SAID, cut_after=2)),
    "no answer, and the connection closed": Way(ASKED, Behaviour(status=0)),
    "a gateway gives up": Way(ASKED, Behaviour(status=504)),
    "the answer takes too long": Way(ASKED, WAITS, waits={"total": 0.3}),
    "the client leaves": Way(ASKED, WAITS, leaves_after=0),
    "several choices, and the client leaves": Way(5 * ASKED, WAITS, leaves_after=0, fields={"n": 5}),
    "tools, and the client leaves": Way(ASKED + 4000, WAITS, leaves_after=0, fields={"tools": TOOLS}),
    "images, and the client leaves": Way(ASKED + 2000, WAITS, leaves_after=0, fields=asked(PICTURE, PICTURE)),
    "a film, and the client leaves": Way(ASKED + 1000, WAITS, leaves_after=0, fields=asked(FILM)),
    "two bounds, and the client leaves": Way(ASKED, WAITS, leaves_after=0, fields={"max_completion_tokens": 1}),
    "the first model is cut off": Way(ASKED, Behaviour(cut_after=2), (Behaviour(),), fields=FALLBACK),
    # Streams.
    "a stream without usage": Way(WORDS, SPEAKS, fields=STREAM),
    "a stream of one chunk without usage": Way(WORDS, events(text=SAID, times=1), fields=STREAM),
    "a stream of large chunks without usage": Way(WORDS, events(text="word " * 30, times=10), fields=STREAM),
    "a stream whose usage is negative": Way(
        WORDS, events({"prompt_tokens": -7, "completion_tokens": -300}), fields=STREAM
    ),
    "a stream whose usage is words": Way(WORDS, events("many"), fields=STREAM),
    "a stream whose usage is a total": Way(1300, events({"total_tokens": 1300}), fields=STREAM),
    "a stream whose usage is floats": Way(
        1300, events({"prompt_tokens": 7.0, "completion_tokens": 1300.0}), fields=STREAM
    ),
    "a whole answer in place of a stream": Way(WORDS, usage(), fields=STREAM),
    "a stream that is cut off": Way(ASKED, Behaviour(text=SAID, cut_after=3), fields=STREAM),
    "a stream that is cut off before it begins": Way(ASKED, Behaviour(cut_after=0), fields=STREAM),
    "a stream that ends in an error": Way(ASKED, Behaviour(text=SAID, error_at=3), fields=STREAM),
    "a stream with an event that is not JSON": Way(ASKED, Behaviour(text=SAID, bad_json_at=3), fields=STREAM),
    "a stream that falls silent": Way(ASKED, SLOW, waits={"idle": 0.3}, fields=STREAM),
    "a stream that never begins": Way(ASKED, WAITS, waits={"first_token": 0.3}, fields=STREAM),
    "a stream that is left at once": Way(ASKED, WAITS, leaves_after=0, fields=STREAM),
    "a stream that is left after its first chunk": Way(
        ASKED, Behaviour(text=SAID, stall_after=1), leaves_after=1, fields=STREAM
    ),
    "a stream that is left in mid-text": Way(ASKED, SLOW, leaves_after=4, fields=STREAM),
    "a stream that is left after its text": Way(
        ASKED, Behaviour(text="Hello you", stall_after=4), leaves_after=4, fields=STREAM
    ),
    "a long stream that is left": Way(
        WORDS, Behaviour(text=SAID, stall_after=WORDS), leaves_after=WORDS, fields=STREAM | {"max_tokens": 1}
    ),
    # Embeddings.
    "embeddings without usage": embedding(WORDS, vectors()),
    "embeddings whose usage is zero": embedding(WORDS, vectors(usage={"prompt_tokens": 0, "total_tokens": 0})),
    "embeddings whose usage is negative": embedding(WORDS, vectors(usage={"prompt_tokens": -1, "total_tokens": -1})),
    "embeddings whose usage is a total": embedding(1300, vectors(usage={"total_tokens": 1300})),
    "embeddings of tokens without usage": embedding(1000, vectors(), input=[1] * 1000),
    "embeddings of lists of tokens without usage": embedding(1000, vectors(), input=[[1] * 500] * 2),
    "embeddings that are cut off": embedding(WORDS, Behaviour(cut_after=2)),
}

VIA_LITELLM = {
    "litellm": [
        *("no usage", "usage is negative", "usage is a total alone", "the answer is not JSON", "the client leaves"),
        *("a stream without usage", "a stream that is cut off", "a stream that is left after its first chunk"),
        *("a stream that is left in mid-text", "a long stream that is left", "embeddings without usage"),
    ],
    "anthropic": ["a stream that is cut off", "a stream that is left in mid-text", "the answer takes too long"],
}


@pytest.mark.parametrize("name", WAYS)
def test_no_way_gets_tokens_for_nothing(ask: Ask, provider: Stub, name: str) -> None:
    way = WAYS[name]
    assert taken_by(ask, lambda: way.try_it(ask, provider, "direct")) >= way.least


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, names in VIA_LITELLM.items() for name in names])
def test_no_way_gets_tokens_for_nothing_through_litellm(ask: Ask, provider: Stub, model: str, name: str) -> None:
    way = WAYS[name]
    assert taken_by(ask, lambda: way.try_it(ask, provider, model)) >= way.least


def test_what_a_first_attempt_may_have_taken_is_not_given_back(provider: Stub, key: str) -> None:
    callers = {"test": {"key_sha256": hash_key(key), "tokens_per_minute": LIMIT, "max_in_flight": 100}}
    models = {"direct": row(provider), "demo": {"upstream": "demo/echo"}}
    way = Way(ASKED, Behaviour(cut_after=2), (Behaviour(),))
    with running(key, models, callers=callers, retries=1) as ask:
        assert taken_by(ask, lambda: way.try_it(ask, provider, "direct")) >= way.least


HONEST = {
    "an answer": (1 + 7 + 1, Way(0, Behaviour(text="Hello"))),
    "a stream": (1 + 7 + 1, Way(0, Behaviour(text="Hello"), fields=STREAM)),
    "embeddings": (7, Way(0, path=EMBEDDINGS)),
    "the provider refuses the request": (0, Way(0, Behaviour(status=400))),
    "the provider refuses our key": (0, Way(0, Behaviour(status=401))),
    "the provider has too much to do": (0, Way(0, Behaviour(status=503), fields=STREAM)),
    "the provider fails": (0, Way(0, Behaviour(status=500))),
    "a fallback answers": (
        9,
        Way(0, Behaviour(status=500), (Behaviour(text="Hi"),), fields=FALLBACK),
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_is_known_is_charged_and_no_more(ask: Ask, provider: Stub, name: str) -> None:
    tokens, way = HONEST[name]
    assert taken_by(ask, lambda: way.try_it(ask, provider, "direct")) == tokens


def told(**usage: Any) -> dict[str, Behaviour]:
    """Answer whole with a usage of one's own, in each dialect."""
    text = {"type": "output_text", "text": SAID, "annotations": []}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [text]}
    response = {"id": "r", "object": "response", "status": "completed", "model": "m", "output": [message]}
    content = [{"type": "text", "text": SAID}]
    answer = {"id": "m", "type": "message", "role": "assistant", "stop_reason": "end_turn", "content": content}
    return {
        RESPONSES: Behaviour(body=json.dumps(response | usage).encode()),
        MESSAGES: Behaviour(body=json.dumps(answer | usage).encode()),
    }


MANY = {"input_tokens": "seven", "output_tokens": "many"}
UNTOLD = {"type": "a thing of tomorrow", "text": "word " * 8000}
IN_DIALECTS: dict[str, Callable[[str], Way]] = {
    "no usage": lambda _: Way(WORDS, SPEAKS),
    "usage is words": lambda path: Way(WORDS, told(usage=MANY)[path]),
    "usage is a list": lambda path: Way(WORDS, told(usage=[7, 300])[path]),
    "usage is negative": lambda path: Way(WORDS, told(usage={"input_tokens": -7, "output_tokens": -300})[path]),
    "the answer is cut off": lambda _: Way(ASKED, Behaviour(text=SAID, cut_after=2)),
    "the client leaves": lambda _: Way(ASKED, WAITS, leaves_after=0),
    "a stream without usage": lambda _: Way(WORDS, SPEAKS, fields=STREAM),
    "a stream that is cut off": lambda _: Way(ASKED, Behaviour(text=SAID, cut_after=8), fields=STREAM),
    "a stream that ends in an error": lambda _: Way(ASKED, Behaviour(text=SAID, error_at=8), fields=STREAM),
    "a stream that falls silent": lambda _: Way(ASKED, SLOW, waits={"idle": 0.3}, fields=STREAM),
    "a stream that is left in mid-text": lambda _: Way(ASKED, SLOW, leaves_after=7, fields=STREAM),
    "a long stream that is left": lambda path: Way(
        WORDS - 20,
        Behaviour(text=SAID, stall_after=WORDS),
        leaves_after=WORDS - 10,
        fields=STREAM | {"max_output_tokens" if path == RESPONSES else "max_tokens": 1},
    ),
}


@pytest.mark.parametrize("name", IN_DIALECTS)
@pytest.mark.parametrize("model", ["direct", "native"])
@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_no_dialect_gets_tokens_for_nothing(ask: Ask, provider: Stub, path: str, model: str, name: str) -> None:
    if model == "direct" and name.startswith("usage"):
        return  # chat's own answers have been seen above
    way = replace(IN_DIALECTS[name](path), path=path)
    statuses: list[int | None] = []
    assert taken_by(ask, lambda: statuses.append(way.try_it(ask, provider, model))) >= way.least
    if "usage" in name:
        assert statuses == [200]


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_what_chat_has_no_word_for_is_reserved_where_it_is_sent(ask: Ask, provider: Stub, path: str) -> None:
    said = {"role": "user", "content": [UNTOLD | {"text": ""}, {"type": "text", "text": "Hi"}, UNTOLD]}
    fields = {"input": [{"role": "user", "content": "Hi"}, UNTOLD]} if path == RESPONSES else {"messages": [said]}
    way = Way(ASKED + 8000, WAITS, leaves_after=0, path=path, fields=fields)
    assert taken_by(ask, lambda: way.try_it(ask, provider, "native")) >= way.least
    assert taken_by(ask, lambda: way.try_it(ask, provider, "direct")) < way.least


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["direct", "native"])
@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_in_each_dialect_what_is_known_is_charged(
    ask: Ask, provider: Stub, path: str, model: str, *, stream: bool
) -> None:
    way = Way(0, Behaviour(text="Hello"), path=path, fields={"stream": stream})
    assert taken_by(ask, lambda: way.try_it(ask, provider, model)) == 1 + 7 + 1
