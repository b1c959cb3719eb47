"""python -m app: serve, and manage keys."""

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

from app.config import Settings, SettingsError
from app.environment import load_settings
from app.llm.targets import Target, resolve

SERVER_BACKSTOP = 1
"""Seconds that uvicorn waits for what is left after our own draining."""


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
    version = commands.add_parser("version", help="tell the template's release that this project is at")
    version.add_argument(
        "--check", metavar="CHANGELOG", help="a path or an https address: exit 1 if a security fix is missing"
    )
    given = parser.parse_args(arguments)
    try:
        if given.command == "callers":
            return add_caller(given.name)
        if given.command == "version":
            return tell_version(given.check)
        options = {name: getattr(given, name) for name in ("dev", "host", "port", "workers")}
        return serve({name: value for name, value in options.items() if value is not None})
    except SettingsError as error:
        print(f"Settings: {error}", file=sys.stderr)
        return 1


def add_caller(name: str) -> int:
    """Print a new key, once, and the table that lets its owner in."""
    from app.callers import hash_key, new_key

    key = new_key()
    print(f"Key of {name}, shown only now:\n\n    {key}\n")
    print("Add this to app/settings.toml:\n")
    print(f'[callers.{json.dumps(name, ensure_ascii=False)}]\nkey_sha256 = "{hash_key(key)}"')
    return 0


def tell_version(changelog: str | None) -> int:
    """Print the template's release; with its changelog, return 1 if a later one has a security fix."""
    from app import TEMPLATE_VERSION
    from app.version import missing_security_fixes, read_changelog

    print(TEMPLATE_VERSION)
    if changelog is None:
        return 0
    try:
        missing = missing_security_fixes(read_changelog(changelog))
    except (OSError, UnicodeDecodeError) as error:
        print(f"The changelog can't be read: {type(error).__name__}", file=sys.stderr)
        return 2
    if missing:
        print(f"Security fixes are missing, of {', '.join(missing)}: run copier update.", file=sys.stderr)
    return 1 if missing else 0


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
    # resolved here too, so that a wrong table is told before a server starts
    targets = [resolve(name, entry, os.environ) for name, entry in settings.models.items()]
    for name, value in options.items():  # the server's processes load the settings themselves
        os.environ[f"APP_{name.upper()}"] = str(value)
    if not _port_is_free(settings):
        return 1
    if settings.log_format == "console":  # where lines are JSON, a line for people is none
        _announce(settings, targets)
    if settings.workers > 1 and not settings.dev:
        directory = tempfile.TemporaryDirectory(prefix="metrics-")
        atexit.register(directory.cleanup)
        # before prometheus-client is imported: it looks only then
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory.name
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ended_well)
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
        from app.reloading import Reload

        folder = str(Path(__file__).parent)
        Reload(uvicorn.Config("app.main:app", reload=True, reload_dirs=[folder], **server)).run()
    else:
        uvicorn.run("app.main:app", workers=settings.workers, **server)
    return 0


def _announce(settings: Settings, targets: list[Target]) -> None:
    print(f"{settings.name}: http://{settings.host}:{settings.port}")
    closed = not (settings.dev or settings.callers or settings.auth.jwt)
    for target in targets:
        if target.missing:
            print(f"  {target.name}: needs {target.missing}")
        elif closed and target.way != "demo":
            print(f"  {target.name}: needs a caller (python -m app callers add NAME)")
        else:
            print(f"  {target.name}: ready")
    sys.stdout.flush()


def _ended_well(number: int, frame: FrameType | None) -> None:
    """Stand where the default handlers were: uvicorn raises its signal again when it has shut down."""


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
