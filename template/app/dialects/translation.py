"""What the translators of both dialects share."""

import re
from abc import ABC, abstractmethod
from functools import cached_property
from itertools import compress, repeat
from operator import is_not
from typing import Any, ClassVar

from pydantic import ValidationError

from app.dialects.chunks import Thought, as_chunk, chunks, unsealed
from app.dialects.conversation import web_only
from app.dialects.references import without_seals
from app.errors import InvalidRequest, UnsupportedParameter, unfit
from app.llm.sse import Events
from app.models import ChatRequest

MOST_LEFT_OUT = 32
"""Names of what is left out that a client is told."""
MOST_UNSEALED = 50_000
"""Values that the reasoning in a request may have, like its other values."""
TEXTS = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal", "compaction"})
"""Types of parts in which nothing is fetched by a server."""
UNFIT_FOR_HEADERS = re.compile(r"[^A-Za-z0-9_.-]")


class Translation(ABC):
    """A request of another dialect, and what chat is asked for it. See `app.llm.translator.Translator`.

    Args:
        asked: the request.
        versions: the dialect's version and beta headers of the request.
    """

    names: ClassVar[dict[str, str]] = {}
    """Chat's names of fields, and the dialect's own for the same."""
    bound: ClassVar[str]
    """The field that bounds an answer's tokens."""
    history: ClassVar[str]
    """The field that has the conversation."""
    of_tools: ClassVar[re.Pattern[str] | None] = None
    """In the types of parts that lead nowhere but may have parts of their own; None: there are none such."""

    def __init__(self, asked: Any, versions: dict[str, str] | None = None) -> None:
        given = vars(asked) | (asked.model_extra or {})  # plain JSON, so nothing is to be dumped
        self.sent: dict[str, Any] = dict(compress(given.items(), map(is_not, given.values(), repeat(None))))
        self.versions = versions or {}
        self.left_out: list[str] = []
        self._refusal: InvalidRequest | None = None
        self.model: str | None = asked.model
        self.stream = bool(asked.stream)
        self._unsealed_values = MOST_UNSEALED
        if self.sent.get("n", 1) != 1:
            self.cannot("n: there is one answer here.", "n")
        self.restart()

    def restart(self) -> None:
        """Forget what a failed attempt has said."""
        self._begun: Any = None
        self.last_deltas = b""

    @property
    def _stream(self) -> Any:
        """The answer of the newest attempt; made when it is needed, since what is passed through needs none."""
        if self._begun is None:
            self._begun, self._events = self._begin(), Events()
        return self._begun

    @abstractmethod
    def _begin(self) -> Any:
        """Return what makes the answer of chat's chunks: ResponseEvents, or MessageEvents."""

    def check(self) -> None:
        """Raise InvalidRequest if chat can't express this request at all."""
        _ = self.fields  # by which it is known
        if self._refusal:
            raise self._refusal

    def lower(self, limit: int) -> None:
        """Refuse a request for more tokens than this, as chat does."""
        raise InvalidRequest(f"{self.bound}: at most {limit} (setting max_tokens_limit).", param=self.bound)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The request's fields for chat; translated when they are needed, since what is passed through needs none.

        Raises:
            InvalidRequest: chat can't read the request, or a field is out of its bounds.
        """
        return self._checked(self._fields())

    @abstractmethod
    def _fields(self) -> dict[str, Any]:
        """Return chat's fields for the request's."""

    def outlines(self) -> dict[str, Any]:
        """Return as much of the request as limits are counted by, in chat's terms.

        Raises:
            InvalidRequest: a part of a message leads a server to anything but the web.
        """
        rest = self.sent.copy()
        said, bound = rest.pop(self.history, None), rest.pop(self.bound, None)
        messages = said if isinstance(said, list) else [{"content": said}]
        for index, message in enumerate(messages):
            if self.is_read(message):
                self._check_parts(message, f"{self.history}.{index}")
        return {"messages": messages, "rest": rest} | ({"max_completion_tokens": bound} if bound else {})

    def is_read(self, message: dict[str, Any]) -> bool:
        """Return whether an item of the history may have parts that lead a server somewhere."""
        return True

    def _check_parts(self, of: dict[str, Any], param: str) -> None:
        """Check the parts of an item or a message, or of a tool's result in it."""
        for field in ("content", "output"):
            parts = of.get(field)
            for index, part in enumerate(parts if isinstance(parts, list) else ()):
                where = f"{param}.{field}.{index}"
                if not isinstance(part, dict):
                    raise InvalidRequest(f"{where}: Input should be an object", param=where)
                kind = str(part.get("type"))
                if self.of_tools and self.of_tools.search(kind):
                    self._check_parts(part, where)
                elif kind not in TEXTS:
                    source = part.get("source")
                    inner = {**source, "content": None} if isinstance(source, dict) else source
                    web_only({**part, "source": inner}, where)
                    if isinstance(source, dict):
                        self._check_parts(source, f"{where}.source")

    def native(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Return the request for an upstream that speaks the dialect, with those of a row's defaults that fit."""
        fields = {}
        for name, value in defaults.items():
            if (known := self.names.get(name, name)) in self.defaults:
                fields[known] = value
        fields |= self.sent
        if isinstance(said := fields.get(self.history), list):
            fields[self.history] = without_seals(said)
        return fields

    defaults: ClassVar[frozenset[str]] = frozenset({"temperature", "top_p"})
    """Fields of a row's `defaults` that the dialect has too, by its own names."""

    def leave_out(self, name: str) -> None:
        """Note that chat can't express something, and that the answer can do without it."""
        name = UNFIT_FOR_HEADERS.sub("", name[:64])
        if len(self.left_out) < MOST_LEFT_OUT and name not in self.left_out:
            self.left_out.append(name)

    def unseal(self, text: Any, name: str) -> Thought | None:
        """Return the reasoning that this model gave before; of another's, note that it is left out."""
        thought, values = unsealed(text, self.model or "", self._unsealed_values)
        self._unsealed_values -= values
        if thought is None:
            self.leave_out(name)
        return thought

    def cannot(self, message: str, param: str) -> None:
        """Note that chat can't express something, without which there is no answer."""
        self._refusal = self._refusal or UnsupportedParameter(message, param=param)

    def feed(self, packet: bytes) -> bytes:
        """Return the events for a packet of chat's whole events."""
        stream = self._stream
        for chunk in chunks(self._events, packet):
            if chunk is None:
                stream.finish()
            else:
                stream.add(chunk)
        events: bytes = stream.take()
        return events

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer for a chat completion."""
        self._stream.add(as_chunk(body))
        self._stream.finish()
        whole: dict[str, Any] = self._stream.whole
        return whole

    def _checked(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return these fields as chat has checked them.

        Raises:
            InvalidRequest: a field is out of its bounds; it is named as the dialect names it.
        """
        try:
            chat = ChatRequest.model_validate(fields)
        except ValidationError as error:
            refusal = unfit(error)
            param = refusal.param or ""
            first, dot, rest = param.partition(".")
            name = self.names.get(first, first) + dot + rest
            raise InvalidRequest(refusal.message.replace(param, name, 1), param=name or None) from None
        checked = vars(chat) | (chat.model_extra or {})
        for name in ("messages", "stream_options"):  # models, which would have to be dumped
            checked[name] = fields.get(name)
        return {name: checked[name] for name, value in fields.items() if value is not None}


def hosted_choice(kind: str) -> str:
    """Return the sentence for a tool that was asked for, and that a bridge can't run."""
    return f"tool_choice asks for the tool {kind!r}, which this model's provider does not run. Choose a function."
