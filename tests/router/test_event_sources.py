from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from dynamo.router.event_sources import RESTORED_FOR_S, EventSources
from dynamo.router.recovery_desk import History, Query, RecoveryRules
from dynamo.shared.kv_events import RouterEvent
from tests.router.event_worker import EventWorker, HeldByName

RULES = RecoveryRules(max_buffered_per_rank=8)
SLOT = 5


class Router:
    """The part of a router that events reach, and a clock."""

    def __init__(self, rules: RecoveryRules = RULES, *, is_durable: bool = False) -> None:
        self.index = HeldByName()
        self.slots = {(1, 0): SLOT}
        self.sources = EventSources(
            self.index, lambda worker_id, dp_rank: self.slots.get((worker_id, dp_rank)), rules, is_durable=is_durable
        )
        self.now = 0.0

    @property
    def held(self) -> set[int]:
        return self.index[SLOT]

    def meets(self, worker: EventWorker) -> None:
        self.sources.source_up(worker.key, worker.source, self.now)

    def hears(self, worker: EventWorker, *events: RouterEvent) -> None:
        self.sources.events(worker.publisher_id, events, self.now)

    def asks(self) -> Query:
        (query,) = self.sources.take_queries()
        return query

    def gets(self, query: Query, worker: EventWorker) -> None:
        self.sources.answer(query, worker.answer(query), self.now)
        self.works()

    def works(self) -> None:
        while self.sources.work(2, self.now):
            pass

    def learns_all(self, worker: EventWorker) -> None:
        """Meets the worker and is answered."""
        self.meets(worker)
        self.gets(self.asks(), worker)

    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.sources.tick(self.now)


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def worker() -> EventWorker:
    return EventWorker()


def test_a_new_source_is_asked_for_everything_and_what_it_says_meanwhile_waits(
    router: Router, worker: EventWorker
) -> None:
    worker.store(1, 2)
    router.meets(worker)
    query = router.asks()
    assert query.start_event_id is None
    answer = worker.answer(query)
    router.hears(worker, worker.store(3), worker.remove(1))
    assert router.held == set()
    router.sources.answer(query, answer, router.now)
    router.works()
    assert router.held == {2, 3}
    assert router.sources.take_queries() == []


def test_events_that_a_dump_has_already_are_not_applied_again(router: Router, worker: EventWorker) -> None:
    router.meets(worker)
    query = router.asks()
    router.hears(worker, worker.store(1), worker.remove(1))
    worker.store(1)
    router.gets(query, worker)
    assert router.held == {1}
    assert router.sources.counts.stale == 2


def test_what_is_heard_while_a_long_dump_is_applied_comes_after_it(router: Router, worker: EventWorker) -> None:
    worker.store(*range(10))
    router.meets(worker)
    query = router.asks()
    router.sources.answer(query, worker.answer(query), router.now)
    assert router.sources.work(4, router.now)
    router.hears(worker, worker.remove(9), worker.store(10))
    assert router.held == {0, 1, 2, 3}
    router.works()
    assert router.held == worker.held


def test_a_gap_is_asked_for_from_its_beginning(router: Router, worker: EventWorker) -> None:
    router.learns_all(worker)
    router.hears(worker, worker.store(1))
    worker.remove(1)
    router.hears(worker, worker.store(3))
    assert router.held == {1}
    query = router.asks()
    assert query.start_event_id == 2
    router.gets(query, worker)
    assert router.held == {3}
    assert (router.sources.counts.gaps, router.sources.counts.replays) == (1, 1)


def test_a_gap_longer_than_the_worker_remembers_brings_everything_anew(router: Router, worker: EventWorker) -> None:
    router.learns_all(worker)
    router.hears(worker, worker.store(1))
    worker.remove(1)
    for name in range(10, 30):
        worker.store(name)
    router.hears(worker, worker.store(30))
    router.gets(router.asks(), worker)
    assert router.held == worker.held
    assert router.sources.counts.dumps == 2


