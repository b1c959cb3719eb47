"""SharedStorage: counts in a Valkey, or a Redis, that all processes share. An admission is one script, so one trip."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from valkey.asyncio import Valkey

from app.access.windows import MINUTE, Count, Window
from app.config import SettingsError

CLOCK = """
local minute = 60000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
"""Milliseconds by the storage's own clock, so that it does not matter if those of the processes differ."""

RESERVE = """
local out, counts, ends = {0}, {}, {}
for i, key in ipairs(KEYS) do
  local at = 4 * i
  local unit, limit, amount, span = ARGV[at - 3], tonumber(ARGV[at - 2]), tonumber(ARGV[at - 1]), tonumber(ARGV[at])
  if unit == 'requests' then
    local oldest = tonumber(redis.call('LINDEX', key, -1))
    while oldest and oldest <= now - span do
      redis.call('RPOP', key)
      oldest = tonumber(redis.call('LINDEX', key, -1))
    end
    counts[i], ends[i] = redis.call('LLEN', key), (oldest or now) + span
  else
    local found = redis.call('HMGET', key, 'count', 'end')
    counts[i], ends[i] = tonumber(found[1]) or 0, tonumber(found[2])
    if unit ~= 'tokens' then ends[i] = span
    elseif not ends[i] or ends[i] <= now then counts[i], ends[i] = 0, now + span end
  end
  if out[1] == 0 and counts[i] + amount > limit then out[1] = i end
  out[3 * i - 1], out[3 * i], out[3 * i + 1] = counts[i], ends[i] - now, ends[i]
end
if out[1] > 0 then return out end
for i, key in ipairs(KEYS) do
  local unit, amount, span = ARGV[4 * i - 3], tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
  if unit == 'requests' then
    redis.call('LPUSH', key, now)
    redis.call('PEXPIRE', key, span)
  else
    redis.call('HSET', key, 'count', counts[i] + amount, 'end', ends[i])
    redis.call('PEXPIREAT', key, ends[i] + minute)
  end
end
return out
"""
"""Count a call in all windows, or in none.

For each key it takes: what is counted, the limit, the amount, and the milliseconds that the window lasts, or for a day
or a month when it ends. It returns the number of the window that has too little room, or 0; and for each key what was
counted before, the milliseconds until its end, and its end.
"""

SETTLE = """
local out = {}
for i, key in ipairs(KEYS) do
  local at = 4 * i
  local unit, change, known, span = ARGV[at - 3], tonumber(ARGV[at - 2]), tonumber(ARGV[at - 1]), tonumber(ARGV[at])
  local found = tonumber(redis.call('HGET', key, 'end'))
  local runs = found and (unit ~= 'tokens' or found > now)
  if runs and (change > 0 or found == known) then
    redis.call('HINCRBY', key, 'count', change)
  elseif change > 0 then
    found = unit == 'tokens' and now + span or span
    redis.call('HSET', key, 'count', change, 'end', found)
    redis.call('PEXPIREAT', key, found + minute)
  end
  out[i] = tonumber(redis.call('HGET', key, 'count')) or 0
end
return out
"""
"""Correct what is counted.

For each key it takes: what is counted, the change, the window's end when it was reserved, and the last value as above.
It returns what is counted now.
"""


class SharedStorage:
    """Counts in a Valkey, which is not connected to yet.

    Args:
        address: the setting `limit_storage`, with its password.
        timeout: seconds that a connection, or one answer, may take.

    Raises:
        SettingsError: the address can't work.
    """

    def __init__(self, address: str, timeout: float) -> None:
        # One client speaks to both Valkey and Redis, and knows Valkey's addresses.
        url = re.sub(r"^async\+(redis|valkey)", "valkey", address)
        url = re.sub(r"^valkey\+unix:", "unix:", url)
        try:
            if urlsplit(url).hostname is None and not url.startswith("unix:"):
                raise ValueError
            self._client = Valkey.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
            self._client.connection_pool.make_connection()  # only now are the address's options looked at
        except (AttributeError, LookupError, TypeError, ValueError):  # these may quote the address
            example = "async+valkey://:password@host:6379"
            raise SettingsError(f"setting limit_storage: it is no address of a Valkey such as {example}") from None
        self._reserve = self._client.register_script(CLOCK + RESERVE)
        self._settle = self._client.register_script(CLOCK + SETTLE)

    async def reserve(self, windows: Sequence[Window]) -> tuple[int | None, list[Count]]:
        """Count a call in all windows or in none; as ProcessStorage does."""
        given = [(window.unit, window.limit, window.amount, _span(window)) for window in windows]
        refused, *told = await self._run(self._reserve, windows, given)
        counts: list[Count] = [(before, wait / 1000, end) for before, wait, end in zip(*[iter(told)] * 3, strict=True)]
        return (refused - 1 if refused else None), counts

    async def settle(self, changes: Sequence[tuple[Window, int, float]]) -> list[int]:
        """Correct what is counted; as ProcessStorage does."""
        given = [(window.unit, change, int(end), _span(window)) for window, change, end in changes]
        return await self._run(self._settle, [window for window, _, _ in changes], given)

    async def read(self, windows: Sequence[Window]) -> list[int]:
        """Return what is counted in each window of a day or a month."""
        return [int(await self._client.hget(_key(window), "count") or 0) for window in windows]

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    @staticmethod
    async def _run(script: Any, windows: Sequence[Window], given: Sequence[tuple[object, ...]]) -> list[int]:
        told: list[int] = await script([_key(window) for window in windows], [value for row in given for value in row])
        return told


def _key(window: Window) -> str:
    return f"app:{window.key}"


def _span(window: Window) -> int:
    return (window.end or MINUTE) * 1000
