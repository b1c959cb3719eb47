"""One call of a model, as a value: what is asked, by whom, how long it may take, and what came of it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal

from app.access.callers import Caller
from app.access.limits import Admission
from app.llm.deadlines import Deadlines
from app.llm.stream_state import StreamState
from app.llm.targets import Target
from app.llm.translator import Translator

Operation = Literal["chat", "embeddings"]


@dataclass(slots=True)
class Call:
    """One call of a model. Made by LLMClient for each call and passed down; no two calls share anything in it.

    Attributes:
        operation: what is asked for.
        target: the model that was asked for.
        fields: the request's fields, in OpenAI's terms.
        is_outlined: whether these are only the translator's outlines, since its request is passed through.
        deadlines: the call's time limits.
        caller: who calls; None is the application itself.
        prepaid: as in `Admission`.
        translator: of the dialect that the request came in; None is chat.
        left_out: what could not be translated for the model that was tried last.
        tried: the models that were tried, in order, one entry for each attempt.
        began_at: when the answer, or a stream's first event, arrived, in seconds of `perf_counter`; None before that.
        admissions: what admits the call, for its own model and for each fallback that was tried.
        unsettled: names of the models that may have used more tokens than anybody has told.
        told: whether the provider has told how many tokens the answer took.
        cost: what it costs, in micro-dollars; None if its model has no price.
        inner: the sum of the calls that each own model has made for this one.
        headers: what a response tells about this call: `X-Model` and `x-ratelimit-*`.
        stream: what the stream of the newest attempt has said so far; None where a whole answer is asked for.
        response_model: the provider's name of the model that answered.
        finish_reasons: why the answer ended, one reason for each choice.
        prompt_tokens: tokens of the request, as the provider counted them, else estimated.
        completion_tokens: tokens of the answer.
        details: how many of them were `cached_tokens` and `reasoning_tokens`.
    """

    operation: Operation
    target: Target
    fields: dict[str, Any]
    deadlines: Deadlines
    caller: Caller | None = None
    prepaid: dict[str, str] | None = None
    translator: Translator | None = None
    is_outlined: bool = False
    left_out: list[str] = field(default_factory=list)
    tried: list[Target] = field(default_factory=list)
    began_at: float | None = None
    admissions: list[tuple[Target, Admission]] = field(default_factory=list)
    unsettled: set[str] = field(default_factory=set)
    told: bool = False
    cost: int | None = None
    inner: "dict[str, CallTotals]" = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    stream: StreamState | None = None
    response_model: str | None = None
    finish_reasons: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    details: dict[str, int] = field(default_factory=dict)

    @property
    def caller_name(self) -> str | None:
        """The name of who calls; None for the application itself."""
        return self.caller.name if self.caller else None

    def spent(self, target: Target) -> None:
        """Note that an attempt may have used tokens, and money, that nobody has told."""
        self.unsettled.add(target.name)
        self.admissions[-1][1].spent = True

    @property
    def answered_by(self) -> Target:
        """The model that answered, or was tried last."""
        return self.tried[-1] if self.tried else self.target


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        body: OpenAI's object.
        call: the call that brought it.
    """

    body: dict[str, Any]
    call: Call


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A stream whose first event has arrived.

    Attributes:
        call: the call; its `headers` are complete.
        first: the first packet: one or more whole events.
        packets: those that follow, `[DONE]` last. It has begun, since something may be sent into it (`asend`).
    """

    call: Call
    first: bytes
    packets: AsyncGenerator[bytes, Any]

    @property
    def headers(self) -> dict[str, str]:
        """What the response tells about the call."""
        return self.call.headers

    def ending(self) -> None:
        """Give back the call's places in flight: whoever gets the last packet may ask again at once."""
        for _, admission in self.call.admissions:
            admission.leave_places()


@dataclass(slots=True)
class CallTotals:
    """The sum of one request's calls, for its log line and metrics. A call is added when it has ended.

    Attributes:
        models: public names of the models that answered, or were tried last; each once.
        tried: public names of all models that were tried, in the order in which the calls ended.
        prompt_tokens: tokens of all requests to models.
        completion_tokens: tokens of all answers.
        details: as in Call.
        calls: how many calls there were.
        cost: what they cost, in micro-dollars; None if no model of theirs has a price.
        unsettled: whether one of them may have used more tokens than anybody has told.
        left_out: what could not be translated to chat.
    """

    models: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    details: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    cost: int | None = None
    unsettled: bool = False
    left_out: list[str] = field(default_factory=list)

    def add(self, call: Call) -> None:
        """Count a call that has ended."""
        self.calls += 1
        if call.tried and call.answered_by.name not in self.models:
            self.models.append(call.answered_by.name)
        self.tried += [target.name for target in call.tried]
        self.prompt_tokens += call.prompt_tokens
        self.completion_tokens += call.completion_tokens
        for name, tokens in call.details.items():
            self.details[name] = self.details.get(name, 0) + tokens
        self.left_out += call.left_out
        if call.cost is not None:
            self.cost = (self.cost or 0) + call.cost
