"""POST /v1/chat/completions, and a word to those who ask for /v1/responses."""

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

from app.answers import AnswerResponse
from app.dependencies import LLM, read_body
from app.models import ChatRequest, ChatResponse
from app.openapi import described

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions", **described(ChatRequest, ChatResponse, stream=True))
async def chat_completions(request: Request, llm: LLM) -> Response:
    """Answer a conversation: OpenAI's `chat.completion`, or with `stream` its chunks as server-sent events."""
    return AnswerResponse(llm.open(await read_body(request, ChatRequest)))


@router.api_route("/v1/responses", methods=["GET", "POST"], include_in_schema=False)
async def responses() -> None:
    """Say what to use instead: OpenAI's SDKs take this API for granted."""
    raise HTTPException(404, "The responses API is not served here. Use chat completions: POST /v1/chat/completions.")