def test_cleared_ends_the_waiting_for_what_came_before(router: Router, worker: EventWorker) -> None:
    worker.store(1)
    router.learns_all(worker)
    worker.store(2)
    router.hears(worker, worker.store(3))
    query = router.asks()
    router.hears(worker, worker.clear(), worker.store(4))
    assert router.held == {4}
    router.gets(query, EventWorker())
    assert router.held == {4}


def test_cleared_across_a_gap_needs_no_question(router: Router, worker: EventWorker) -> None:
    router.learns_all(worker)
    router.hears(worker, worker.store(1))
    worker.store(2)
    router.hears(worker, worker.clear(), worker.store(3))
    assert router.held == {3}
    assert router.sources.take_queries() == []


def test_what_there_was_no_room_to_hold_is_asked_for(router: Router, worker: EventWorker) -> None:
    router.meets(worker)
    query = router.asks()
    answer = worker.answer(query)
    for name in range(12):
        router.hears(worker, worker.store(name))
    assert router.sources.counts.dropped == 4
    assert router.sources.counts.buffered == 8
    router.sources.answer(query, answer, router.now)
    router.works()
    query = router.asks()
    assert query.start_event_id == 9
    router.gets(query, worker)
    assert router.held == worker.held
    assert router.sources.counts.buffered == 0


def test_a_failed_query_is_repeated_with_growing_pauses_and_given_up(router: Router, worker: EventWorker) -> None:
    worker.store(1)
    router.meets(worker)
    for pause_s in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0):
        router.sources.fail(router.asks(), "no answer", router.now)
        router.waits(pause_s * 0.9)
        assert router.sources.take_queries() == []
        router.waits(pause_s * 0.2)
    router.sources.fail(router.asks(), "no answer", router.now)
    assert router.sources.counts.given_up == 1
    router.hears(worker, worker.store(2))
    assert router.held == {2}, "without an answer, its events are better than nothing"
    router.waits(RULES.resume_s)
    router.gets(router.asks(), worker)
    assert router.held == {1, 2}


def test_an_answer_that_cannot_be_read_to_its_end_is_none(router: Router, worker: EventWorker) -> None:
    def broken() -> Iterator[RouterEvent]:
        yield from worker.dump().events
        raise msgspec.DecodeError("truncated")

    worker.store(1)
    router.meets(worker)
    router.sources.answer(router.asks(), History(broken(), 1, is_whole=True), router.now)
    router.works()
    router.waits(0.2)
    query = router.asks()
    assert query.start_event_id is None
    worker.remove(1)
    router.gets(query, worker)
    assert router.held == set()


def test_a_worker_behind_its_own_events_is_asked_again(router: Router, worker: EventWorker) -> None:
    router.learns_all(worker)
    lagging = EventWorker()
    lagging.store(1)
    router.hears(worker, worker.store(1))
    worker.store(2)
    router.hears(worker, worker.store(3))
    router.gets(router.asks(), lagging)
    assert router.sources.take_queries() == []
    router.waits(0.2)
    router.gets(router.asks(), worker)
    assert router.held == {1, 2, 3}


def test_no_more_queries_than_allowed_are_asked_at_once() -> None:
    router = Router(RecoveryRules(max_queries=2))
    workers = [EventWorker(worker_id, 100 + worker_id) for worker_id in range(3)]
    router.slots = {(worker_id, 0): worker_id for worker_id in range(3)}
    for worker in workers:
        worker.store(7)
        router.meets(worker)
    first, second = router.sources.take_queries()
    assert router.sources.take_queries() == []
    router.gets(first, workers[0])
    router.sources.fail(second, "no answer", router.now)
    (third,) = router.sources.take_queries()
    router.gets(third, workers[2])
    assert (router.index[0], router.index[1], router.index[2]) == ({7}, set(), {7})


