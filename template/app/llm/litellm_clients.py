"""Closes the HTTP clients that LiteLLM keeps for the whole process."""

import asyncio
import contextlib
from typing import Any


async def close_clients(litellm: Any) -> None:
    """Close the connections that LiteLLM has opened in this event loop, after its logging worker has drained.

    LiteLLM's own `close_litellm_async_clients` closes those of every loop. Another loop may run in another thread, as
    in tests with two applications, and must not find its sockets closed.

    Args:
        litellm: the module.
    """
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER as WORKER

    if getattr(WORKER, "_bound_loop", None) is asyncio.get_running_loop():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await WORKER.flush()
        await WORKER.stop()
    cache = litellm.in_memory_llm_clients_cache
    of_this_loop = cache.update_cache_key_with_event_loop("")  # what the keys of its clients end with
    for key, handler in list(cache.cache_dict.items()):
        if await _close(handler) or key.endswith(of_this_loop):
            cache.cache_dict.pop(key, None)  # else another event loop might get a closed client
    for name in ("module_level_aclient", "base_llm_aiohttp_handler"):  # made on first use, for some providers
        if name in vars(litellm) and await _close(vars(litellm)[name]) and name == "module_level_aclient":
            del vars(litellm)[name]


async def _close(handler: Any) -> bool:
    """Close a client of LiteLLM's, if its connections belong to this event loop; return whether they do."""
    client = getattr(handler, "_client", None) or getattr(handler, "client", None)
    transport = getattr(client, "_transport", None)
    session = getattr(handler, "client_session", None) or getattr(transport, "client", None)
    loop = getattr(session, "_loop", None)
    if loop is None or not (loop is asyncio.get_running_loop() or loop.is_closed()):
        return False
    for each in (transport, client, session):
        close = getattr(each, "aclose", None) or getattr(each, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                await close()
    return True
