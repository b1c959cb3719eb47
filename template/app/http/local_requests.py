"""Which requests come from this machine itself: the setting `dev` serves those without a key."""

import re
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from app.network import is_loopback

FORWARDING_HEADER = re.compile(r"forwarded|proxy|^(via|cdn-loop|cf-.+)$|(^|-)(client)?ip(v6)?$|-addr(ess)?$")
"""Names of headers by which a proxy says that it passes a request on, or for whom."""
ADDRESSES = re.compile(r"(^|.*[,\s])\[?(\d+(\.\d+){3}|[0-9a-f]*(:[0-9a-f]*){2,7})(\]?(:\d+)?)?(,.*)?", re.IGNORECASE)
"""A header's value with an IP address in it, with or without a port: a client's, whatever the name."""


def is_local(request: HTTPConnection) -> bool:
    """Return whether a request was made on this machine.

    The peer must be a loopback address. `Host` must be one too; otherwise an attacker's domain could point to 127.0.0.1
    (DNS rebinding). If there is an `Origin`, it must be one too; otherwise any website that the developer visits could
    call. There may be only one of each. A proxy on this machine is recognized by its forwarding headers, by an address
    that it passes on under any name, by the `Host` that it passes on, or by HTTP/1.0.
    """
    headers = request.headers
    if any(FORWARDING_HEADER.search(k) or (k != "host" and ADDRESSES.fullmatch(v)) for k, v in headers.items()):
        return False
    if request.client is None or not is_loopback(request.client.host) or request.scope.get("http_version") == "1.0":
        return False
    try:
        [host] = headers.getlist("host")
        hosts = [urlsplit(f"//{host}").hostname]
        if origins := headers.getlist("origin"):
            [origin] = origins
            hosts.append(urlsplit(origin).hostname)
    except ValueError:  # several, or unbalanced brackets
        return False
    return all(host is not None and is_loopback(host) for host in hosts)
