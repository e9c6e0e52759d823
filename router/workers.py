"""Workers that come and go: their ranks get slots, their events are followed, and all that was theirs is forgotten."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dynamo.router.affinity import SessionAffinity
from dynamo.router.event_sources import RESTORED_FOR_S, Cursor, EventSources
from dynamo.router.fleet import Fleet
from dynamo.router.index_snapshot import RankSnapshot
from dynamo.router.overload import OverloadMonitor
from dynamo.router.ranks import ranks_of
from dynamo.router.table import ModelTable
from dynamo.shared.protocol import RuntimeConfig

log = logging.getLogger("dynamo.router")


class Workers:
    """`sources` is None where no KV events are followed, `affinity` where sessions are ignored."""

    def __init__(
        self,
        table: ModelTable,
        fleet: Fleet,
        overload: OverloadMonitor,
        sources: EventSources | None,
        affinity: SessionAffinity | None,
    ) -> None:
        self._table = table
        self._fleet = fleet
        self._overload = overload
        self._sources = sources
        self._affinity = affinity
        self._kept: dict[tuple[int, int], RankSnapshot] = {}  # of ranks that have not come yet
        self._kept_until = 0.0

    def settle(self, instance_ids: Iterable[int], now: float) -> None:
        """After a change of the table. Ranks are those of routable workers; one with other ranks starts anew."""
        for instance_id in instance_ids:
            facts = self._facts_of(instance_id)
            if instance_id in self._fleet.ranks and (facts is None or not self._has_ranks(instance_id, facts)):
                self._down(instance_id)
            if facts is not None:
                self._up(instance_id, facts, now)

    def tick(self, now: float) -> None:
        if self._kept and now >= self._kept_until:
            self._kept.clear()

    # ---- what a predecessor knew

    def restore(self, states: dict[Cursor, RankSnapshot], now: float) -> None:
        """Give ranks these blocks when they come; their events decide how long that holds."""
        if self._sources is not None:
            self._kept = {(cursor.worker_id, cursor.dp_rank): blocks for cursor, blocks in states.items()}
            self._kept_until = now + RESTORED_FOR_S
            self._sources.restore(states, now)

    def state_of(self, worker_id: int, dp_rank: int) -> tuple[Cursor, RankSnapshot] | None:
        """What `restore` takes; None while it is not complete."""
        slot = self._fleet.ranks.slot_of(worker_id, dp_rank)
        cursor = None if self._sources is None else self._sources.cursor_of(worker_id, dp_rank)
        if slot is None or cursor is None or self._fleet.index is None:
            return None
        return cursor, self._fleet.index.dump(slot)

    # ---- inside

    def _facts_of(self, instance_id: int) -> RuntimeConfig | None:
        """None for a worker that is not routable."""
        live = self._table.home_of(instance_id) if instance_id in self._table.workers else None
        return None if live is None else live.registered[instance_id].card.runtime_config

    def _has_ranks(self, instance_id: int, facts: RuntimeConfig) -> bool:
        return list(self._fleet.ranks.slots_of(instance_id)) == list(ranks_of(facts))

    def _up(self, instance_id: int, facts: RuntimeConfig, now: float) -> None:
        self._fleet.up(instance_id, facts)
        for slot in self._fleet.ranks.slots_of(instance_id).values():
            self._overload.set_capacity(slot, facts.total_kv_blocks, facts.max_num_batched_tokens)
        if self._sources is not None:
            self._unpack(instance_id)
            self._sources.worker_up(instance_id, now)

    def _down(self, instance_id: int) -> None:
        if self._sources is not None:
            self._sources.worker_down(instance_id)
        for slot in self._fleet.down(instance_id):
            self._overload.forget(slot)
        if self._affinity is not None:
            self._affinity.forget_instance(instance_id)

    def _unpack(self, instance_id: int) -> None:
        assert self._fleet.index is not None
        for dp_rank, slot in self._fleet.ranks.slots_of(instance_id).items():
            blocks = self._kept.pop((instance_id, dp_rank), None)
            if blocks is None:
                continue
            try:
                self._fleet.index.load(slot, blocks)
            except ValueError as error:
                log.warning("worker %x rank %d does not start warm: %s", instance_id, dp_rank, error)
