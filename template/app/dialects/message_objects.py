"""What Anthropic's API answers with, as far as this service looks at it."""

from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel

from app.models import Answered, ModelCard


class TokenCount(Answered):
    input_tokens: int


class MessageObject(Answered):
    """A whole message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[dict[str, Any]]
    stop_reason: str
    usage: dict[str, Any]


class AnthropicModelCard(BaseModel):
    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: datetime

    @classmethod
    def of(cls, card: ModelCard) -> Self:
        """Return Anthropic's card for OpenAI's."""
        return cls(id=card.id, display_name=card.id, created_at=datetime.fromtimestamp(card.created, UTC))


class AnthropicModelList(BaseModel):
    data: list[AnthropicModelCard]
    has_more: Literal[False] = False
    first_id: str | None
    last_id: str | None
