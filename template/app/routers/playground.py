"""GET /playground: a page to try the models on. `/` redirects there."""

import gzip
import mimetypes
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from app.dependencies import Config
from app.http.application import state_of
from app.llm.targets import Target

FILES = Path(__file__).parent.parent / "playground"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)
start_page = APIRouter(include_in_schema=False)


@start_page.get("/")
async def index() -> Response:
    """Redirect to the playground."""
    return RedirectResponse("/playground", 307)


@router.get("/playground")
async def page(request: Request) -> Response:
    """Return the page."""
    return _file("index.html", request)


@router.get("/playground/config.json")
async def config(request: Request, settings: Config) -> dict[str, object]:
    """Tell the page what it can ask for: no secrets, only names and bounds; to developers also prices."""
    targets = state_of(request).upstreams.targets.values()
    return {
        "models": [
            {"name": target.name, "needs": target.missing, "kind": _kind(target)}
            | ({"price": target.entry.price} if settings.dev and target.entry.price else {})
            for target in targets
        ],
        "default_model": settings.default_model,
        "limits": {"temperature": [0, 2], "max_tokens": [1, settings.max_tokens_limit]},
        "key_required": bool(settings.callers or settings.auth.jwt) and not settings.dev,
    }


@router.get("/playground/{name}")
async def asset(name: str, request: Request) -> Response:
    """Return one of the page's files."""
    if name not in {path.name for path in FILES.iterdir()}:
        raise HTTPException(404)
    return _file(name, request)


def _file(name: str, request: Request) -> Response:
    content = (FILES / name).read_bytes()
    headers = {**HEADERS, "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        content = gzip.compress(content)
        headers["Content-Encoding"] = "gzip"
    return Response(content, headers=headers, media_type=mimetypes.guess_type(name)[0])


def _kind(target: Target) -> str | None:
    """Return `demo` or `own`; how other models are reached is nobody's business."""
    return target.adapter if target.adapter in ("demo", "own") else None
