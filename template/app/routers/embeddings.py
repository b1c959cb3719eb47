"""POST /v1/embeddings."""

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from app.dependencies import LLM, read_body
from app.models import EmbeddingRequest, EmbeddingResponse
from app.openapi import described

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", **described(EmbeddingRequest, EmbeddingResponse))
async def embeddings(request: Request, llm: LLM) -> Response:
    """Turn texts into vectors."""
    body = await llm.embeddings(await read_body(request, EmbeddingRequest))
    return Response(to_json(body), headers=llm.record.headers, media_type="application/json")
