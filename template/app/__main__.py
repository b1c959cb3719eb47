"""python -m app: serve, add callers, and tell the template's release."""

import argparse
import errno
import json
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from app import TEMPLATE_VERSION
from app.http.signals import end_at_once

if TYPE_CHECKING:
    import socket

    from app.config import Settings
    from app.llm.targets import Target


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
    if find_spec("app.database"):
        migrate = commands.add_parser("migrate", help="bring the database's schema up to date")
        migrate.add_argument("--copy-from", metavar="URL", default="", help="then copy what another database holds")
    commands.add_parser("version", help="tell which release of the template this project has")
    given = parser.parse_args(arguments)
    if given.command is None:
        end_at_once()  # until the server handles signals: importing what it needs takes a second
    from app.config import SettingsError

    try:
        if given.command == "callers":
            return add_caller(given.name)
        if given.command == "migrate":
            return migrate_database(given.copy_from)
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


def migrate_database(source: str) -> int:
    """Bring the database's schema up to date; return the exit code.

    Args:
        source: address of another database, whose rows are copied; empty copies none.

    Raises:
        SettingsError: the database can't be reached, or the settings are wrong.
    """
    from app.environment import find_database, load_settings

    if database := find_database(load_settings()):
        database.migrate(source)
    return 0


def serve(options: dict[str, object]) -> int:
    """Serve until a signal ends it; return the exit code.

    Args:
        options: settings given on the command line.

    Raises:
        SettingsError: the settings are wrong.
    """
    from app.access.shared_storage import shared_storage
    from app.config import SettingsError
    from app.environment import find_database, load_settings
    from app.http.serving import serve as serve_until_signal
    from app.llm.targets import resolve
    from app.telemetry.tracing import check_exporter

    settings = load_settings(**options)
    if settings.dev and settings.host not in ("127.0.0.1", "::1", "localhost"):
        raise SettingsError(f"--dev listens on loopback only, not on {settings.host}")
    # Checked here too, so that what can't work is told before a server starts.
    targets = [resolve(name, entry, os.environ) for name, entry in settings.models.items()]
    if settings.limit_storage != "async+memory://":
        shared_storage(settings.limit_storage, timeout=1)
    if settings.telemetry:
        check_exporter(os.environ)
    if database := find_database(settings):
        database.check()
    for name, value in options.items():  # the server's processes load the settings themselves
        os.environ[f"APP_{name.upper()}"] = str(value)
    listener = _listen(settings.host, settings.port, "--port")
    if listener is None:
        return 1
    if settings.metrics_port:
        probe = _listen("127.0.0.1", settings.metrics_port, "APP_METRICS_PORT")
        if probe is None:
            return 1
        probe.close()
    if settings.log_format == "console":  # else every line is JSON
        _announce(settings, targets)
    return serve_until_signal(settings, listener)


def _listen(host: str, port: int, option: str) -> "socket.socket | None":
    from app.http.serving import listen

    try:
        return listen(host, port)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = f"the port is in use; choose another with {option}" if in_use else error.strerror
        print(f"Can't listen on {host}:{port}: {reason}", file=sys.stderr)
        return None


def _announce(settings: "Settings", targets: "list[Target]") -> None:
    from app.telemetry.output import STDOUT

    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    lines = [f"{settings.name}: http://{host}:{settings.port}"]
    closed = not (settings.dev or settings.callers or settings.auth.jwt)
    for target in targets:
        if target.missing:
            lines.append(f"  {target.name}: needs {target.missing}")
        elif closed and target.adapter != "demo":
            lines.append(f"  {target.name}: needs a caller (python -m app callers add NAME)")
        else:
            lines.append(f"  {target.name}: ready")
    STDOUT.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
