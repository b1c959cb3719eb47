"""GET /v1/models: the public names that a caller may use."""

from fastapi import APIRouter, Request

from app.dependencies import LLM
from app.dialects.message_objects import AnthropicModelCard, AnthropicModelList
from app.errors import ModelNotFound
from app.http.application import state_of
from app.http.openapi import ERRORS
from app.llm.targets import Target
from app.models import ModelCard, ModelList

router = APIRouter(tags=["models"], responses=ERRORS)


@router.get("/v1/models")
async def list_models(request: Request, llm: LLM) -> ModelList | AnthropicModelList:
    """List the models that this caller may use; in Anthropic's form for a request with `anthropic-version`."""
    cards = [_card(request, target) for target in llm.usable()]
    if "anthropic-version" not in request.headers:
        return ModelList(data=cards)
    data = [AnthropicModelCard.of(card) for card in cards]
    return AnthropicModelList(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None)


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str, llm: LLM) -> ModelCard | AnthropicModelCard:
    """Describe one model."""
    for target in llm.usable():
        if target.name == model:
            card = _card(request, target)
            return AnthropicModelCard.of(card) if "anthropic-version" in request.headers else card
    raise ModelNotFound("There is no such model here. GET /v1/models lists those that you may use.", param="model")


def _card(request: Request, target: Target) -> ModelCard:
    return ModelCard(id=target.name, created=state_of(request).started_at, owned_by=target.provider)
