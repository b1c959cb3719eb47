"""python -m app: serve, add callers, propose prices, show what is spent, and tell the template's release."""

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
    prices = commands.add_parser("prices", help="write the models' prices, from LiteLLM's list, into settings.toml")
    prices.add_argument("models", nargs="*", metavar="MODEL", help="public names; all, if left out")
    prices.add_argument("--check", action="store_true", help="only tell what differs; exit code 1 if anything does")
    spend = commands.add_parser("spend", help="show what is spent of each budget")
    spend.add_argument("--caller", metavar="NAME", help="of this caller alone")
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
        if given.command == "prices":
            return write_prices(given.models, check=given.check)
        if given.command == "spend":
            return show_spend(given.caller)
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


def write_prices(names: list[str], *, check: bool) -> int:
    """Write the prices of LiteLLM's list into the settings file, or only tell what would change.

    Args:
        names: public names of models; none are all.
        check: whether to change nothing, and to return 1 if something would change.

    Raises:
        SettingsError: the settings are wrong, or can't be edited.
    """
    from app.access.price_list import as_toml, changes, price_list, proposed, with_prices, written
    from app.config import settings_file
    from app.environment import load_settings

    models = {name: row for name, row in load_settings().models.items() if not names or name in names}
    file = settings_file()  # which .env may name
    found = proposed(models, price_list())
    print("\n".join(changes(models, found)) or "No price differs from LiteLLM's list.")
    new = {name: price for name, price in found.items() if price and price != written(models[name])}
    if check or not new:
        return int(check and bool(new))
    text, missing = with_prices(file.read_bytes().decode(), new)
    file.write_bytes(text.encode())
    for name in missing:
        print(f"{name} has no row in {file}. Add this to its row: {as_toml(new[name])}")
    print(f"Written to {file}. Look at the change: a list may be wrong, and your contract may say otherwise.")
    return 0


def show_spend(caller: str | None) -> int:
    """Print what is spent of each budget, or of one caller's."""
    from app.access.spend import spend
    from app.environment import load_settings

    print("\n".join(spend(load_settings(), caller)))
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
        SettingsError: the settings are wrong, or a port can't be listened on.
    """
    from app.access.shared_storage import SharedStorage
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
        SharedStorage(settings.limit_storage, timeout=1)
    if settings.telemetry:
        check_exporter(os.environ)
    if database := find_database(settings):
        database.check()
    for name, value in options.items():  # the server's processes load the settings themselves
        os.environ[f"APP_{name.upper()}"] = str(value)
    listener = _listen(settings.host, settings.port, "--port")
    if settings.metrics_port:
        _listen("127.0.0.1", settings.metrics_port, "APP_METRICS_PORT").close()
    if settings.log_format == "console":  # else every line is JSON
        _announce(settings, targets)
    return serve_until_signal(settings, listener)


def _listen(host: str, port: int, option: str) -> "socket.socket":
    from app.config import SettingsError
    from app.http.serving import listen

    try:
        return listen(host, port)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = f"the port is in use; choose another with {option}" if in_use else error.strerror
        raise SettingsError(f"can't listen on {host}:{port}: {reason}") from None


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
