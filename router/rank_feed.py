"""The events of one rank on their way into the index.

    DORMANT ──slot──> BEHIND ──answer──> CATCHING_UP ──all applied──> LIVE
                         ^                                              │
                         └────────────────────gap───────────────────────┘

Events are applied in unbroken order while LIVE and wait otherwise. "Cleared" ends any waiting: what came before it does
not matter any more, not even what is missing of it.
"""

from __future__ import annotations

import logging
from collections import deque
from enum import Enum, auto

import msgspec
from msgspec import UNSET

from dynamo.router.event_counts import Applied
from dynamo.router.recovery_desk import History, Query, RecoveryDesk
from dynamo.shared.kv_events import CLEARED, EventSource, RecoveryTarget, RouterEvent, TooNew, WorkerRank

log = logging.getLogger("dynamo.router")


class Phase(Enum):
    DORMANT = auto()  # the table has no such worker (yet)
    REPLAYED = auto()  # a broker delivers what it kept, and that may begin with the first event
    BEHIND = auto()  # something is missing, and asked for
    CATCHING_UP = auto()  # the answer is being applied
    LIVE = auto()  # events are applied as they come


class RankFeed:
    """`cursor` is the id of the last event applied, in the numbering of the publisher. `has_base` says that everything
    before it has been applied too, so that events from there on complete the picture; otherwise a whole history must.
    """

    def __init__(self, rank: WorkerRank, desk: RecoveryDesk) -> None:
        self.rank = rank
        self.slot = -1
        self.sources: dict[str, EventSource] = {}  # by key; the last to come speaks for the rank
        self.publisher_id: int | None = None
        self.cursor: int | None = None
        self.has_base = False
        self.query: Query | None = None  # asked, and the answer is still wanted
        self.due_at: float | None = None  # of a retry or a check
        self._phase = Phase.DORMANT
        self._desk = desk
        self._counts = desk.counts
        self._applied = Applied()
        self._wants_query = False
        self._held: deque[RouterEvent] = deque()
        self._has_lost = False  # events that there was no room to hold
        self._history: History | None = None
        self._num_attempts = 0  # since it was last LIVE
        self._checked_cursor: int | None = None  # when the next check was planned

    @property
    def is_dormant(self) -> bool:
        return self._phase is Phase.DORMANT

    @property
    def is_catching_up(self) -> bool:
        return self._phase is Phase.CATCHING_UP

    @property
    def is_complete(self) -> bool:
        """Whether the index has all that this rank said up to `cursor`."""
        return self.has_base and not self.is_dormant and not self.is_catching_up

    @property
    def source(self) -> EventSource | None:
        return next(reversed(self.sources.values()), None)

    @property
    def target(self) -> RecoveryTarget | None:
        source = self.source
        return source.metadata.recovery_target if source is not None else None

    # ---- life

    def begin(self, slot: int, now: float, *, is_replayed: bool = False, is_continued: bool = False) -> None:
        """The rank has a slot. `is_replayed`: a broker delivers what it kept. `is_continued`: after what is known."""
        self.slot = slot
        self._applied = self._desk.applied_of(self.source)
        if self.target is None or (is_continued and self.has_base):
            self._go_live(now)
        elif is_replayed:
            self._phase = Phase.REPLAYED
        else:
            self._ask()

    def end(self) -> None:
        """As if nothing had ever been heard from the rank."""
        self._stop_waiting()
        self._phase = Phase.DORMANT
        self.slot = -1
        self.cursor = None
        self.has_base = False

    def end_replay(self) -> None:
        """The broker has delivered what it kept, and nothing of it was the rank's first event."""
        if self._phase is Phase.REPLAYED:
            self._ask()

    # ---- events

    def take(self, event: RouterEvent, now: float) -> None:
        if self._phase is Phase.LIVE:
            self._apply_next(event, now)
        elif self._phase is Phase.REPLAYED:
            self._begin_history(event, now)
        else:
            self._hold(event, now)

    def _apply_next(self, event: RouterEvent, now: float) -> None:
        event_id, cursor = event.event.event_id, self.cursor
        if cursor is None or event_id == cursor + 1:
            self._apply(event)
        elif event_id <= cursor:
            self._counts.stale += 1
        elif event.event.data == CLEARED:
            self._clear(event, now)
        else:
            self._counts.gaps += 1
            self._meet_gap(event, now)

    def _meet_gap(self, event: RouterEvent, now: float) -> None:
        if self.target is None:
            self._apply(event)
            self.has_base = False
        else:
            self._ask()
            self._hold(event, now)

    def _begin_history(self, event: RouterEvent, now: float) -> None:
        if event.event.event_id == 1 or event.event.data == CLEARED:
            self._go_live(now)
            self._apply_next(event, now)
        else:
            self._ask()
            self._hold(event, now)

    def _hold(self, event: RouterEvent, now: float) -> None:
        rules, counts = self._desk.rules, self._counts
        if event.event.event_id <= self._known_up_to:
            counts.stale += 1
        elif event.event.data == CLEARED:
            self._clear(event, now)
        elif len(self._held) >= rules.max_buffered_per_rank or counts.buffered >= rules.max_buffered:
            self._has_lost = True
            counts.dropped += 1
        else:
            self._held.append(event)
            counts.buffered += 1

    @property
    def _known_up_to(self) -> int:
        if self._history is not None:
            return self._history.last_event_id
        return -1 if self.cursor is None else self.cursor

    def _clear(self, event: RouterEvent, now: float) -> None:
        self._stop_waiting()
        self._apply(event)
        self._go_live(now)

    def _apply(self, event: RouterEvent) -> None:
        self._put(event)
        self.cursor = event.event.event_id
        self.has_base |= self.cursor == 1 or event.event.data == CLEARED

    def _put(self, event: RouterEvent) -> None:
        data = event.event.data
        if data == CLEARED:
            self._applied.cleared += 1
            self._desk.index.clear(self.slot)
            return
        if data.stored is not UNSET:
            self._applied.stored += 1
        else:
            self._applied.removed += 1
        if not self._desk.index.apply(self.slot, event):
            self._applied.refused += 1

    def _go_live(self, now: float) -> None:
        """Events are applied again, first those that have waited."""
        self._phase = Phase.LIVE
        self._plan_check(now, self._desk.rules.first_check_s)
        has_lost, self._has_lost = self._has_lost, False
        held, self._held = self._held, deque()
        self._counts.buffered -= len(held)
        for event in held:
            self.take(event, now)
        if has_lost and self._phase is Phase.LIVE and self.target is not None:
            self._ask()
        if self._phase is Phase.LIVE:
            self._num_attempts = 0

    def _stop_waiting(self) -> None:
        """Whatever is still answered is not wanted any more."""
        self._counts.buffered -= len(self._held)
        self._held.clear()
        self._has_lost = False
        self._history = None
        self._num_attempts = 0
        self._want_nothing()

    def _want_nothing(self) -> None:
        self._wants_query = False
        self.query = None
        self.due_at = None

    # ---- queries

    def _ask(self) -> None:
        """Something is missing. Who asks in vain again and again has to wait in between."""
        self._phase = Phase.BEHIND
        self._want_nothing()
        self._wants_query = True
        self._desk.ask(self)

    def next_query(self, number: int) -> Query | None:
        """What to ask now; None when nothing is wanted any more."""
        if not self._wants_query or self.target is None:
            return None
        self._wants_query = False
        is_check = self._phase is Phase.LIVE
        if is_check:
            self._counts.checks += 1
        else:
            self._counts.recoveries += 1
        start = self.cursor + 1 if self.has_base and self.cursor is not None else None
        self.query = Query(number, self.rank, self.target, start, is_check)
        return self.query

    def answer(self, query: Query, answer: History | TooNew, now: float) -> None:
        """To the query that was asked last."""
        self.query = None
        start = query.start_event_id
        if isinstance(answer, History):
            answer.is_whole |= start is None
        newest = answer.newest_available if isinstance(answer, TooNew) else answer.last_event_id
        if newest is None or (start is None and isinstance(answer, TooNew)):
            self.fail(query, "it has nothing yet", now)
        elif start is not None and newest == start - 1:
            self._hear_nothing_new(query, now)
        elif isinstance(answer, TooNew) or (start is not None and newest < start and not answer.is_whole):
            self._start_over()
        else:
            self._catch_up(answer)

    def _hear_nothing_new(self, query: Query, now: float) -> None:
        """We know all that the worker says it knows; if more was heard of it, it is a moment behind itself."""
        if self._held or self._has_lost:
            self.fail(query, "it does not know its latest events", now)
        else:
            self._go_live(now)
            self._plan_check(now, self._desk.rules.check_interval_s)

    def _start_over(self) -> None:
        """The worker counts anew."""
        self._counts.restarts += 1
        self.has_base = False
        self._ask()

    def fail(self, query: Query, reason: str, now: float) -> None:
        """There is no answer to the query, or one that does not help."""
        self.query = None
        if query.is_check:
            self._plan_check(now, self._desk.rules.check_interval_s)
        else:
            self._try_again(reason, now)

    def _try_again(self, reason: str, now: float) -> None:
        rules = self._desk.rules
        self._phase = Phase.BEHIND
        self._num_attempts += 1
        if self._num_attempts >= rules.max_attempts:
            self._give_up(reason, now)
            return
        self._counts.retries += 1
        self._desk.plan(self, now + min(rules.first_backoff_s * 2 ** (self._num_attempts - 1), rules.max_backoff_s))

    def _give_up(self, reason: str, now: float) -> None:
        """Follow it without a base, and ask for everything after a while."""
        self._counts.given_up += 1
        resume_s = self._desk.rules.resume_s
        log.warning(
            "worker %x, rank %d, did not tell its KV blocks in %d attempts (%s); following its events as far as they "
            "come, and asking again in %g s",
            self.rank.worker_id,
            self.rank.dp_rank,
            self._num_attempts,
            reason,
            resume_s,
        )
        self.cursor = None
        self.has_base = False
        self._has_lost = False
        self._go_live(now)
        if self._phase is Phase.LIVE:
            self._desk.plan(self, now + resume_s)

    # ---- answers

    def _catch_up(self, history: History) -> None:
        self._phase = Phase.CATCHING_UP
        self._want_nothing()
        self._history = history
        if history.is_whole:
            self._counts.dumps += 1
            self._desk.index.clear(self.slot)
        else:
            self._counts.replays += 1
        self._desk.catch_up(self)

    def apply_history(self, max_blocks: int, now: float) -> int:
        """Apply about so many blocks of it; how many they were."""
        history, num_blocks = self._history, 0
        if history is None:
            return 0
        try:
            for event in history.events:
                self._apply_past(history, event)
                num_blocks += num_blocks_of(event)
                if num_blocks >= max_blocks:
                    return num_blocks
        except msgspec.MsgspecError as error:
            self._reject(history, error, now)
            return num_blocks
        self._end_history(history, now)
        return num_blocks

    def _apply_past(self, history: History, event: RouterEvent) -> None:
        if history.is_whole:
            self._put(event)
        elif self.cursor is not None and event.event.event_id <= self.cursor:
            self._counts.stale += 1
        else:
            self._apply(event)

    def _end_history(self, history: History, now: float) -> None:
        """A whole history may end before what we had: the rest is asked for, as what there was no room to hold."""
        self._history = None
        had = -1 if self.cursor is None else self.cursor
        self.cursor = history.last_event_id if history.is_whole else max(had, history.last_event_id)
        self.has_base = True
        self._has_lost |= had > self.cursor
        self._go_live(now)

    def _reject(self, history: History, error: Exception, now: float) -> None:
        """Half an answer is none."""
        self._history = None
        self.has_base &= not history.is_whole
        self._try_again(f"its answer cannot be read: {error}", now)

    # ---- time

    def come_due(self, now: float) -> None:
        """Time for what was planned."""
        if self._phase is Phase.BEHIND or not self.has_base:
            self._ask()
        elif self.cursor != self._checked_cursor:  # events in unbroken order are the best check there is
            self._plan_check(now, self._desk.rules.check_interval_s)
        elif self.query is None:
            self._wants_query = True
            self._desk.ask(self)

    def check(self, now: float) -> None:
        """Events may have been lost on the way to us."""
        if self._phase is Phase.LIVE:
            self._plan_check(now, 0)

    def _plan_check(self, now: float, delay_s: float) -> None:
        if self.target is not None:
            self._checked_cursor = self.cursor
            self._desk.plan(self, now + delay_s)


def num_blocks_of(event: RouterEvent) -> int:
    """What applying it costs, in blocks; at least 1."""
    data = event.event.data
    if data == CLEARED:
        return 1
    if data.stored is not UNSET:
        return max(1, len(data.stored.blocks))
    return max(1, len(data.removed.block_hashes)) if data.removed is not UNSET else 1
