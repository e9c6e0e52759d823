"""What happened to a cache and is not told yet: small changes that belong together become one event."""

from __future__ import annotations

from typing import Literal

from dynamo.shared.kv_events import CLEARED, Change, Removed, Stored
from dynamo.worker.held_blocks import MAX_BLOCKS_PER_EVENT

AnyChange = Change | Literal["cleared"]
TieredChange = tuple[str, AnyChange]


def num_blocks_of(change: AnyChange) -> int:
    """A reset counts as one."""
    if not isinstance(change, Change):
        return 1
    return len(change.stored.blocks) if change.stored else len(change.removed.block_hashes) if change.removed else 0


class KvBatch:
    """Changes in order. `num_blocks` counts what they name."""

    def __init__(self) -> None:
        self._changes: list[TieredChange] = []
        self.num_blocks = 0

    def stored(self, tier: str, stored: Stored) -> None:
        self.num_blocks += len(stored.blocks)
        last = self._last(tier)
        if last is not None and last.stored and _continues(last.stored, stored):
            last.stored.blocks += stored.blocks
        else:
            self._changes.append((tier, Change(stored=Stored([*stored.blocks], stored.parent_hash))))

    def removed(self, tier: str, block_hashes: list[int]) -> None:
        self.num_blocks += len(block_hashes)
        last = self._last(tier)
        if last is not None and last.removed and len(last.removed.block_hashes) < MAX_BLOCKS_PER_EVENT:
            last.removed.block_hashes += block_hashes
        else:
            self._changes.append((tier, Change(removed=Removed([*block_hashes]))))

    def cleared(self) -> None:
        """Nothing that came before matters any more."""
        self.num_blocks = 0
        self._changes = [("device", CLEARED)]

    def take(self) -> list[TieredChange]:
        changes, self._changes = self._changes, []
        self.num_blocks = 0
        return changes

    def _last(self, tier: str) -> Change | None:
        if not self._changes:
            return None
        last_tier, change = self._changes[-1]
        return change if last_tier == tier and isinstance(change, Change) else None


def _continues(first: Stored, second: Stored) -> bool:
    return second.parent_hash == first.blocks[-1].block_hash and len(first.blocks) < MAX_BLOCKS_PER_EVENT
