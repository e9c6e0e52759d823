"""What one server grants its clients; everything a client can make it hold has a bound here."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_connections: int = 8192  # at the cap, new ones wait in the listen backlog
    max_in_flight: int = 4096  # requests being handled; further ones get a 503
    max_streams: int = 256  # concurrent, per HTTP/2 connection

    max_target_bytes: int = 8 * KIB
    max_head_bytes: int = 64 * KIB
    max_headers: int = 100
    max_body_bytes: int = 45 * MIB

    head_timeout_s: float = 10.0  # from the first byte of a request to the end of its headers
    body_timeout_s: float = 30.0  # for a request body, and one second more per `min_body_rate` bytes
    min_body_rate: int = 64 * KIB  # bytes per second
    idle_timeout_s: float = 75.0  # between requests, and before the first
    stall_timeout_s: float = 60.0  # without the client taking any byte of what is written to it

    high_water: int = 64 * KIB  # unsent bytes from which an exchange is not writable
    low_water: int = 16 * KIB
