"""What the ranks' feeds share: the index they fill, and the queries that they want sent, now or later."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from dynamo.router.event_counts import Applied, EventCounts
from dynamo.shared.kv_events import EventSource, RecoveryTarget, RouterEvent, WorkerRank

if TYPE_CHECKING:
    from dynamo.router.rank_feed import RankFeed

MAX_COMPONENTS = 1024  # whose events are counted separately


class Index(Protocol):
    def apply(self, slot: int, event: RouterEvent) -> bool:
        """False when it was of no use."""

    def clear(self, slot: int) -> None: ...


class RecoveryRules(Struct, frozen=True, kw_only=True):
    """Seconds and counts. An idle rank is checked now and then, for the last event before a silence may be lost too."""

    max_queries: int = 16
    max_attempts: int = 8
    first_backoff_s: float = 0.2
    max_backoff_s: float = 10.0
    first_check_s: float = 1.0
    check_interval_s: float = 60.0
    resume_s: float = 30.0  # after the last attempt, until everything is asked for again
    max_buffered_per_rank: int = 1024
    max_buffered: int = 262_144


class Query(Struct, frozen=True):
    """A question for the worker of a rank, from `start_event_id` on or, if that is None, for all it holds."""

    number: int
    rank: WorkerRank
    target: RecoveryTarget
    start_event_id: int | None
    is_check: bool  # nothing is known to be missing


class History(Struct):
    """An answer. A whole one replaces what is known of the rank; events of another have their own ids.

    The iterator may raise msgspec.MsgspecError where an event cannot be read.
    """

    events: Iterator[RouterEvent]
    last_event_id: int
    is_whole: bool


class RecoveryDesk:
    def __init__(self, index: Index, rules: RecoveryRules) -> None:
        self.index = index
        self.rules = rules
        self.counts = EventCounts()
        self.applied: dict[tuple[str, str], Applied] = {}
        self._asking: deque[RankFeed] = deque()
        self._in_flight: dict[int, RankFeed] = {}
        self._catching_up: deque[RankFeed] = deque()
        self._due: list[tuple[float, int, RankFeed]] = []  # a heap; entries that `due_at` contradicts are void
        self._numbers = count()

    # ---- for feeds

    def applied_of(self, source: EventSource | None) -> Applied:
        """The counts of its namespace and component; those of no component without a source, or for too many."""
        component = ("", "") if source is None else (source.scope.endpoint.namespace, source.scope.endpoint.component)
        if component not in self.applied and len(self.applied) >= MAX_COMPONENTS:
            component = ("", "")
        return self.applied.setdefault(component, Applied())

    def ask(self, feed: RankFeed) -> None:
        """Send a query for it as soon as there is room among those in flight."""
        self._asking.append(feed)

    def plan(self, feed: RankFeed, due_at: float) -> None:
        """Let it `come_due` then, and no longer when it had planned before."""
        feed.due_at = due_at
        heapq.heappush(self._due, (due_at, next(self._numbers), feed))

    def catch_up(self, feed: RankFeed) -> None:
        """Let it apply its history, in its turn."""
        self._catching_up.append(feed)

    # ---- for their owner

    def take_queries(self) -> list[Query]:
        queries = []
        while self._asking and len(self._in_flight) < self.rules.max_queries:
            feed = self._asking.popleft()
            if (query := feed.next_query(next(self._numbers))) is not None:
                self._in_flight[query.number] = feed
                queries.append(query)
        self.counts.in_flight = len(self._in_flight)
        return queries

    def take_answered(self, query: Query) -> RankFeed | None:
        """Whose question this was; None when the answer comes too late to matter."""
        feed = self._in_flight.pop(query.number, None)
        self.counts.in_flight = len(self._in_flight)
        return feed if feed is not None and feed.query is query else None

    def tick(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            due_at, _number, feed = heapq.heappop(self._due)
            if feed.due_at == due_at:
                feed.due_at = None
                feed.come_due(now)

    def work(self, max_blocks: int, now: float) -> bool:
        while self._catching_up and max_blocks > 0:
            feed = self._catching_up[0]
            max_blocks -= feed.apply_history(max_blocks, now)
            if not feed.is_catching_up:
                self._catching_up.popleft()
        return bool(self._catching_up)
