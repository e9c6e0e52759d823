"""What one rank's routers are yet to be told. Used by the engine's threads and by the loop alike."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from dynamo.shared.kv_events import RecoveryAnswer, RecoveryQuery, RouterEvent, Stored
from dynamo.worker.kv_batch import KvBatch
from dynamo.worker.local_indexer import LocalIndexer

MAX_BATCH_BLOCKS = 16_384  # not numbered yet
MAX_OUTGOING_EVENTS = 4096


class KvOutbox:
    """Changes go in, numbered events come out of `take`. Whoever puts something in is told whether to have it taken.

    When nobody takes them, the oldest events are dropped (`num_dropped`): routers see the gap, and ask.
    """

    def __init__(self, dp_rank: int) -> None:
        self._lock = threading.Lock()
        self._indexer = LocalIndexer(dp_rank)
        self._batch = KvBatch()
        self._outgoing: deque[RouterEvent] = deque()
        self._is_announced = False
        self.num_dropped = 0

    def identify(self, worker_id: int) -> None:
        with self._lock:
            self._indexer.identify(worker_id)

    def stored(self, tier: str, stored: Stored) -> bool:
        with self._lock:
            self._batch.stored(tier, stored)
            return self._announce()

    def removed(self, tier: str, block_hashes: list[int]) -> bool:
        with self._lock:
            self._batch.removed(tier, block_hashes)
            return self._announce()

    def cleared(self) -> bool:
        with self._lock:
            self._batch.cleared()
            return self._announce()

    def take(self) -> list[RouterEvent]:
        with self._lock:
            self._number()
            self._is_announced = False
            events = [*self._outgoing]
            self._outgoing.clear()
            return events

    def answer(self, query: RecoveryQuery) -> RecoveryAnswer:
        """May take long: a second for half a million blocks."""
        with self._lock:
            answer = self._indexer.prepare_answer(query)
        return answer()

    def _announce(self) -> bool:
        """True for the first since the last `take`."""
        if self._batch.num_blocks > MAX_BATCH_BLOCKS:
            self._number()
        was_announced, self._is_announced = self._is_announced, True
        return not was_announced

    def _number(self) -> None:
        self._outgoing.extend(self._events())
        while len(self._outgoing) > MAX_OUTGOING_EVENTS:
            self._outgoing.popleft()
            self.num_dropped += 1

    def _events(self) -> Iterator[RouterEvent]:
        for tier, change in self._batch.take():
            if (event := self._indexer.apply(tier, change)) is not None:
                yield event
