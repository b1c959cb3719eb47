"""The adapter via LiteLLM: every provider that does not speak OpenAI's protocol itself.

Only this module imports LiteLLM, in a thread, and only if a model of the table needs it: seconds and 160 MB.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from functools import cache
from typing import Any

import structlog

from app.config import Timeouts
from app.errors import AppError, InvalidRequest, ProviderNotConfigured
from app.llm.adapter import Adapter
from app.llm.call import Call
from app.llm.deadlines import Deadlines
from app.llm.embeddings import BASE64_PROVIDERS
from app.llm.failures import cut_off, failure_in_body, redact, unreadable
from app.llm.litellm_answers import chunk_of, completion_of, name_ends, said_in, spoken
from app.llm.litellm_clients import close_clients
from app.llm.litellm_errors import litellm_failure
from app.llm.litellm_loading import load
from app.llm.sse import DONE
from app.llm.stream_state import StreamState
from app.llm.targets import Target
from app.llm.wire import Wire
from app.models import addresses
from app.telemetry.logs import exception_fields
from app.telemetry.tracing import inject

FORWARDED = frozenset(
    """
    audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens modalities n
    parallel_tool_calls prediction presence_penalty prompt_cache_key reasoning_effort response_format
    safety_identifier seed service_tier stop store temperature thinking tool_choice tools top_logprobs top_p user
    verbosity web_search_options
    """.split()
)
"""Fields that a caller may set besides model, messages and streaming. The list is written out, because any other field
could be an option of LiteLLM's: `api_base` sends our key elsewhere, `mock_response` gives a fake answer."""

EMBEDDING = frozenset({"input", "dimensions", "encoding_format", "user"})

log = structlog.get_logger("app.llm")


class ViaLiteLLM(Adapter):
    """Calls providers through LiteLLM.

    Args:
        targets: the models that are called through it.
        timeouts: time limits, in seconds. LiteLLM keeps `connect`; each call's deadlines keep the others.
        image_hosts: hosts whose images and files may be fetched over http, or from the private network.
        traced: pass the trace's context on to the provider.
    """

    def __init__(
        self, targets: Sequence[Target], timeouts: Timeouts, image_hosts: Sequence[str] = (), *, traced: bool = False
    ) -> None:
        self._targets = targets
        self._timeouts = timeouts
        self._image_hosts = [host.lower() for host in image_hosts]
        self._traced = traced

    async def start(self) -> None:
        """Start to load LiteLLM in a thread, without waiting for it."""
        self._loading = asyncio.create_task(self._load())

    def failing(self) -> list[str]:
        """Return what is not ready yet, one sentence each."""
        if not self._loading.done():
            return ["LiteLLM is being loaded."]
        return ["LiteLLM can't be loaded; the log says why."] if self._loading.result() is None else []

    async def close(self) -> None:
        """Close LiteLLM's connections, after its logging worker has drained."""
        litellm = await self._loading
        if litellm is not None:
            await close_clients(litellm)

    async def _load(self) -> Any:
        try:
            return await asyncio.to_thread(load, self._image_hosts, self._targets)
        except Exception as error:
            log.error("LiteLLM can't be loaded", reason=redact(str(error))[:500], **exception_fields(error))
            return None

    async def complete(self, call: Call, target: Target) -> dict[str, Any]:
        """Return a chat completion; arguments and errors as in `Direct.complete`."""
        call.deadlines.start_answer(target.name)
        answer = await self._call("acompletion", target, call, Wire())
        try:
            return completion_of(answer)
        except (AttributeError, TypeError):
            raise unreadable(target.name) from None

    async def embed(self, call: Call, target: Target) -> dict[str, Any]:
        """Return embeddings; arguments and errors as in `Direct.complete`."""
        call.deadlines.start_answer(target.name)
        answer = await self._call("aembedding", target, call, Wire())
        body: dict[str, Any] = answer.model_dump(exclude_none=True)
        return body

    async def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, None]:
        """Yield a stream's events, `[DONE]` last; arguments and errors as in `Direct.stream`.

        Raises:
            InvalidRequest: several choices are asked for; LiteLLM loses all their finish reasons but one.
        """
        if state.choices > 1:
            raise InvalidRequest(f"Model {target.name!r} streams one choice at a time: leave out n.", param="n")
        call.deadlines.start_stream(target.name)
        wire = Wire()
        stream = None
        said = set[str | None]()
        try:
            stream = await self._call("acompletion", target, call, wire, stream=True)
            if isinstance(source := getattr(stream, "completion_stream", None), AsyncIterable):
                stream.completion_stream = spoken(stream, source)
            chunks = aiter(stream)
            while (chunk := await self._next(target, chunks, call.deadlines, wire)) is not None:
                if wire.is_broken:
                    raise unreadable(target.name)
                body = chunk_of(chunk)
                said.update(map(said_in, body["choices"]))
                name_ends(body["choices"], said)
                if any(choice["finish_reason"] for choice in body["choices"]):
                    _check_end(target, wire, stream, said)
                usage_is_told = _forget_chunks(stream)
                if ("usage" not in body or usage_is_told) and (event := state.event(body)):
                    yield event
                call.deadlines.next_event()
            if wire.is_broken:
                raise unreadable(target.name)
            _check_end(target, wire, stream, said)
            if state.lost_a_choice:
                raise cut_off(target.name)
            yield DONE
        finally:
            if stream is not None:
                await stream.aclose()
            await wire.close()

    async def _call(self, function: str, target: Target, call: Call, wire: Wire, *, stream: bool = False) -> Any:
        fields = call.fields
        try:
            async with call.deadlines.limit():
                litellm = await asyncio.shield(self._loading)
                if litellm is None:
                    raise ProviderNotConfigured(
                        f"Model {target.name!r} is not available: LiteLLM can't be loaded here."
                    )
                httpx = sys.modules["httpx"]  # LiteLLM's
                if function == "acompletion":
                    # Else LiteLLM looks for its MCP gateway, which is not installed, when tools are offered.
                    arguments = self._arguments(target, fields) | {"_skip_mcp_handler": True}
                else:
                    unasked = {"model"} if target.provider in BASE64_PROVIDERS else {"model", "encoding_format"}
                    arguments = {name: value for name, value in fields.items() if name not in unasked}
                    _refuse_unknown(target, arguments.keys() - EMBEDDING)
                if self._traced:
                    arguments["extra_headers"] = dict[str, str]()
                    inject(arguments["extra_headers"])
                if stream:
                    options = fields.get("stream_options") or {}
                    arguments |= {"stream": True, "stream_options": {**options, "include_usage": True}}
                with wire.observing():
                    return await getattr(litellm, function)(
                        model=target.model,
                        api_key=target.key,
                        api_base=target.api_base,
                        timeout=httpx.Timeout(None, connect=self._timeouts.connect),
                        num_retries=0,
                        max_retries=0,
                        **arguments,
                    )
        except TimeoutError:
            raise call.deadlines.expired() from None
        except AppError:
            raise
        except Exception as error:
            raise litellm_failure(target, error, wire, fields) from None

    @staticmethod
    async def _next(target: Target, chunks: Any, deadlines: Deadlines, wire: Wire) -> Any:
        try:
            async with deadlines.limit():
                with wire.observing():  # some providers are asked only now
                    return await anext(chunks, None)
        except TimeoutError:
            raise deadlines.expired() from None
        except Exception as error:
            raise litellm_failure(target, error, wire) from None

    def _arguments(self, target: Target, sent: dict[str, Any]) -> dict[str, Any]:
        """Return LiteLLM's arguments: the fields that this provider accepts.

        Raises:
            InvalidRequest: the request sets a field that the provider does not accept, or the address of an image or a
                file is not https.
        """
        parts = [message["content"] for message in sent["messages"] if isinstance(message.get("content"), list)]
        if any(scheme != "https" and host not in self._image_hosts for scheme, host in addresses(parts)):
            message = f"Images and files for model {target.name!r} come from https: and data: addresses"
            raise InvalidRequest(f"{message} (setting image_hosts).", param="messages")
        _refuse_unknown_parts(target, sent["messages"])
        known = _accepted(target.provider, target.model.removeprefix(f"{target.provider}/"))
        own = {"model", "messages", "stream", "stream_options"}
        _refuse_unknown(target, {k for k, v in sent.items() if v is not None and (k, v) != ("n", 1)} - own - known)
        fields = target.fields(sent, known)
        return {k: v for k, v in fields.items() if v is not None and (k in known or k == "messages")}


