"""GET /v1/models: the public names that a caller may use."""

from fastapi import APIRouter, Request

from app.dependencies import LLM
from app.errors import ModelNotFound
from app.http.application import state_of
from app.http.openapi import ERRORS
from app.llm.targets import Target
from app.models import ModelCard, ModelList

router = APIRouter(tags=["models"], responses=ERRORS)


@router.get("/v1/models")
async def list_models(request: Request, llm: LLM) -> ModelList:
    """List the models that this caller may use."""
    return ModelList(data=[_card(request, target) for target in llm.usable()])


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str, llm: LLM) -> ModelCard:
    """Describe one model."""
    for target in llm.usable():
        if target.name == model:
            return _card(request, target)
    raise ModelNotFound("There is no such model here. GET /v1/models lists those that you may use.", param="model")


def _card(request: Request, target: Target) -> ModelCard:
    return ModelCard(id=target.name, created=state_of(request).started_at, owned_by=target.provider)
