"""What all adapters have in common. There is one adapter for each protocol that models are called by."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from app.errors import InvalidRequest
from app.llm.call import Call
from app.llm.stream_state import StreamState
from app.llm.targets import Target


class ChatAdapter(Protocol):
    """Answers chat. `app.llm.direct.Direct` documents what the methods take, return and raise.

    A call's fallbacks have targets of their own, so the target is an argument beside the call.
    """

    async def complete(self, call: Call, target: Target) -> dict[str, Any]: ...
    def stream(self, call: Call, target: Target, state: StreamState) -> AsyncGenerator[bytes, None]: ...


class Adapter(ChatAdapter):
    """Speaks to providers: chat and embeddings. It is opened and closed with `Upstreams`."""

    async def start(self) -> None:
        """Open what calls need, if anything."""

    async def close(self) -> None:
        """Close what was opened."""

    def failing(self) -> list[str]:
        """Return what is not ready yet, one sentence each."""
        return []

    async def embed(self, call: Call, target: Target) -> dict[str, Any]:
        """Return OpenAI's embeddings object.

        Raises:
            InvalidRequest: these models make no embeddings.
        """
        raise InvalidRequest(f"Model {target.name!r} makes no embeddings.", param="model")
