"""Logs: structlog renders every line, also those that libraries write through `logging`.

Each module has its own logger: `log = structlog.get_logger("app.limits")`.
"""

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog
from pydantic_core import to_json

from app.config import Settings
from app.telemetry.output import STDOUT

QUIET = ("httpx", "httpcore", "openai", "asyncio", "aiohttp", "alembic", "dbos", "sqlalchemy")
"""Loggers that may quote a request: they write warnings and errors only, whatever the level."""

OF_THE_SERVER = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
"""Loggers to which uvicorn, where it is started by itself, gives formats of its own."""
USER_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@'\"]+@")
LINES = ("stack", "exception")
"""What the console shows in several lines."""
LONGEST_MESSAGE = 2000
"""Characters of an exception's message that are logged in development."""

_shown: dict[str, bool] = {"messages": False}
"""Whether an exception's message is logged: in development only."""
_processors: list[Any] = []
"""What renders a log line. One list for the process, changed in place: a logger that was bound earlier follows it."""


def configure_logs(settings: Settings) -> None:
    """Write every log line from one level up to stdout, in one format."""
    _shown["messages"] = settings.dev
    output = cast(TextIO, STDOUT)
    level = getattr(logging, settings.log_level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        render: list[Any] = [structlog.processors.JSONRenderer(serializer=_json)]
    else:
        colors = sys.stdout.isatty()
        console = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, exception_formatter=_write_traceback)
        render = [_without_controls, console]
    _processors[:] = [*shared, *render]
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, _without_message_of_exception],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    for name in OF_THE_SERVER:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # the log of requests is ours
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def capture_output() -> None:
    """Log what Python would write to stderr: warnings, and exceptions that nothing catches. Crash dumps stay there."""
    logging.captureWarnings(capture=True)
    sys.excepthook = lambda _kind, error, _trace: _log_uncaught(error)
    threading.excepthook = lambda args: _log_uncaught(args.exc_value)
    sys.unraisablehook = lambda args: _log_uncaught(args.exc_value)


def _log_uncaught(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, SystemExit):
        # The message of a module that can't be imported holds no secret, and is what its author needs.
        reason = {"reason": str(error)} if isinstance(error, (ImportError, SyntaxError)) else {}
        structlog.get_logger("app").critical("uncaught", **reason, **exception_fields(error))


def _json(event: Any, **_: Any) -> str:
    try:
        return to_json(event, inf_nan_mode="strings", fallback=repr).decode()
    except ValueError:  # half a character, bytes that are no text, a circle
        return json.dumps(
            {str(name): value if isinstance(value, str) else repr(value) for name, value in event.items()}
        )


def _printable(text: str, keep: str = "") -> str:
    """Escape what a terminal would obey or not show, as repr() does, but for the characters to be kept."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _without_controls(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    safe: dict[str, Any] = {}
    for name, value in event.items():
        text = value if isinstance(value, str) else repr(value)
        is_safe = name == "exc_info" or text.isprintable()  # an exception is _write_traceback's
        safe[_printable(name)] = value if is_safe else _printable(text, "\n" * (name in LINES))
    return safe


def _write_traceback(output: TextIO, found: Any) -> None:
    output.write("\n" + _printable("".join(traceback.format_exception(*found)).rstrip(), "\n"))


def exception_fields(error: BaseException) -> dict[str, str]:
    """Return an exception's type and stack for a log line.

    Its message is left out, since it may quote a prompt or a key, but in development.
    """
    message = {"message": str(error)[:LONGEST_MESSAGE]} if _shown["messages"] else {}
    return {"error": type(error).__name__, **message, "stack": "".join(traceback.format_tb(error.__traceback__))}


def _without_message_of_exception(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    event["event"] = USER_IN_ADDRESS.sub("", str(event["event"]))
    found = event.pop("exc_info", None)
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["event"] = event["event"].partition("\n")[0]  # asyncio goes on to quote the exception
        if event.get("logger") == "asyncio":
            event["event"] = event["event"].partition("(")[0]  # and before, a callback's arguments
        event.update(exception_fields(error))
    return event
