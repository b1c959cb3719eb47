"""Where settings are read from: the environment and the settings file. A stronger source replaces whole tables."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from app.network import is_injected

SETTINGS_FILE = Path(__file__).with_name("settings.toml")
TABLES = ("models", "callers")
"""Tables whose keys the team chooses."""


def settings_file() -> Path:
    """Return where the settings file is."""
    return Path(os.environ.get("APP_SETTINGS_FILE") or SETTINGS_FILE)


class Environment(EnvSettingsSource):
    """`APP_` variables, a table as one JSON value, and the `PORT` that hosting platforms set."""

    def __call__(self) -> dict[str, Any]:
        values = _without_tables_of(self.current_state, super().__call__())
        if port := os.environ.get("PORT"):
            values.setdefault("port", port)
        return values

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in super()._load_env_vars().items() if not is_injected(name, value)}


class SettingsFile(TomlConfigSettingsSource):
    """The settings file, with or without a byte order mark."""

    def __call__(self) -> dict[str, Any]:
        return _without_tables_of(self.current_state, super().__call__())

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return tomllib.loads(file_path.read_text("utf-8-sig"))


def _without_tables_of(stronger: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in TABLES or key not in stronger}
