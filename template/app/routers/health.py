"""GET /health and GET /ready. Neither calls a model."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from app.http.application import state_of
from app.http.openapi import NO_KEY

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health", openapi_extra=NO_KEY)
async def health() -> dict[str, str]:
    """Tell that the process is alive."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses={503: {"description": "Not able to serve; `failing` says why."}}, openapi_extra=NO_KEY)
async def ready(request: Request) -> JSONResponse:
    """Tell whether this process can serve: 503 while LiteLLM is loading, and while the process is shutting down."""
    state = state_of(request)
    failing = state.upstreams.failing()
    if state.drain.draining:
        failing.append("The server is shutting down.")
    if failing:
        return JSONResponse({"status": "not ready", "failing": failing}, 503, {"Retry-After": "1"})
    degraded = state.database.degraded() if state.database else []
    if state.upstreams.limiter.storage.degraded:
        degraded.append("The limit storage does not answer: each process counts for itself.")
    if degraded:
        return JSONResponse({"status": "ready", "degraded": degraded})
    return JSONResponse({"status": "ready"})