def test_a_rank_without_slot_is_not_followed_until_it_has_one(router: Router, worker: EventWorker) -> None:
    router.slots = {}
    router.meets(worker)
    router.hears(worker, worker.store(1))
    assert router.sources.take_queries() == []
    assert router.sources.counts.unplaced == 1
    router.slots = {(1, 0): SLOT}
    router.sources.worker_up(1, router.now)
    router.gets(router.asks(), worker)
    assert router.held == {1}


def test_a_worker_that_comes_back_to_another_slot_is_asked_anew(router: Router, worker: EventWorker) -> None:
    worker.store(1)
    router.learns_all(worker)
    router.slots = {}
    router.index.clear(SLOT)
    router.sources.worker_down(1)
    router.hears(worker, worker.store(2))
    router.slots = {(1, 0): 6}
    router.sources.worker_up(1, router.now)
    router.gets(router.asks(), worker)
    assert router.held == set()
    assert router.index[6] == {1, 2}


def test_a_rank_whose_source_is_gone_holds_nothing(router: Router, worker: EventWorker) -> None:
    worker.store(1)
    router.learns_all(worker)
    router.sources.source_down(worker.key, router.now)
    assert router.held == set()
    assert list(router.sources) == []


@pytest.mark.parametrize("is_old_one_gone_first", [True, False])
def test_a_publisher_that_takes_over_counts_from_the_start(
    router: Router, worker: EventWorker, is_old_one_gone_first: bool
) -> None:
    for name in range(5):
        worker.store(name)
    router.learns_all(worker)
    successor = EventWorker(publisher_id=101)
    if is_old_one_gone_first:
        router.sources.source_down(worker.key, router.now)
        router.meets(successor)
    else:
        router.meets(successor)
        router.sources.source_down(worker.key, router.now)
    router.hears(worker, worker.store(6))
    assert router.sources.counts.foreign == 1
    router.gets(router.asks(), successor)
    router.hears(successor, successor.store(7))
    assert router.held == {7}


def test_a_worker_that_answers_no_queries_is_followed_gaps_and_all(router: Router) -> None:
    worker = EventWorker(answers=False)
    router.meets(worker)
    router.hears(worker, worker.store(1))
    worker.store(2)
    router.hears(worker, worker.store(3))
    assert router.sources.take_queries() == []
    assert router.held == {1, 3}
    assert router.sources.counts.gaps == 1


def test_events_before_their_source_is_known_count_and_the_answer_completes_them(
    router: Router, worker: EventWorker
) -> None:
    worker.store(1)
    router.hears(worker, worker.store(2))
    assert router.held == {2}
    router.learns_all(worker)
    router.hears(worker, worker.store(3))
    assert router.held == {1, 2, 3}


def test_an_unannounced_publisher_that_follows_another_begins_with_nothing(router: Router) -> None:
    first, second = EventWorker(publisher_id=1), EventWorker(publisher_id=2)
    router.hears(first, first.store(1))
    router.hears(second, second.store(2))
    assert router.held == {2}


def test_the_last_event_before_a_silence_is_missed_for_a_moment_only(router: Router, worker: EventWorker) -> None:
    router.learns_all(worker)
    router.hears(worker, worker.store(1))
    worker.store(2)
    router.waits(1.1)
    assert router.sources.take_queries() == [], "events came since"
    router.waits(60)
    query = router.asks()
    assert (query.start_event_id, query.is_check) == (2, True)
    router.gets(query, worker)
    assert router.held == {1, 2}


def test_a_check_that_finds_nothing_changes_nothing(router: Router, worker: EventWorker) -> None:
    worker.store(1)
    router.learns_all(worker)
    router.waits(1.1)
    query = router.asks()
    router.hears(worker, worker.store(2))
    assert router.held == {1, 2}, "nobody waits for a check"
    router.gets(query, worker)
    assert router.held == {1, 2}
    router.sources.check_all(router.now)
    router.waits(0)
    router.sources.fail(router.asks(), "no answer", router.now)
    assert (router.held, router.sources.counts.retries) == ({1, 2}, 0)


