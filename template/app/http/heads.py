"""The heads of requests: what HTTP forbids in them, and how large they may be."""

from itertools import chain

from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.http.exchange import exchange_of

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's path, query and headers. `ServerProtocol` reads little more; other servers may have no bound."""
CLOSE = {"Connection": "close"}


def head_error(scope: Scope) -> HTTPException | None:
    """Return the error for a head that is too large, or that servers may understand in several ways; else None.

    Source: RFC 9112, sections 3.2 (Host) and 6.1 (Transfer-Encoding).
    """
    head = len(scope["path"]) + len(scope["query_string"]) + len(b"".join(chain.from_iterable(scope["headers"])))
    if head > MAX_HEAD_BYTES:
        return HTTPException(431, f"Path and headers are larger than {MAX_HEAD_BYTES} bytes.", CLOSE)
    is_old = scope["http_version"] == "1.0"
    names = [name for name, _ in scope["headers"]]
    if (hosts := names.count(b"host")) > 1 or (hosts == 0 and not is_old):
        return HTTPException(400, "A request needs one Host header.", CLOSE)
    if codings := names.count(b"transfer-encoding"):
        coding = exchange_of(scope).headers[b"transfer-encoding"].lower()
        if codings > 1 or is_old or coding != b"chunked":  # not 501, since it is the client's fault
            return HTTPException(400, "The only Transfer-Encoding here is chunked.", CLOSE)
    return None
