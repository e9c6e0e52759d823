"""What happened to KV events on their way into the index."""

from __future__ import annotations

from msgspec import Struct


class Applied(Struct):
    """Events given to the index, by kind, and how many of those it had no use for."""

    stored: int = 0
    removed: int = 0
    cleared: int = 0
    refused: int = 0


class EventCounts(Struct):
    """Plain counters; all grow but the last two."""

    stale: int = 0  # known already
    foreign: int = 0  # of a publisher that does not speak for its rank
    unplaced: int = 0  # of a rank that the table has no worker for
    dropped: int = 0  # no room to wait for an answer
    gaps: int = 0
    recoveries: int = 0  # queries sent for good reason
    checks: int = 0  # queries sent to make sure
    dumps: int = 0  # answers, by kind
    replays: int = 0
    retries: int = 0
    given_up: int = 0
    restarts: int = 0  # publishers that took over from another
    buffered: int = 0  # waiting now
    in_flight: int = 0  # queries asked now
