"""Packets that the kernel counts on a connection."""

import asyncio
import socket
import struct
from collections.abc import Iterable

RETRANSMITTED, DATA_SEGMENTS_IN, DATA_SEGMENTS_OUT = 100, 152, 156
"""Where they stand in Linux's `struct tcp_info` (linux/tcp.h), which grows at its end only."""


def received(transports: Iterable[asyncio.BaseTransport]) -> int:
    """Packets with data that came in so far; a write of the other side is one, up to 64 kB on loopback."""
    return sum(tcp_info(transport, DATA_SEGMENTS_IN) for transport in transports)


def sent(transports: Iterable[asyncio.BaseTransport]) -> int:
    """Packets with data that went out so far, those that the kernel sent again not counted twice."""
    return sum(tcp_info(each, DATA_SEGMENTS_OUT) - tcp_info(each, RETRANSMITTED) for each in transports)


def tcp_info(transport: asyncio.BaseTransport, offset: int) -> int:
    info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    value: int = struct.unpack_from("I", info, offset)[0]
    return value
