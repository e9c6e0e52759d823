"""Which address of this host others can reach."""

from __future__ import annotations

import logging
import socket

log = logging.getLogger("dynamo.network")


def routable_host() -> str:
    """The address this host would use to reach others; loopback when it has no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1; connecting a datagram socket sends nothing
        except OSError:
            log.info("no route to other hosts: advertising 127.0.0.1")
            return "127.0.0.1"
        return str(probe.getsockname()[0])
