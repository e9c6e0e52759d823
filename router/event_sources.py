"""KV events into the index, without IO: whose events they are, and which ranks are followed.

Sources come from discovery, slots from the model table, events from the event plane, in any order. A rank is followed
while it has a slot; see `rank_feed` for how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from dynamo.router.event_counts import Applied, EventCounts
from dynamo.router.rank_feed import RankFeed
from dynamo.router.recovery_desk import History, Index, Query, RecoveryDesk, RecoveryRules
from dynamo.shared.kv_events import EventSource, RouterEvent, TooNew, WorkerRank

RESTORED_FOR_S = 60.0


class Cursor(Struct, frozen=True):
    """How far a rank's events have been applied, in the numbering of one publisher."""

    worker_id: int
    dp_rank: int
    publisher_id: int
    event_id: int


class EventSources:
    """`slot_of(worker_id, dp_rank)` is a rank's place in the index. Who takes a slot away also clears it there.

    With `is_durable` a broker keeps events, and delivers after `restore` what followed, or else all there is; until
    `end_replay` nobody is asked but those for whom that is not enough.
    """

    def __init__(
        self,
        index: Index,
        slot_of: Callable[[int, int], int | None],
        rules: RecoveryRules | None = None,
        *,
        is_durable: bool = False,
    ) -> None:
        self._desk = RecoveryDesk(index, rules or RecoveryRules())
        self._index = index
        self._slot_of = slot_of
        self._is_durable = is_durable
        self._is_replaying = is_durable
        self._feeds: dict[int, dict[int, RankFeed]] = {}  # worker_id -> dp_rank -> feed
        self._of_source: dict[str, RankFeed] = {}
        self._restored: dict[WorkerRank, Cursor] = {}
        self._restored_until = 0.0

    @property
    def counts(self) -> EventCounts:
        return self._desk.counts

    @property
    def applied(self) -> dict[tuple[str, str], Applied]:
        """By namespace and component."""
        return self._desk.applied

    @property
    def num_sources(self) -> int:
        return len(self._of_source)

    def __iter__(self) -> Iterator[RankFeed]:
        return (feed for feeds in self._feeds.values() for feed in feeds.values())

    # ---- who there is

    def source_up(self, key: str, source: EventSource, now: float) -> None:
        """Discovery has this source. The last to come for a rank speaks for it."""
        known = self._of_source.get(key)
        if known is not None and known.sources[key] == source:
            return
        self.source_down(key, now)
        feed = self._feed_of(source.metadata.worker)
        feed.sources[key] = source
        self._of_source[key] = feed
        self._follow(feed, now)

    def source_down(self, key: str, now: float) -> None:
        feed = self._of_source.pop(key, None)
        if feed is None:
            return
        has_spoken = feed.source is feed.sources.pop(key)
        if not feed.sources:
            self._drop(feed)
        elif has_spoken:
            self._follow(feed, now)

    def worker_up(self, worker_id: int, now: float) -> None:
        """The table has slots for the worker's ranks."""
        for feed in self._feeds.get(worker_id, {}).values():
            if feed.is_dormant:
                self._begin(feed, now)

    def worker_down(self, worker_id: int) -> None:
        """Its slots are no longer its own, and what they held is gone from the index."""
        for feed in list(self._feeds.get(worker_id, {}).values()):
            self._restored.pop(feed.rank, None)
            feed.end()
            if not feed.sources:
                self._remove(feed)

    # ---- events

    def events(self, publisher_id: int, events: Iterable[RouterEvent], now: float) -> None:
        """What a publisher has said, in its order."""
        for event in events:
            feed = self._feeds.get(event.worker_id, {}).get(event.event.dp_rank)
            if feed is None:
                feed = self._unannounced(event, publisher_id, now)
            if feed is None or feed.is_dormant:
                self.counts.unplaced += 1
            elif feed.publisher_id == publisher_id or self._has_taken_over(feed, publisher_id, now):
                feed.take(event, now)
            else:
                self.counts.foreign += 1

    def _unannounced(self, event: RouterEvent, publisher_id: int, now: float) -> RankFeed | None:
        """A rank whose source is not announced, or not yet: its events are better than nothing."""
        if self._slot_of(event.worker_id, event.event.dp_rank) is None:
            return None
        feed = self._feed_of(WorkerRank(event.worker_id, event.event.dp_rank))
        feed.publisher_id = publisher_id
        self._begin(feed, now)
        return feed

    def _has_taken_over(self, feed: RankFeed, publisher_id: int, now: float) -> bool:
        """Where no source speaks for the rank, whoever published last does."""
        if feed.sources:
            return False
        self._change_publisher(feed, publisher_id)
        self._begin(feed, now)
        return True

    # ---- queries

    def take_queries(self) -> list[Query]:
        """To be sent now. Each is ended by `answer` or by `fail`."""
        return self._desk.take_queries()

    def answer(self, query: Query, answer: History | TooNew, now: float) -> None:
        if (feed := self._desk.take_answered(query)) is not None:
            feed.answer(query, answer, now)

    def fail(self, query: Query, reason: str, now: float) -> None:
        """Nobody answered, or with an error."""
        if (feed := self._desk.take_answered(query)) is not None:
            feed.fail(query, reason, now)

    def work(self, max_blocks: int, now: float) -> bool:
        """Apply about so many blocks of the answers that have come; whether there are more."""
        return self._desk.work(max_blocks, now)

    def tick(self, now: float) -> None:
        """Retries and checks whose time has come. `take_queries` afterwards."""
        self._desk.tick(now)
        if self._restored and now >= self._restored_until:
            self._expire_restored()

    def check_all(self, now: float) -> None:
        """Anybody's events may have been lost on the way to us."""
        for feed in self:
            feed.check(now)

    # ---- restarts of ours

    def cursor_of(self, worker_id: int, dp_rank: int) -> Cursor | None:
        """What `restore` takes; None of a rank whose picture is not complete."""
        feed = self._feeds.get(worker_id, {}).get(dp_rank)
        return None if feed is None else _cursor_of(feed)

    def restore(self, cursors: Iterable[Cursor], now: float) -> None:
        """The index holds these ranks, up to these events, when they get their slots. Who does not speak for himself
        soon is taken out of it."""
        self._restored = {WorkerRank(cursor.worker_id, cursor.dp_rank): cursor for cursor in cursors}
        self._restored_until = now + RESTORED_FOR_S

    def _expire_restored(self) -> None:
        restored, self._restored = self._restored, {}
        for rank in restored:
            if (slot := self._slot_of(rank.worker_id, rank.dp_rank)) is not None:
                self._index.clear(slot)

    def end_replay(self) -> None:
        """The broker has delivered what it kept: who is still unknown is asked."""
        self._is_replaying = False
        for feed in self:
            feed.end_replay()

    # ---- feeds

    def _feed_of(self, rank: WorkerRank) -> RankFeed:
        feeds = self._feeds.setdefault(rank.worker_id, {})
        if (feed := feeds.get(rank.dp_rank)) is None:
            feed = feeds[rank.dp_rank] = RankFeed(rank, self._desk)
        return feed

    def _follow(self, feed: RankFeed, now: float) -> None:
        """Another source speaks for the rank, perhaps for a publisher that we hear already."""
        assert feed.source is not None
        if feed.publisher_id != feed.source.publisher_id:
            self._change_publisher(feed, feed.source.publisher_id)
        self._begin(feed, now)

    def _change_publisher(self, feed: RankFeed, publisher_id: int) -> None:
        """Another publisher is another engine, which begins with nothing."""
        if feed.publisher_id is not None:
            self.counts.restarts += 1
        if not feed.is_dormant:
            self._index.clear(feed.slot)
        feed.end()
        feed.publisher_id = publisher_id

    def _begin(self, feed: RankFeed, now: float) -> None:
        slot = self._slot_of(feed.rank.worker_id, feed.rank.dp_rank)
        if slot is None:
            return
        if (cursor := self._restored.pop(feed.rank, None)) is not None:
            self._resume(feed, cursor, slot)
        feed.begin(slot, now, is_replayed=self._is_replaying, is_continued=self._is_durable)

    def _resume(self, feed: RankFeed, cursor: Cursor, slot: int) -> None:
        if cursor.publisher_id == feed.publisher_id:
            feed.cursor = cursor.event_id
            feed.has_base = True
        else:
            self._index.clear(slot)

    def _drop(self, feed: RankFeed) -> None:
        """Nobody speaks for the rank any more."""
        if not feed.is_dormant:
            self._index.clear(feed.slot)
        feed.end()
        self._remove(feed)

    def _remove(self, feed: RankFeed) -> None:
        feeds = self._feeds[feed.rank.worker_id]
        del feeds[feed.rank.dp_rank]
        if not feeds:
            del self._feeds[feed.rank.worker_id]


def _cursor_of(feed: RankFeed) -> Cursor | None:
    if not feed.is_complete or feed.publisher_id is None or feed.cursor is None:
        return None
    return Cursor(feed.rank.worker_id, feed.rank.dp_rank, feed.publisher_id, feed.cursor)
