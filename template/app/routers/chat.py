"""POST /v1/chat/completions."""

from fastapi import APIRouter
from starlette.responses import Response

from app.answers import AnswerResponse
from app.dependencies import LLM, ChatBody
from app.models import ChatRequest, ChatResponse
from app.openapi import described

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions", **described(ChatRequest, ChatResponse, stream=True))
async def chat_completions(request: ChatBody, llm: LLM) -> Response:
    """Answer a conversation: OpenAI's `chat.completion`, or with `stream` its chunks as server-sent events."""
    return AnswerResponse(llm.open(request))
