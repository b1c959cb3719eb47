"""Hosts and proxies: which are this machine's own, and which proxy leads to an address."""

import ipaddress
import urllib.request
from urllib.parse import urlsplit


def proxy_for(address: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for an address, or None."""
    parts = urlsplit(address)
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
