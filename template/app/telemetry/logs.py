"""Logs: structlog renders every line, also those that libraries write through `logging`.

Each module has its own logger: `log = structlog.get_logger("app.limits")`.
"""

import contextlib
import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TextIO, cast

import structlog
from pydantic_core import to_json, to_jsonable_python
from structlog.typing import EventDict

from app.config import Settings, SettingsError
from app.errors import AppError, OwnCallError
from app.telemetry.output import STDOUT

QUIET = ("httpx", "httpcore", "openai", "asyncio", "aiohttp", "alembic", "dbos", "sqlalchemy")
"""Loggers that may quote a request: they write warnings and errors only, whatever the level."""

OF_THE_SERVER = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
"""Loggers to which uvicorn, where it is started by itself, gives formats of its own."""
USER_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@'\"]+@")
LINES = ("stack", "exception")
"""What the console shows in several lines."""
LONGEST_MESSAGE = 2000
"""Characters of an exception's message that are logged."""
MOST_CAUSES = 20
"""Further exceptions that are logged with one."""

_shown: dict[str, bool] = {"messages": False}
"""Whether an exception's message is logged: in development only."""
_processors: list[Any] = []
"""What renders a log line. One list for the process, changed in place: a logger that was bound earlier follows it."""


def configure_logs(settings: Settings) -> None:
    """Write every log line from one level up to stdout, in one format."""
    _shown["messages"] = settings.dev
    output = cast(TextIO, STDOUT)
    level = getattr(logging, settings.log_level.upper())
    shared: list[Any] = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, _with_time]
    if settings.log_format == "json":
        render: list[Any] = [structlog.processors.JSONRenderer(serializer=_json)]
    else:
        colors = sys.stdout.isatty()
        console = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, exception_formatter=_write_traceback)
        render = [_with_time_as_text, _without_controls, console]
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
    logging.getLogger("uvicorn.error").addFilter(_is_no_traceback)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class InfoLog:
    """Writes lines at level info as structlog's loggers do, for what writes very many.

    Those pass the fields on by keywords three times, which takes as long as all processors together. It follows
    structlog's configuration as it is when this is made.

    Args:
        name: the logger's.
    """

    def __init__(self, name: str) -> None:
        configuration = structlog.get_config()
        self._processors = configuration["processors"]
        self._logger = configuration["logger_factory"](name)
        self._is_on = structlog.get_logger(name).bind().is_enabled_for(logging.INFO)

    def render(self, line: dict[str, Any]) -> list[str]:
        """Return a line as text, given its fields, `event` among them, which are changed; nothing if it is dropped."""
        if self._is_on:
            with contextlib.suppress(structlog.DropEvent):
                text: Any = line
                for process in self._processors:
                    text = process(self._logger, "info", text)
                return [text]
        return []

    def write(self, texts: list[str]) -> None:
        """Write lines."""
        if texts:
            self._logger.info("\n".join(texts))


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


def _with_time(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Add the time, if there is none: as an object, since pydantic writes it several times faster than Python does."""
    if "timestamp" not in event:
        event["timestamp"] = datetime.now(UTC)
    return event


def _with_time_as_text(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = to_jsonable_python(event["timestamp"], fallback=repr)
    return event


def _json(event: Any, **_: Any) -> str:
    try:
        return to_json(event, inf_nan_mode="strings", fallback=repr).decode()
    except ValueError:  # half a character, bytes that are no text, a circle
        return json.dumps({str(name): _text(value) for name, value in event.items()})


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, str) else repr(value)


def _printable(text: str, keep: str = "") -> str:
    """Escape what a terminal would obey or not show, as repr() does, but for the characters to be kept."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _without_controls(_logger: Any, _method: str, event: EventDict) -> EventDict:
    safe: dict[str, Any] = {}
    for name, value in event.items():
        text = value if isinstance(value, str) else repr(value)
        is_safe = name == "exc_info" or text.isprintable()  # an exception is _write_traceback's
        safe[_printable(name)] = value if is_safe else _printable(text, "\n" * (name in LINES))
    return safe


def _write_traceback(output: TextIO, found: Any) -> None:
    output.write("\n" + _printable("".join(traceback.format_exception(*found)).rstrip(), "\n"))


@asynccontextmanager
async def failures_logged() -> AsyncIterator[None]:
    """Log an error of the start, or of the end, in one line, and raise it again: Starlette's text shows its message."""
    event = "the start, or the shutdown, has failed"
    try:
        yield
    except (SettingsError, AppError, OwnCallError) as error:
        structlog.get_logger("app").critical(event, error=type(error).__name__, message=str(error))
        raise
    except Exception as error:
        structlog.get_logger("app").critical(event, **exception_fields(error))
        raise


def _is_no_traceback(record: logging.LogRecord) -> bool:
    """Return whether a record is none of those that quote a whole exception, which `failures_logged` has logged."""
    return not str(record.msg).startswith("Traceback ")


def exception_fields(error: BaseException, whole: BaseException | None = None) -> dict[str, Any]:
    """Return an exception's type and stack for a log line, and its causes.

    Its message is left out, since it may quote a prompt or a key, but in development, and where it is ours.

    Args:
        error: the exception.
        whole: the group or the exception in which it was found; None is itself.
    """
    found = list({id(each): each for each in islice(_and_causes(whole or error), MOST_CAUSES + 1)}.values())
    causes = [": ".join(_told(cause).values()) for cause in found if cause is not error]
    stacks = [(cause, "".join(traceback.format_tb(cause.__traceback__))) for cause in reversed(found)]
    stack = "".join(f"{type(cause).__name__}\n{text}" if causes else text for cause, text in stacks if text)
    return {**_told(error), **({"causes": causes} if causes else {}), "stack": stack}


def _told(error: BaseException) -> dict[str, str]:
    is_shown = _shown["messages"] or isinstance(error, (SettingsError, OwnCallError))
    return {"error": type(error).__name__} | ({"message": str(error)[:LONGEST_MESSAGE]} if is_shown else {})


def _and_causes(error: BaseException | None, depth: int = 0) -> Iterator[BaseException]:
    """Yield an exception, those in it if it is a group, and what it was raised from, or amid of."""
    if error is not None and depth < MOST_CAUSES:
        yield error
        inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        for each in (*inner, error.__cause__ or (None if error.__suppress_context__ else error.__context__)):
            yield from _and_causes(each, depth + 1)


def _without_message_of_exception(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event["event"] = USER_IN_ADDRESS.sub("", str(event["event"]))
    found = event.pop("exc_info", None)
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["event"] = event["event"].partition("\n")[0]  # asyncio goes on to quote the exception
        if event.get("logger") == "asyncio":
            event["event"] = event["event"].partition("(")[0]  # and before, a callback's arguments
        event.update(exception_fields(error))
    return event
