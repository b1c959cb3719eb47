"""POST /v1/embeddings."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.dependencies import get_llm, read_body
from app.http.exchange import exchange_of
from app.http.json_response import JSONResponse
from app.http.openapi import described
from app.http.routing import BytesRoute
from app.models import EmbeddingRequest, EmbeddingResponse

router = APIRouter(tags=["embeddings"], route_class=BytesRoute)


@router.post("/v1/embeddings", **described(EmbeddingRequest, EmbeddingResponse))
async def embeddings(request: Request) -> Response:
    """Turn texts into vectors."""
    llm = await get_llm(request)
    answer = await llm.embeddings(await read_body(request, EmbeddingRequest, llm), exchange_of(request.scope).held)
    return JSONResponse(answer.body, answer.call.headers)
