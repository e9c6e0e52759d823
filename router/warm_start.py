"""What a router keeps for its successor: the prefix index of each rank, and how far its events had been applied."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
from msgspec import Struct

from dynamo.router.core import Router
from dynamo.router.event_sources import Cursor
from dynamo.router.index_snapshot import RankSnapshot
from dynamo.router.snapshot_store import SnapshotError, SnapshotStore

log = logging.getLogger("dynamo.router")


class RankState(Struct, array_like=True, frozen=True):
    cursor: Cursor
    blocks: RankSnapshot


class RouterState(Struct, array_like=True, frozen=True):
    """`positions` are those in the streams of a broker that keeps events."""

    ranks: list[RankState]
    positions: dict[str, int] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RouterState).decode


class WarmStart:
    """Saves the index of `router` now and then, and gives it back to a router that has just started."""

    def __init__(self, router: Router, store: SnapshotStore, interval_s: float) -> None:
        self._router = router
        self._store = store
        self._interval_s = interval_s
        self.num_saved = 0
        self.num_failed = 0
        self.num_bytes = 0  # of the last one saved
        self.saved_at: float | None = None  # it was, in Unix seconds
        self.restored_blocks = 0
        self.restored_age_s = 0.0
        self.source = ""  # where the restored one was found

    async def restore(self, now: float) -> dict[str, int]:
        """Before any worker is known. Returns the positions in the broker's streams."""
        snapshot = await self._store.load()
        if snapshot is None:
            return {}
        try:
            state = await asyncio.to_thread(_decode, snapshot.data)
        except msgspec.MsgspecError as error:
            log.warning("not starting warm: the snapshot of %s is not one of this version: %s", snapshot.source, error)
            return {}
        self._router.workers.restore({each.cursor: each.blocks for each in state.ranks}, now)
        self.source, self.restored_age_s = snapshot.source, snapshot.age_s
        self.restored_blocks = sum(len(h.names) // 8 for each in state.ranks for h in each.blocks.holdings)
        log.info(
            "starting warm: %d blocks of %d ranks, %.0f s old, from %s",
            self.restored_blocks,
            len(state.ranks),
            self.restored_age_s,
            self.source,
        )
        return state.positions

    async def keep_saving(self, positions: Callable[[], dict[str, int]]) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.save(positions)

    async def save(self, positions: Callable[[], dict[str, int]]) -> None:
        """A failure is logged and counted; the last one saved stays."""
        try:
            data = await self._encoded(positions())
            await self._store.save(data)
        except SnapshotError as error:
            self.num_failed += 1
            log.warning("%s", error)
        else:
            self.num_saved += 1
            self.num_bytes = len(data)
            self.saved_at = time.time()

    async def _encoded(self, positions: dict[str, int]) -> bytes:
        """Rank by rank, each with its own cursor: placements go on in between. Positions were taken first, for events
        that are delivered twice are recognised and events that are never delivered are not."""
        ranks = []
        for _slot, rank in list(self._router.fleet.ranks):
            if (state := self._router.workers.state_of(*rank)) is not None:
                ranks.append(RankState(*state))
            await asyncio.sleep(0)
        return await asyncio.to_thread(_encode, RouterState(ranks, positions))
