"""Reads a provider's responses with aiohttp, and turns what aiohttp raises into our errors."""

import asyncio
import contextlib
from typing import Any

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError

from app.errors import ProviderError, ProviderTimeout
from app.llm.failures import cut_off, error_in, failure_in_body, unreachable, unreadable
from app.llm.json_text import read_json
from app.llm.sse import BYTE_ORDER_MARK, ENCODINGS
from app.llm.targets import Target

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""The embeddings of 2,048 texts, in digits, take more than 64 MB."""
AFTER_DONE = 1.0
"""Seconds that a provider may take to end its response after `[DONE]`, or a finish reason that LiteLLM reads."""
READ_ERRORS = (aiohttp.ClientError, OSError)


async def read_body(target: Target, response: aiohttp.ClientResponse, limit: int = MAX_ANSWER_BYTES) -> bytes:
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
        while packet := await response.content.readany():
            packets.append(packet)
            size += len(packet)
            if size > limit:
                raise unreadable(target.name)
    except READ_ERRORS as error:
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


def check_encoding(target: Target, response: aiohttp.ClientResponse) -> None:
    """Raise our error for a stream in an encoding that aiohttp does not know, whose bytes would mean nothing."""
    if response.headers.get("Content-Encoding", "identity").lower() not in ENCODINGS:
        response.close()
        raise unreadable(target.name)


def not_answered(target: Target, error: Exception, connect: float) -> ProviderError:
    """Return our error for a request to which no response has come; log why.

    Args:
        target: the model.
        error: what aiohttp raised.
        connect: the seconds that connecting may take.
    """
    if isinstance(error, aiohttp.ClientResponseError) and not isinstance(error, aiohttp.ClientHttpProxyError):
        return unreadable(target.name)  # not HTTP, or headers that are too long
    failure = unreachable(target, type(error).__name__)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        within = f"within {connect:g} s (timeouts.connect)"
        message = f"The provider of model {target.name!r} did not accept a connection {within}."
        return ProviderTimeout(message, retry=True, unreached=True)
    return failure


def broken_body(target: Target, error: Exception) -> ProviderError:
    """Return our error for a body that can't be read to its end: because of its encoding, or because it was cut off."""
    undecodable = isinstance(error.__cause__, ContentEncodingError)
    return unreadable(target.name) if undecodable else cut_off(target.name)


async def read_to_end(response: aiohttp.ClientResponse) -> None:
    """Read to the end of a response whose stream has ended, so that its connection can be used again."""
    with contextlib.suppress(*READ_ERRORS):
        if not response.content.at_eof():
            async with asyncio.timeout(AFTER_DONE):
                while await response.content.readany():
                    pass
