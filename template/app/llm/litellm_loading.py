"""Loads LiteLLM in a thread and makes its first calls, so that a client's first call costs what the tenth does."""

import asyncio
import contextlib
import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from app.llm.litellm_clients import close_clients
from app.llm.targets import Target
from app.llm.vendors import VENDORS
from app.llm.wire import is_observed, observe_transport

WARM_UP_WITHIN = 30.0
"""Seconds that all first calls may take together."""
STOP_WITHIN = 0.01
"""Seconds in which the server of the first calls notices that it is no longer needed."""
ASKED_BY_NAME = {"anthropic", "azure_ai", "bedrock", "cohere", "cohere_chat", *VENDORS}
"""Providers whose own code is warmed up. The code of others might look for credentials over the network."""
ANSWER = json.dumps(
    {
        "id": "warm-up",
        "object": "chat.completion",
        "created": 1,
        "type": "message",
        "role": "assistant",
        "model": "warm-up",
        "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "Hello"}],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP"}],
        "usage": {**dict.fromkeys(("input_tokens", "output_tokens", "prompt_tokens", "completion_tokens"), 1)},
    }
).encode()
"""A whole answer that OpenAI's, Anthropic's and Google's adapters of LiteLLM can read."""


def load(image_hosts: Sequence[str], targets: Sequence[Target]) -> Any:
    """Return the module `litellm`, imported, configured and warmed up. It takes seconds: call it in a thread.

    Args:
        image_hosts: hosts whose images and files LiteLLM may fetch from the private network.
        targets: the models that will be called through LiteLLM.

    Raises:
        Exception: LiteLLM can't be imported.
    """
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import fetches a price list over the network
    os.environ["LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS"] = "True"  # else a call of Anthropic's API fetches another list
    os.environ["LITELLM_MODE"] = "PRODUCTION"  # else it reads `.env` itself
    os.environ["REPEATED_STREAMING_CHUNK_LIMIT"] = str(sys.maxsize)  # else a hundred equal chunks are an error
    for name in ("LITELLM_HTTP2", "DISABLE_AIOHTTP_TRANSPORT"):
        os.environ[name] = "False"  # httpx's own transport would follow redirects, and can't be observed
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).disabled = True  # they quote requests; failures become errors of ours, which are logged
    import litellm

    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True  # else counting tokens of a Llama fetches its tokenizer, and waits
    litellm.telemetry = False
    litellm.user_url_validation = True  # it fetches nothing from private addresses
    litellm.user_url_allowed_hosts = list(image_hosts)
    observe_transport()
    leave_out_costs(litellm)
    with contextlib.suppress(Exception):  # a call that fails has warmed up too
        asyncio.run(_warm_up(litellm, targets))
    return litellm


@functools.cache
def leave_out_costs(litellm: Any) -> None:
    """Spare LiteLLM the cost of our calls, a sixth of its work. Prices are the model table's, and nobody reads its own.

    It still works out the cost of calls that somebody else makes, and of ours for callbacks of LiteLLM's, but the
    `cache` that it sets itself. A release that works it out elsewhere is as slow as before.
    """
    work_out: Any = getattr(litellm, "response_cost_calculator", None)
    lists = ("callbacks", "success_callback", "_async_success_callback")

    def work_out_if_read(**given: Any) -> Any:
        readers = (reader for name in lists for reader in getattr(litellm, name, ["unknown"]))
        return work_out(**given) if not is_observed() or any(reader != "cache" for reader in readers) else None

    litellm.response_cost_calculator = work_out_if_read


async def _warm_up(litellm: Any, targets: Sequence[Target]) -> None:
    """Call each provider's adapter of LiteLLM once whole and once streamed, against a server of our own."""
    models = {target.provider: target.model for target in targets if target.provider in ASKED_BY_NAME}
    if any(target.provider == "vertex_ai" for target in targets):
        models.setdefault("gemini", "gemini/warm-up")  # the same code, without Google's credentials
    if not models:
        models["openai"] = "openai/warm-up"
    # In a thread of its own: LiteLLM asks some providers by blocking calls, which a server in this loop can't answer.
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, args=[STOP_WITHIN], name="warm-up", daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WARM_UP_WITHIN):
                for provider, model in models.items():
                    for stream in (False, True):
                        with contextlib.suppress(Exception):
                            await _call(litellm, provider, model, address, stream=stream)
        server.shutdown()
    await close_clients(litellm)


async def _call(litellm: Any, provider: str, model: str, address: str, *, stream: bool) -> None:
    options: dict[str, Any] = {"api_base": address, "num_retries": 0}
    if provider == "bedrock":
        keys = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "warm-up")
        options |= {"aws_region_name": "us-east-1", **keys}
    else:
        options |= {"api_key": "warm-up", "max_retries": 0}
    answer = await litellm.acompletion(
        model=model, messages=[{"role": "user", "content": "Hello"}], stream=stream, timeout=5, **options
    )
    if stream:
        async for _ in answer:
            pass


class _Answer(BaseHTTPRequestHandler):
    """Answers every request alike."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: object) -> None:
        """Write no line to the console."""
