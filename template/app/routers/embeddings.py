"""POST /v1/embeddings."""

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.responses import Response

from app.dependencies import LLM, EmbeddingBody
from app.models import EmbeddingRequest, EmbeddingResponse
from app.openapi import described

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", **described(EmbeddingRequest, EmbeddingResponse))
async def embeddings(request: EmbeddingBody, llm: LLM) -> Response:
    """Turn texts into vectors."""
    body = await llm.embeddings(request)
    return Response(to_json(body), headers=llm.record.headers, media_type="application/json")