@cache
def _accepted(provider: str, model: str) -> frozenset[str]:
    """Return the fields that a provider accepts for a model; kept, since LiteLLM takes 0.2 to 0.4 ms to tell."""
    from litellm.litellm_core_utils.get_supported_openai_params import get_supported_openai_params

    supported = get_supported_openai_params(model=model, custom_llm_provider=provider)
    return FORWARDED.intersection(FORWARDED if supported is None else supported)


def _refuse_unknown(target: Target, names: set[str]) -> None:
    if names:
        name = min(names)
        raise InvalidRequest(f"The provider of model {target.name!r} does not take {name[:128]!r}.", param=name[:128])


def _refuse_unknown_parts(target: Target, messages: list[dict[str, Any]]) -> None:
    from litellm.types.llms.openai import ValidUserMessageContentTypes

    for i, message in enumerate(messages):
        content = message.get("content") if message["role"] == "user" else None
        for j, part in enumerate(content if isinstance(content, list) else []):
            if part["type"] not in ValidUserMessageContentTypes:
                param = f"messages.{i}.content.{j}.type"
                text = f"{param}: the provider of model {target.name!r} does not take content of this type."
                raise InvalidRequest(text, param=param)


def _check_end(target: Target, wire: Wire, stream: Any, said: set[str | None]) -> None:
    """Check that the provider's own events have ended a stream: LiteLLM invents an end for one that is cut off.

    Its `received_finish_reason` is right for most providers, but always None for Gemini and Vertex AI.

    Raises:
        ProviderError: they have not, or they tell an error, or a call of a tool that LiteLLM has lost.
    """
    if wire.error is not None:
        raise failure_in_body(target, wire.error)
    if not wire.ended and stream.received_finish_reason is None:
        raise cut_off(target.name)
    if wire.calls_tools and not said & {"text", "tools"}:
        raise unreadable(target.name)


def _forget_chunks(stream: Any) -> bool:
    """Drop what LiteLLM keeps until a stream's end: its text, and 6 kB for each chunk. Chunks with usage stay.

    Returns:
        Whether the provider has sent its usage. If not, the usage that LiteLLM adds at the end is an estimate.
    """
    stream.response_uptil_now = ""
    stream.chunks[1:] = [chunk for chunk in stream.chunks[1:] if getattr(chunk, "usage", None)]
    return any(getattr(chunk, "usage", None) for chunk in stream.chunks)
