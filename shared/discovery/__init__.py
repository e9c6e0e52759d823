"""Where workers say that they exist. One interface, a file per backend.

Keys and values are those of Dynamo 1.6.1: `bucket` is one of the `v1/...` buckets, `key` the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from msgspec import Struct

INSTANCES = "v1/instances"
CARDS = "v1/mdc"
EVENT_CHANNELS = "v1/event_channels"
EVENT_SOURCES = "v1/event_sources"


class Put(Struct, frozen=True):
    """The key now has this value (an upsert)."""

    key: str
    value: bytes


class Deleted(Struct, frozen=True):
    key: str


Change = Put | Deleted


class DiscoveryError(Exception):
    """The store cannot be reached or refused; the message names it and says what to check."""


class Discovery(Protocol):
    """A store opened by one process. Everything it published lives as long as the process keeps its lease alive."""

    is_local: bool  # only processes of this host can see it, so addresses in it may be loopback

    async def open(self) -> None:
        """Connect, take the lease and keep it alive. Raises DiscoveryError when that cannot be done in time."""

    async def close(self) -> None:
        """Withdraw everything this process published, give the lease back, end every watch."""

    @property
    def lease_id(self) -> int:
        """u64 identity of this process in the store; workers use it as instance_id. Valid once open."""

    async def publish(self, bucket: str, key: str, value: bytes) -> None:
        """Create or replace; renewed with the lease, re-published by itself after the store lost it."""

    async def withdraw(self, bucket: str, key: str) -> None:
        """Remove what this process published; unknown keys are ignored."""

    def watch(self, bucket: str) -> AsyncIterator[list[Change]]:
        """First batch: all that is there, as Puts (may be empty). Then changes as they come. A lost connection does not
        end it: afterwards comes one batch with the difference."""


def key_of(namespace: str, component: str, endpoint: str, instance_id: int, suffix: str | None = None) -> str:
    """Key of an instance or a card below its bucket."""
    key = f"{namespace}/{component}/{endpoint}/{instance_id:x}"
    return f"{key}/{suffix}" if suffix else key