def test_a_worker_that_counts_anew_under_the_same_name_is_asked_for_everything(
    router: Router, worker: EventWorker
) -> None:
    for name in range(5):
        worker.store(name)
    router.learns_all(worker)
    anew = EventWorker()
    anew.store(9)
    router.waits(1.1)
    router.gets(router.asks(), anew)
    query = router.asks()
    assert query.start_event_id is None
    router.gets(query, anew)
    router.gets(router.asks(), anew)
    assert router.held == {9}


class TestRestored:
    """A router that comes back with the index it had."""

    def comes_back(self, before: Router, *, is_durable: bool = False) -> Router:
        router = Router(is_durable=is_durable)
        router.index.held = {slot: set(held) for slot, held in before.index.held.items()}
        found = [before.sources.cursor_of(feed.rank.worker_id, feed.rank.dp_rank) for feed in before.sources]
        router.sources.restore([cursor for cursor in found if cursor is not None], router.now)
        return router

    def test_asks_for_what_it_missed(self, router: Router, worker: EventWorker) -> None:
        worker.store(1)
        router.learns_all(worker)
        router = self.comes_back(router)
        worker.store(2)
        router.meets(worker)
        query = router.asks()
        assert query.start_event_id == 2
        router.gets(query, worker)
        assert (router.held, router.sources.counts.dumps) == ({1, 2}, 0)

    def test_learns_that_it_missed_nothing(self, router: Router, worker: EventWorker) -> None:
        worker.store(1)
        router.learns_all(worker)
        router = self.comes_back(router)
        router.learns_all(worker)
        router.hears(worker, worker.store(2))
        assert (router.held, router.sources.counts.dumps) == ({1, 2}, 0)

    def test_forgets_what_another_publisher_said(self, router: Router, worker: EventWorker) -> None:
        worker.store(1)
        router.learns_all(worker)
        router = self.comes_back(router)
        router.meets(EventWorker(publisher_id=101))
        assert router.held == set()

    def test_forgets_who_does_not_come_back(self, router: Router, worker: EventWorker) -> None:
        worker.store(1)
        router.learns_all(worker)
        router = self.comes_back(router)
        assert router.held == {1}
        router.waits(RESTORED_FOR_S)
        assert router.held == set()

    def test_continues_where_a_broker_does(self, router: Router, worker: EventWorker) -> None:
        worker.store(1)
        router.learns_all(worker)
        router = self.comes_back(router, is_durable=True)
        router.meets(worker)
        router.hears(worker, worker.store(2))
        assert router.sources.take_queries() == []
        assert router.held == {1, 2}


class TestDurable:
    """A broker delivers what it kept; nobody has to be asked for it."""

    @pytest.fixture
    def router(self) -> Router:
        return Router(is_durable=True)

    def test_a_history_from_the_first_event_on_is_enough(self, router: Router, worker: EventWorker) -> None:
        router.meets(worker)
        router.hears(worker, worker.store(1, 2), worker.remove(1))
        router.sources.end_replay()
        assert router.sources.take_queries() == []
        assert router.held == {2}

    def test_one_that_begins_later_is_not(self, router: Router, worker: EventWorker) -> None:
        worker.store(1)
        router.meets(worker)
        router.hears(worker, worker.store(2))
        router.gets(router.asks(), worker)
        assert router.held == {1, 2}

    def test_unless_it_begins_with_cleared(self, router: Router, worker: EventWorker) -> None:
        worker.store(1)
        router.meets(worker)
        router.hears(worker, worker.clear(), worker.store(2))
        assert router.sources.take_queries() == []
        assert router.held == {2}

    def test_who_is_not_in_it_is_asked_at_its_end(self, router: Router, worker: EventWorker) -> None:
        worker.store(1)
        router.meets(worker)
        assert router.sources.take_queries() == []
        router.sources.end_replay()
        router.gets(router.asks(), worker)
        assert router.held == {1}
