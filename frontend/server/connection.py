"""What every connection is to its server, whichever protocol it speaks, and what they all need of a transport."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Protocol

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class Connection(Protocol):
    def sweep(self, now: float) -> None:
        """Look at the deadlines; called often enough for them."""

    def shut_down(self) -> None:
        """Take no further request, and close once none is being answered."""

    def reset(self) -> None:
        """Close at once."""


class StallWatch:
    """Tells a slow client from one that takes nothing any more."""

    __slots__ = ("_last_size", "_since", "_timeout_s", "_transport")

    def __init__(self, transport: asyncio.Transport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._last_size = -1
        self._since = 0.0

    def begin(self, now: float) -> None:
        self._last_size = -1
        self._since = now

    def is_stalled(self, now: float) -> bool:
        """Asked while the transport has unsent bytes: has their number stood still for too long?"""
        size = self._transport.get_write_buffer_size()
        if size != self._last_size:
            self._last_size = size
            self._since = now
        return now - self._since >= self._timeout_s


def reset_transport(transport: asyncio.Transport) -> None:
    """Unsent bytes are dropped, and the peer gets a reset instead of an end of file."""
    raw_socket: socket.socket | None = transport.get_extra_info("socket")
    if raw_socket is not None and raw_socket.fileno() != -1:
        raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.abort()


def peer_name(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local"
