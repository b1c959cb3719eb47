"""GET /metrics: for callers that may read it. `telemetry/metrics_port.py` shows the same without a key."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from app.dependencies import get_caller
from app.errors import ModelNotAllowed
from app.http.application import state_of
from app.http.openapi import ERRORS

router = APIRouter(tags=["health"], responses=ERRORS)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format."""
    caller = await get_caller(request)
    if not caller.may_read_metrics:
        raise ModelNotAllowed("This key may not read metrics (metrics = true in its table).", code="not_allowed")
    return Response(state_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)
