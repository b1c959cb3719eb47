"""What is spent of each budget: `python -m app spend`."""

import asyncio
from datetime import UTC, datetime

from valkey.exceptions import ValkeyError

from app.access.limit_storage import STORAGE_TIMEOUT
from app.access.limits import scopes_of
from app.access.shared_storage import SharedStorage
from app.access.windows import Window, in_calendar
from app.config import JWT_NAMES, Settings, SettingsError
from app.quotas import MICRO


async def _read(storage: SharedStorage, windows: list[Window]) -> list[int]:
    try:
        return await storage.read(windows)
    finally:
        await storage.close()


def spend(settings: Settings, caller: str | None) -> list[str]:
    """Return a line for each budget: what is spent or reserved of it, and when it ends.

    Args:
        settings: the budgets, and where they are counted.
        caller: shows those of one caller, or of one subject of tokens (`jwt:...`), alone.

    Raises:
        SettingsError: there are no such budgets, or their counts can't be read.
    """
    scopes = [scope for scope in scopes_of(settings) if caller is None or scope[:2] == ("caller", caller)]
    if caller and caller.startswith(JWT_NAMES) and settings.auth.jwt:
        scopes = [("caller", caller, settings.auth.jwt)]
    windows = [in_calendar(unit, kind, name, most, 0) for kind, name, of in scopes for unit, most in of.budgets]
    if not windows:
        raise SettingsError("no budget is set here: see usd_per_day and usd_per_month in docs/models-and-callers.md")
    if settings.limit_storage == "async+memory://":
        raise SettingsError(
            "limit_storage is the memory of each process; only what is counted in a Valkey can be shown"
        )
    try:
        counts = asyncio.run(_read(SharedStorage(settings.limit_storage, STORAGE_TIMEOUT), windows))
    except (ValkeyError, OSError) as error:
        raise SettingsError(f"limit_storage can't be read: {type(error).__name__}") from None
    lines = []
    for window, count in zip(windows, counts, strict=True):
        whose = f"{window.kind} {window.name}"
        spent = f"{count / MICRO:12.6f} of {window.limit / MICRO:.2f} USD  {count / window.limit:5.0%}"
        end = f"{datetime.fromtimestamp(window.end, UTC):%Y-%m-%d %H:%M} UTC"
        lines.append(f"{whose:24} {window.unit:6}  {spent}  until {end}")
    return lines
