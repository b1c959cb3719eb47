"""Reads a provider's responses, and turns what HttpClient raises into our errors."""

from typing import Any

from app.errors import ProviderError, ProviderTimeout
from app.llm.failures import cut_off, error_in, failure_in_body, unreachable, unreadable
from app.llm.http_response import DECODED, HttpError, Response, Unreached, Unreadable
from app.llm.json_text import read_json
from app.llm.sse import BYTE_ORDER_MARK
from app.llm.targets import Target

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""The embeddings of 2,048 texts, in digits, take more than 64 MB."""
AFTER_DONE = 1.0
"""Seconds that a provider may take to end its response after `[DONE]`, or a finish reason that LiteLLM reads."""


async def read_body(target: Target, response: Response, limit: int = MAX_ANSWER_BYTES) -> bytes:
    """Return a response's whole body.

    Args:
        target: the model, for errors.
        response: its status and headers have been read.
        limit: the most bytes that it may have.

    Raises:
        ProviderError: it is longer, or it was cut off.
    """
    packets, size = [], 0
    try:
        while packet := await response.read():
            packets.append(packet)
            size += len(packet)
            if size > limit:
                raise unreadable(target.name)
    except HttpError as error:
        raise broken_body(target, error) from None
    return b"".join(packets)


def parse_answer(target: Target, body: bytes) -> dict[str, Any]:
    """Return the JSON object in the body of an answer with status 200.

    Raises:
        ProviderError: the body is something else, or is an error.
    """
    try:
        answer = read_json(body.removeprefix(BYTE_ORDER_MARK))
    except ValueError:
        raise unreadable(target.name) from None
    if (error := error_in(answer)) is not None:
        raise failure_in_body(target, error)
    if not isinstance(answer, dict):
        raise unreadable(target.name)
    return answer


def check_encoding(target: Target, response: Response) -> None:
    """Raise our error for a stream in an encoding that we do not know, whose bytes would mean nothing."""
    if response.headers.get("content-encoding", "identity").lower() not in DECODED:
        response.close()
        raise unreadable(target.name)


def not_answered(target: Target, error: HttpError, connect: float) -> ProviderError:
    """Return our error for a request to which no response has come; log why.

    Args:
        target: the model.
        error: what HttpClient raised.
        connect: the seconds that connecting may take.
    """
    if isinstance(error, Unreadable):
        return unreadable(target.name)
    reason = str(error) if isinstance(error, Unreached) else type(error).__name__
    failure = unreachable(target, reason, unreached=isinstance(error, Unreached))
    if reason == "TimeoutError":
        within = f"within {connect:g} s (timeouts.connect)"
        message = f"The provider of model {target.name!r} did not accept a connection {within}."
        return ProviderTimeout(message, retry=True, unreached=True)
    return failure


def broken_body(target: Target, error: HttpError) -> ProviderError:
    """Return our error for a body that can't be read to its end: because of its encoding, or because it was cut off."""
    return unreadable(target.name) if isinstance(error, Unreadable) else cut_off(target.name)
