"""A worker as the router's event feed sees it: numbered events, a short memory of them, and answers to queries.

Its numbers and answers are those that Dynamo 1.6.1 was seen to give.
"""

from __future__ import annotations

from collections import deque

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

SCOPE = EndpointScope("demo", "backend", "generate")


class HeldByName:
    """The plainest index there is: which block names each slot holds."""

    def __init__(self) -> None:
        self.held: dict[int, set[int]] = {}

    def apply(self, slot: int, event: RouterEvent) -> bool:
        data = event.event.data
        assert isinstance(data, Change)
        held = self.held.setdefault(slot, set())
        if isinstance(data.stored, Stored):
            held |= {block.block_hash for block in data.stored.blocks}
        if isinstance(data.removed, Removed):
            held -= set(data.removed.block_hashes)
        return True

    def clear(self, slot: int) -> None:
        self.held.pop(slot, None)

    def __getitem__(self, slot: int) -> set[int]:
        return self.held.get(slot, set())


class EventWorker:
    def __init__(
        self, worker_id: int = 1, publisher_id: int = 100, *, answers: bool = True, max_remembered: int = 8
    ) -> None:
        self.rank = WorkerRank(worker_id)
        self.publisher_id = publisher_id
        self.key = f"source/{publisher_id:x}"
        self.held: set[int] = set()
        self.last_event_id = 0
        self._answers = answers
        self._remembered: deque[RouterEvent] = deque(maxlen=max_remembered)

    @property
    def source(self) -> EventSource:
        target = RecoveryTarget(
            "demo", "backend", f"query_{self.publisher_id:x}", self.rank.worker_id, {"tcp": "h:1/p"}
        )
        metadata = SourceMetadata(SCOPE, self.rank, self.publisher_id, target if self._answers else None)
        return EventSource(Scope(endpoint=SCOPE), KV_EVENTS_TOPIC, self.publisher_id, metadata)

    def store(self, *names: int) -> RouterEvent:
        self.held |= set(names)
        return self._event(Change(stored=Stored([StoredBlock(name, name) for name in names])))

    def remove(self, *names: int) -> RouterEvent:
        self.held -= set(names)
        return self._event(Change(removed=Removed(list(names))))

    def clear(self) -> RouterEvent:
        self.held.clear()
        return self._event(CLEARED)

    def answer(self, query: Query) -> History | TooNew:
        start = query.start_event_id
        if start is None or not self._remembered or start < self._remembered[0].event.event_id:
            return self.dump()
        if start > self.last_event_id:
            return TooNew(start, self.last_event_id, self.last_event_id)
        missed = [event for event in self._remembered if event.event.event_id >= start]
        return History(iter(missed), self.last_event_id, is_whole=False)

    def dump(self) -> History:
        blocks = [
            RouterEvent(self.rank.worker_id, KvEvent(i, Change(stored=Stored([StoredBlock(name, name)]))))
            for i, name in enumerate(sorted(self.held))
        ]
        return History(iter(blocks), self.last_event_id, is_whole=True)

    def _event(self, data: Change | str) -> RouterEvent:
        self.last_event_id += 1
        event = RouterEvent(
            self.rank.worker_id,
            KvEvent(self.last_event_id, CLEARED if isinstance(data, str) else data, self.rank.dp_rank),
        )
        self._remembered.append(event)
        return event
