"""Loads the settings once, at the start, with one clear sentence for every mistake; and finds the database."""

import contextlib
import difflib
import multiprocessing
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, get_args

import pydantic_settings
from dotenv import load_dotenv
from pydantic import BaseModel, ValidationError

from app.config import SETTINGS_FILE, TABLES, CallerEntry, Group, ModelEntry, Settings, SettingsError, settings_file
from app.network import exempt_from_proxies, is_injected

ENV_FILE = Path(__file__).parent.parent / ".env"
FILE_VARIABLES = {"APP_SETTINGS_FILE", "APP_ENV_FILE"}
GIVE_UP = 3
"""The exit code by which a worker tells uvicorn's supervisor that it is of no use to start it again."""
STRIPPED = re.compile("KEY|TOKEN|SECRET|PASS|CRED|_BASE|URL|ENDPOINT|PROXY|^PORT$", re.IGNORECASE)
"""Variables that lose surrounding blanks and line ends: of secrets and addresses, which libraries read too."""
PROXY = re.compile("https?_proxy|all_proxy", re.IGNORECASE)


def load_settings(**overrides: Any) -> Settings:
    """Return the settings from all sources.

    `.env` is copied into the process environment, so that LiteLLM finds its keys there too; variables that are set
    already are kept. `APP_ENV_FILE` and `APP_SETTINGS_FILE` name other files; an empty `APP_ENV_FILE` means none.

    Args:
        **overrides: settings by name; the strongest source.

    Raises:
        SettingsError: a name or a value is wrong, or a file can't be read.
    """
    env_file = os.environ.get("APP_ENV_FILE", str(ENV_FILE))
    if env_file:
        try:
            load_dotenv(env_file, encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(env_file, error) from None
    file = settings_file()
    if file != SETTINGS_FILE and (file.is_dir() or not file.exists()):
        raise SettingsError(f"APP_SETTINGS_FILE names {file}, which is no file")
    _tidy_variables()
    _check_variable_names()
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(_sentences(error))) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}") from None
    except pydantic_settings.SettingsError as error:
        field = next((f for f in Settings.model_fields if f'"{f}"' in str(error)), "?")
        raise SettingsError(f"APP_{field.upper()} is not valid JSON") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None
    bases = [value for name, value in os.environ.items() if name.endswith(("_API_BASE", "_BASE_URL"))]
    exempt_from_proxies([*bases, *filter(None, (entry.api_base for entry in settings.models.values()))])
    return settings


def with_own(settings: Settings, kind: type[BaseModel] | None) -> Settings:
    """Return settings whose `own` is the team's object in place of the table.

    Args:
        settings: with the table as it was read.
        kind: the class of the object; None keeps the table.

    Raises:
        SettingsError: the table does not fit the class.
    """
    if kind is None or isinstance(settings.own, kind):
        return settings
    try:
        return settings.model_copy(update={"own": kind.model_validate(settings.own)})
    except ValidationError as error:
        raise SettingsError("; ".join(_sentences(error, ["own"], kind))) from None


@contextlib.contextmanager
def exit_if_settings_are_wrong() -> Iterator[None]:
    """End the process with one sentence if the block raises SettingsError."""
    try:
        yield
    except SettingsError as error:
        sys.stderr.write(f"Settings: {error}\n")
        sys.exit(GIVE_UP if multiprocessing.parent_process() else 1)


def unknown_variables() -> list[str]:
    """Return the `APP_` variables that are no setting, for one warning at the start."""
    known = set(_variables(Settings, "APP_")) | FILE_VARIABLES
    return sorted(
        name
        for name, value in os.environ.items()
        if (upper := name.upper()).startswith("APP_")
        and (upper not in known or is_injected(name, value))
        and not upper.startswith("APP_OWN__")
    )


def _tidy_variables() -> None:
    """Take surrounding blanks off secrets and addresses, and give proxies a scheme, for libraries as well."""
    for name, value in list(os.environ.items()):
        if STRIPPED.search(name):
            new = value.strip()
            is_bare = new and PROXY.fullmatch(name) and "://" not in new
            os.environ[name] = f"http://{new}" if is_bare else new


