"""Opens the storage that all processes count in: a Valkey, or a Redis."""

import re
from typing import cast
from urllib.parse import urlsplit

from limits.aio.storage import RedisStorage
from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from app.config import SettingsError


def shared_storage(address: str, timeout: float) -> RedisStorage:
    """Return the storage at an address, which is not connected to yet.

    Args:
        address: the setting `limit_storage`, with its password.
        timeout: seconds that a connection, or one answer, may take.

    Raises:
        SettingsError: the address can't work.
    """
    # One client speaks to both. The library `limits` would want another one for Redis.
    address = re.sub(r"^async\+redis", "async+valkey", address)
    waits = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    try:
        if urlsplit(address).hostname is None and "+unix:" not in address:
            raise ValueError
        return cast(RedisStorage, storage_from_string(address, **waits))
    except (ConfigurationError, AttributeError, LookupError, TypeError, ValueError):  # these may quote the address
        example = "async+valkey://:password@host:6379"
        raise SettingsError(f"setting limit_storage: it is no address of a Valkey such as {example}") from None
