"""POST /v1/embeddings."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.dependencies import get_llm, read_body
from app.models import EmbeddingRequest, EmbeddingResponse
from app.openapi import described
from app.routing import BytesRoute

router = APIRouter(tags=["embeddings"], route_class=BytesRoute)


@router.post("/v1/embeddings", **described(EmbeddingRequest, EmbeddingResponse))
async def embeddings(request: Request) -> Response:
    """Turn texts into vectors."""
    llm = await get_llm(request)
    body = await llm.embeddings(await read_body(request, EmbeddingRequest))
    return Response(body, headers=llm.record.headers, media_type="application/json")
