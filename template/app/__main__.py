"""python -m app: serve, add callers, and tell the template's release."""

import argparse
import atexit
import errno
import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from app import TEMPLATE_VERSION
from app.config import Settings, SettingsError
from app.environment import load_settings, settings_file
from app.llm.targets import Target, resolve

SERVER_BACKSTOP = 1
"""Seconds that uvicorn waits for open connections after our own graceful shutdown."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        arguments: without the program's name; None takes the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m app", description="Serve this backend, or manage its keys.")
    parser.add_argument(
        "--dev", action="store_true", default=None, help="loopback only, no key needed, reload on change"
    )
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on")
    parser.add_argument("--workers", type=int, help="number of processes")
    commands = parser.add_subparsers(dest="command", title="commands")
    callers = commands.add_parser("callers", help="manage who may call").add_subparsers(dest="action", required=True)
    callers.add_parser("add", help="make a key for a new caller").add_argument("name", metavar="NAME")
    commands.add_parser("version", help="tell which release of the template this project has")
    given = parser.parse_args(arguments)
    try:
        if given.command == "callers":
            return add_caller(given.name)
        if given.command == "version":
            print(TEMPLATE_VERSION)
            return 0
        options = {name: getattr(given, name) for name in ("dev", "host", "port", "workers")}
        return serve({name: value for name, value in options.items() if value is not None})
    except SettingsError as error:
        print(f"Settings: {error}", file=sys.stderr)
        return 1


def add_caller(name: str) -> int:
    """Print a new key, once, and the table that lets its owner in."""
    from app.access.callers import hash_key, new_key

    key = new_key()
    print(f"Key of {name}, shown only now:\n\n    {key}\n")
    print("Add this to app/settings.toml:\n")
    print(f'[callers.{json.dumps(name, ensure_ascii=False)}]\nkey_sha256 = "{hash_key(key)}"')
    return 0


def serve(options: dict[str, object]) -> int:
    """Serve until a signal ends it.

    Args:
        options: settings given on the command line.

    Raises:
        SettingsError: the settings are wrong.
    """
    import uvicorn

    settings = load_settings(**options)
    if settings.dev and settings.host not in ("127.0.0.1", "::1", "localhost"):
        raise SettingsError(f"--dev listens on loopback only, not on {settings.host}")
    # Resolved here too, so that a wrong model table is reported before a server starts.
    targets = [resolve(name, entry, os.environ) for name, entry in settings.models.items()]
    for name, value in options.items():  # the server's processes load the settings themselves
        os.environ[f"APP_{name.upper()}"] = str(value)
    if not _port_is_free(settings):
        return 1
    if settings.log_format == "console":  # else every line is JSON
        _announce(settings, targets)
    if settings.workers > 1 and not settings.dev:
        directory = tempfile.TemporaryDirectory(prefix="metrics-")
        atexit.register(directory.cleanup)
        # Before prometheus-client is imported, which reads it only then.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory.name
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)
    server: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "log_level": settings.log_level,
        "access_log": False,
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": settings.trusted_proxies or None,
        "timeout_graceful_shutdown": SERVER_BACKSTOP,
    }
    if settings.dev:
        from app.http.reloading import Reload

        folder = str(Path(__file__).parent)
        config = uvicorn.Config("app.main:app", reload=True, reload_dirs=[folder], **server)
        Reload(config, settings_file()).run()
    else:
        uvicorn.run("app.main:app", workers=settings.workers, **server)
    return 0


def _announce(settings: Settings, targets: list[Target]) -> None:
    print(f"{settings.name}: http://{settings.host}:{settings.port}")
    closed = not (settings.dev or settings.callers or settings.auth.jwt)
    for target in targets:
        if target.missing:
            print(f"  {target.name}: needs {target.missing}")
        elif closed and target.adapter != "demo":
            print(f"  {target.name}: needs a caller (python -m app callers add NAME)")
        else:
            print(f"  {target.name}: ready")
    sys.stdout.flush()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Ignore the signal that uvicorn raises again when it has shut down, so that the exit code is 0."""


def _port_is_free(settings: Settings) -> bool:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = "the port is in use; choose another with --port" if in_use else error.strerror
        print(f"Can't listen on {settings.host}:{settings.port}: {reason}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
