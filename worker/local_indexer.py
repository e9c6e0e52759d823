"""The memory of one rank's KV events: numbers them, and answers routers that missed some."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from dynamo.shared.kv_events import (
    CLEARED,
    Change,
    Events,
    InvalidRange,
    KvEvent,
    RecoveryAnswer,
    RecoveryQuery,
    Removed,
    RouterEvent,
    TooNew,
    TreeDump,
)
from dynamo.worker.held_blocks import HeldBlocks
from dynamo.worker.kv_batch import AnyChange, num_blocks_of

MAX_RECENT_EVENTS = 1024  # as 1.6.1 keeps
MAX_RECENT_BLOCKS = 1 << 16  # that these may name, so that many long prompts do not fill the memory
MAX_HELD_BLOCKS = 1 << 19  # which an answer of 32 MiB, the frame limit, can just tell
RECOVERY = "recovery"
RESIDENCY_DOMAIN = "worker"  # the blocks are this worker's own, not those of a shared cache


class LocalIndexer:
    """Everything that happened to one rank's cache passes through `apply`, in order.

    The events it returns are its own memory too: leave them as they are.
    """

    def __init__(self, dp_rank: int, max_blocks: int = MAX_HELD_BLOCKS) -> None:
        self.dp_rank = dp_rank
        self.last_event_id = 0
        self._worker_id = 0
        self._held = HeldBlocks(max_blocks)
        self._recent: deque[RouterEvent] = deque()
        self._num_recent_blocks = 0

    def __len__(self) -> int:
        """Blocks held, those of all tiers together."""
        return len(self._held)

    @property
    def num_forgotten(self) -> int:
        return self._held.num_forgotten

    def identify(self, worker_id: int) -> None:
        """Say whose events these are, once that is known: of those that were applied already, too."""
        self._worker_id = worker_id
        for event in self._recent:
            event.worker_id = worker_id

    def apply(self, tier: str, change: AnyChange) -> RouterEvent | None:
        """The event to tell routers, if there is anything to tell: a removed block may have been stored twice."""
        if not isinstance(change, Change):
            self._held.clear()
            return self._record(tier, CLEARED)
        if change.stored:
            self._held.store(tier, change.stored)
            return self._record(tier, change)
        assert change.removed
        gone = self._held.release(tier, change.removed.block_hashes)
        return self._record(tier, Change(removed=Removed(gone))) if gone else None

    def _record(self, tier: str, data: AnyChange) -> RouterEvent:
        self.last_event_id += 1
        event = self._event(tier, self.last_event_id, data)
        self._remember(event)
        return event

    def _remember(self, event: RouterEvent) -> None:
        self._recent.append(event)
        self._num_recent_blocks += num_blocks_of(event.event.data)
        while len(self._recent) > MAX_RECENT_EVENTS or self._num_recent_blocks > MAX_RECENT_BLOCKS:
            self._num_recent_blocks -= num_blocks_of(self._recent.popleft().event.data)

    def _event(self, tier: str, event_id: int, data: AnyChange) -> RouterEvent:
        return RouterEvent(self._worker_id, KvEvent(event_id, data, self.dp_rank), tier, RESIDENCY_DOMAIN)

    def prepare_answer(self, query: RecoveryQuery) -> Callable[[], RecoveryAnswer]:
        """Events of the range where they are remembered, which may be more than were asked for; else everything. That
        may take long, so call what you get where it holds nobody up: it needs the indexer no more."""
        if (answer := self._short_answer(query)) is not None:
            return lambda: answer
        return partial(_dump, self._held.snapshot(), self.last_event_id, self._event)

    def _short_answer(self, query: RecoveryQuery) -> RecoveryAnswer | None:
        start, end = query.start_event_id, query.end_event_id
        if (query.worker_id, query.dp_rank) != (self._worker_id, self.dp_rank):
            return RecoveryAnswer(error=f"this is rank {self.dp_rank} of worker {self._worker_id}, no other")
        if query.kind != RECOVERY:
            return RecoveryAnswer(error=f"queries of kind {query.kind!r} are not answered here; expected {RECOVERY!r}")
        if start is not None and end is not None and end < start:
            return RecoveryAnswer(invalid_range=InvalidRange(start, end))
        if start is None or not self._recent or start < self._recent[0].event.event_id:
            return None
        if start > self.last_event_id:
            newest = self.last_event_id
            return RecoveryAnswer(too_new=TooNew(start, newest if end is None else end, newest))
        missed = [event for event in self._recent if event.event.event_id >= start]
        return RecoveryAnswer(events=Events(missed, self.last_event_id))


def _dump(
    held: HeldBlocks, last_event_id: int, make_event: Callable[[str, int, Change], RouterEvent]
) -> RecoveryAnswer:
    events = [make_event(tier, number, Change(stored=chain)) for number, (tier, chain) in enumerate(held.dump())]
    return RecoveryAnswer(tree_dump=TreeDump(events, last_event_id))
