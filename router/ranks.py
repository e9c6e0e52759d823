"""Numbers for ranks: each (worker, dp_rank) has a *slot*, a bit of every mask and an index of every load array."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from dynamo.shared.protocol import RuntimeConfig


class Rank(NamedTuple):
    instance_id: int
    dp_rank: int


class Ranks:
    """Slots are given out from 0 and used again, the lowest first, so arrays and masks stay as short as the fleet."""

    def __init__(self) -> None:
        self.num_slots = 0  # ever given out: the length that arrays need
        self._by_slot: list[Rank | None] = []
        self._facts: list[RuntimeConfig] = []
        self._of_instance: dict[int, dict[int, int]] = {}  # instance id -> dp_rank -> slot
        self._free: list[int] = []

    def __getitem__(self, slot: int) -> Rank:
        """Raises KeyError for a slot that nobody has."""
        rank = self._by_slot[slot] if slot < len(self._by_slot) else None
        if rank is None:
            raise KeyError(slot)
        return rank

    def __contains__(self, instance_id: int) -> bool:
        return instance_id in self._of_instance

    def __iter__(self) -> Iterator[tuple[int, Rank]]:
        return ((slot, rank) for slot, rank in enumerate(self._by_slot) if rank is not None)

    def facts(self, slot: int) -> RuntimeConfig:
        """What the worker's card says of its engine."""
        return self._facts[slot]

    def slot_of(self, instance_id: int, dp_rank: int) -> int | None:
        return self._of_instance.get(instance_id, {}).get(dp_rank)

    def slots_of(self, instance_id: int) -> dict[int, int]:
        """dp_rank -> slot, in order of ranks; empty for a worker that is not there."""
        return self._of_instance.get(instance_id, {})

    def up(self, instance_id: int, facts: RuntimeConfig) -> list[int]:
        """The worker is there with the ranks that its card names; returns new slots, none if nothing has changed.
        A worker whose ranks have changed must be taken down first."""
        wanted = ranks_of(facts)
        known = self._of_instance.get(instance_id)
        if known is None:
            known = self._of_instance[instance_id] = {dp_rank: self._take(instance_id, dp_rank) for dp_rank in wanted}
            fresh = list(known.values())
        else:
            fresh = []
        for slot in known.values():
            self._facts[slot] = facts
        return fresh

    def down(self, instance_id: int) -> list[int]:
        """The worker is gone; returns the slots that are free now."""
        slots = list(self._of_instance.pop(instance_id, {}).values())
        for slot in slots:
            self._by_slot[slot] = None
            heapq.heappush(self._free, slot)
        return slots

    def _take(self, instance_id: int, dp_rank: int) -> int:
        if self._free:
            slot = heapq.heappop(self._free)
        else:
            slot = self.num_slots
            self.num_slots += 1
            self._by_slot.append(None)
            self._facts.append(RuntimeConfig())
        self._by_slot[slot] = Rank(instance_id, dp_rank)
        return slot


def ranks_of(facts: RuntimeConfig) -> range:
    start = facts.data_parallel_start_rank
    return range(start, start + max(1, facts.data_parallel_size))
