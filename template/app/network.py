"""Hosts, origins and proxies: which are this machine's own, which can work, and which proxy leads to an address."""

import ipaddress
import os
import re
import urllib.request
from collections.abc import Iterable
from urllib.parse import urlsplit

from pydantic import ValidationInfo

HOST = r"(\[[0-9A-Fa-f:.]+\]|[^\s/@:?#\[\]]+)(:[0-9]{1,5})?"
ADDRESS = rf"^https?://{HOST}(/\S*)?$"
"""Of an API: without a user or a password."""
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def check_list(texts: list[str], info: ValidationInfo) -> list[str]:
    """Return the entries of a setting that is a list of origins, proxies or hosts.

    Raises:
        ValueError: one of them could never match.
    """
    check = {"cors_origins": _origins, "trusted_proxies": _networks}.get(info.field_name or "", _without_blanks)
    check(texts)
    return texts


def _origins(texts: list[str]) -> None:
    if not all(ORIGIN.fullmatch(text) and not re.fullmatch("http:.*:80|https:.*:443", text) for text in texts):
        raise ValueError("an origin is scheme://host[:port], in lower case, without a path and a default port")


def _networks(texts: list[str]) -> None:
    try:
        _ = texts == ["*"] or [ipaddress.ip_network(text) for text in texts]
    except ValueError:
        raise ValueError('a proxy is an address or a network, such as 10.0.0.0/8; or "*" alone') from None


def _without_blanks(texts: list[str]) -> None:
    if not all(re.fullmatch(r"\S+", text) for text in texts):
        raise ValueError("an entry is empty or has a blank in it")


def with_mapped(texts: Iterable[str]) -> list[str]:
    """Return networks, and for those of IPv4 also how their addresses look to a socket of both families."""
    found = [*map(ipaddress.ip_network, (text for text in texts if text != "*"))]
    of_4 = [each for each in found if isinstance(each, ipaddress.IPv4Network)]
    return [*texts, *(f"::ffff:{each.network_address}/{96 + each.prefixlen}" for each in of_4)]


def is_injected(name: str, value: str | None) -> bool:
    """Return whether a variable is one that Kubernetes injects for a Service, such as APP_PORT=tcp://10.0.0.1:80."""
    return name.upper().endswith("_PORT") and bool(re.match("(tcp|udp|sctp)://", value or ""))


def host_of(address: str) -> str:
    """Return an address's `host:port`, without a user and a password."""
    return urlsplit(address).netloc.rpartition("@")[2]


def proxy_for(address: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for an address, or None."""
    parts = urlsplit(address)
    host = host_of(address)
    if not re.search(r":[0-9]+$", host):
        host += ":443" if parts.scheme == "https" else ":80"
    exempt = any(map(urllib.request.proxy_bypass, (host, re.sub(r"[\[\]]", "", host))))  # IPv6: in brackets, or bare
    if exempt or not parts.hostname or _is_in_no_proxy(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def exempt_from_proxies(addresses: Iterable[str]) -> None:
    """Add the hosts of addresses that a network in NO_PROXY covers to it, for libraries that know no networks there.

    An entry with a port is left as it is: the host alone would exempt its other ports too.
    """
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [urlsplit(address).hostname or "" for address in addresses] if name in os.environ else []
        for host in dict.fromkeys(filter(_is_in_no_proxy, hosts)):
            if not urllib.request.proxy_bypass(host):
                os.environ[name] += f",{host}"


def _is_in_no_proxy(host: str) -> bool:
    """Return whether NO_PROXY has this address, in any spelling, or a network (CIDR) with it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in urllib.request.getproxies().get("no", "").split(","):
        try:
            if address in ipaddress.ip_network(re.sub(r"[\[\]\s]", "", entry), strict=False):
                return True
        except ValueError:  # the name of a host
            continue
    return False


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's own."""
    if f".{host.lower()}".endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback  # ::ffff:127.0.0.1