def _unreadable(file: str | Path, error: OSError | UnicodeDecodeError) -> SettingsError:
    reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
    return SettingsError(f"{file} can't be read: {reason}")


def _check_variable_names() -> None:
    known = set(_variables(Settings, "APP_")) | FILE_VARIABLES
    for name in unknown_variables():
        for table in TABLES:
            if name.upper().startswith(f"APP_{table.upper()}__"):
                raise SettingsError(f"{name}: set this table as one JSON value, APP_{table.upper()}")
        near = [] if is_injected(name, os.environ[name]) else [each for each in known if _is_slip(name.upper(), each)]
        if near:
            nearest = difflib.get_close_matches(name.upper(), near, n=1, cutoff=0)[0]
            raise SettingsError(f"{name} is not a setting; did you mean {nearest}?")


def _is_slip(name: str, known: str) -> bool:
    """Return whether a name is one or two letters away from a known one (Levenshtein distance).

    In a short name one letter, or two that are exchanged: APP_ENV is not meant to be APP_DEV.
    """
    is_short = min(len(name), len(known)) < len("APP_") + 5 and sorted(name) != sorted(known)
    return _is_within(1 if is_short else 2, name, known)


def _is_within(edits: int, one: str, other: str) -> bool:
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    if not edits or one == other:
        return one == other
    return any(_is_within(edits - 1, *pair) for pair in ((one[1:], other), (one, other[1:]), (one[1:], other[1:])))


def _variables(group: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in group.model_fields.items():
        yield prefix + name.upper()
        if inner := _group(field.annotation):
            yield from _variables(inner, f"{prefix}{name.upper()}__")


def _group(annotation: Any) -> type[Group] | None:
    """Return the group of settings that a field holds, if it holds one."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Group)), None)


def _sentences(error: ValidationError, place: Sequence[str] = (), group: type[BaseModel] = Settings) -> Iterator[str]:
    for found in error.errors(include_url=False, include_input=False):
        location = [*place, *(str(part) for part in found["loc"])]
        name = ".".join(location)
        if found["type"] == "extra_forbidden":
            names = _names_beside(location[len(place) :], group)
            near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
            yield f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else "")
        else:
            message = found["msg"].removeprefix("Value error, ")
            yield f"setting {name}: {message}" if name else message


def _names_beside(location: list[str], group: type[BaseModel]) -> list[str]:
    """Return the known names of the group in which an unknown name was found."""
    for part in location[:-1]:
        if part in TABLES:
            group = ModelEntry if part == "models" else CallerEntry
        elif part in group.model_fields:
            group = _group(group.model_fields[part].annotation) or group
    return list(group.model_fields)


class Database(Protocol):
    """What the rest of the application knows of `app/database/`, which only some projects have.

    Attributes:
        router: the endpoints of responses that are kept, in place of those of `routers/responses.py`.
    """

    router: Any  # FastAPI is not imported before a server starts

    def check(self) -> None:
        """Raise SettingsError if the database's schema is older than this code."""

    def open(self, app: Any) -> AbstractAsyncContextManager[None]:
        """Return the context in which the application runs; errors as in `check`."""

    def degraded(self) -> list[str]:
        """Return what doesn't work now, a sentence each."""

    def migrate(self, source: str = "") -> None:
        """Bring the schema up to date, and copy what another database holds, by its address; errors as in `check`."""


def find_database(settings: Settings) -> Database | None:
    """Return the database, not opened yet; None in a project without `app/database/`, or where it is off.

    Raises:
        SettingsError: there is an address, and nothing that could use it.
    """
    if settings.database_url == "off":
        return None
    if find_spec("app.database") is None:
        if settings.database_url:
            raise SettingsError("database_url: this project has no app/database (copier update --data database=true)")
        return None
    database: Database = import_module("app.database.service").Service(settings)
    return database
