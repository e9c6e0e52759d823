"""The listening sockets: one per acceptor on the same address, so that the kernel spreads connections over them.

The supervisor makes them and keeps them open. Connections that wait in the queue of an acceptor that died are served by
its successor, which inherits the same socket.
"""

from __future__ import annotations

import socket
from typing import Any


class ListenError(Exception):
    """The address cannot be listened on; the message says which and what to change."""


def listen(host: str, port: int, count: int, backlog: int) -> list[socket.socket]:
    """`count` sockets on one address. Port 0 takes a free one, the same for all."""
    family, address = _resolve(host, port)
    try:
        if port != 0:
            _probe(family, address)
        sockets = [_bound(family, address)]
        sockets += [_bound(family, sockets[0].getsockname()) for _ in range(count - 1)]
        for each in sockets:
            each.listen(backlog)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ListenError(f"cannot listen on {host}:{port}: {reason} (see --http-host, --http-port)") from None
    return sockets


def url_of(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"--http-host {host}: {error.strerror}") from None
    family, _type, _proto, _name, address = found[0]
    return family, address


def _probe(family: socket.AddressFamily, address: Any) -> None:
    """Fail if somebody listens there. A bind with SO_REUSEPORT alone would share the port with them, silently."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _bound(family: socket.AddressFamily, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setblocking(False)
    try:
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
