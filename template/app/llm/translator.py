"""The interface of a dialect's translator."""

from typing import Any, Protocol

from app.errors import AppError
from app.llm.stream_state import StreamState


class BrokenOff(Exception):
    """A provider has broken off its answer, and says so by its finish reason."""


class Translator(Protocol):
    """Translates one request of another dialect to chat, and what comes back from chat to the dialect.

    Attributes:
        dialect: the dialect's name, as in a row's `speaks`.
        path: the dialect's address at an upstream that speaks it.
        end: the last event of a complete stream, as clients get it.
        needs: the field that every whole answer has.
        last_deltas: the last events that were passed on and not given to `pass_on`.
        model: the model that it asks for.
        fields: the request's fields for chat; asking for them may raise InvalidRequest.
        versions: the dialect's own version and beta headers of the request, which an upstream gets.
        left_out: names of what chat can't express, and what was therefore left out.
    """

    dialect: str
    path: str
    end: bytes
    needs: str
    last_deltas: bytes
    model: str | None
    versions: dict[str, str]
    left_out: list[str]

    @property
    def fields(self) -> dict[str, Any]: ...

    def outlines(self) -> dict[str, Any]:
        """Return as much of the request as limits are counted by, in chat's terms; it may raise InvalidRequest."""

    def check(self) -> None:
        """Raise InvalidRequest if chat can't express this request at all."""

    def lower(self, limit: int) -> None:
        """Ask for at most so many tokens, or raise InvalidRequest, if the dialect's clients expect a refusal."""

    def restart(self) -> None:
        """Forget what a failed attempt has said."""

    def feed(self, packet: bytes) -> bytes:
        """Return the dialect's events for a packet of chat's whole events.

        Raises:
            BrokenOff: the answer is not complete. `answer` raises it too.
        """

    def pass_on(self, event: dict[str, Any], state: StreamState) -> bool:
        """Note what an event of the dialect's own says, which an upstream has sent; return whether it is the last.

        Raises:
            AttributeError, KeyError, TypeError: it is no event of the dialect.
        """

    def error_in(self, event: dict[str, Any]) -> Any:
        """Return the error that an event of the dialect's own tells; None if it tells none."""

    def as_chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the outlines of a chat completion for the dialect's own whole answer: model, end, and usage."""

    def native(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Return the request for an upstream that speaks the dialect, with those of a row's defaults that fit."""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the dialect's whole answer for a chat completion."""

    def failed(self, error: AppError, request_id: str) -> bytes:
        """Return the events that end a stream which has begun and has failed."""
