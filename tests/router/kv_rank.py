"""A rank of a worker that tells routers what it holds: numbered events, and answers to those who missed some."""

from __future__ import annotations

from typing import Literal

from dynamo.router.recovery_desk import History, Query
from dynamo.shared.event_plane import EndpointScope, Scope
from dynamo.shared.kv_events import (
    CLEARED,
    KV_EVENTS_TOPIC,
    Change,
    EventSource,
    KvEvent,
    RecoveryTarget,
    Removed,
    RouterEvent,
    SourceMetadata,
    Stored,
    StoredBlock,
    TooNew,
    WorkerRank,
)
from tests.router.prompts import engine_hash, local_hash, names_in, prefixes

SCOPE = EndpointScope("ns", "backend", "generate")
TIERS = {"host": "host_pinned"}


class KvRank:
    """It remembers all its events, and so can answer every question with them."""

    def __init__(self, worker_id: int, dp_rank: int) -> None:
        self.rank = WorkerRank(worker_id, dp_rank)
        self.publisher_id = 1000 * worker_id + dp_rank
        self.events: list[RouterEvent] = []
        self.is_announced = False

    def stored(self, prompt: str, first: str, tier: str) -> RouterEvent:
        """The blocks of a prompt from the one called `first` on, from its beginning if that is ""."""
        start = names_in(prompt).index(first) if first else 0
        known = prefixes(prompt)
        blocks = [StoredBlock(engine_hash(each), local_hash(names_in(each)[-1])) for each in known[start:]]
        return self._event(Change(stored=Stored(blocks, engine_hash(known[start - 1]) if start else None)), tier)

    def removed(self, prompt: str, tier: str) -> RouterEvent:
        """The last block of a prompt."""
        return self._event(Change(removed=Removed([engine_hash(prompt)])), tier)

    def cleared(self) -> RouterEvent:
        return self._event(CLEARED, "device")

    @property
    def key(self) -> str:
        return f"ns/backend/{self.publisher_id:x}"

    @property
    def source(self) -> EventSource:
        worker_id = self.rank.worker_id
        target = RecoveryTarget("ns", "backend", f"query_{self.publisher_id:x}", worker_id, {"tcp": "h:1/p"})
        metadata = SourceMetadata(SCOPE, self.rank, self.publisher_id, target)
        return EventSource(Scope(endpoint=SCOPE), KV_EVENTS_TOPIC, self.publisher_id, metadata)

    def answer(self, query: Query) -> History | TooNew:
        newest, start = len(self.events), query.start_event_id or 1
        if start > newest:
            return TooNew(start, newest, newest or None)
        return History(iter(self.events[start - 1 :]), newest, is_whole=query.start_event_id is None)

    def _event(self, data: Change | Literal["cleared"], tier: str) -> RouterEvent:
        number = len(self.events) + 1
        event = RouterEvent(self.rank.worker_id, KvEvent(number, data, self.rank.dp_rank), TIERS.get(tier, tier))
        self.events.append(event)
        return event
