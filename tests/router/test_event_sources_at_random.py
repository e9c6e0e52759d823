"""Whatever is lost, late or taken over on the way: once nothing more happens, the index says what the worker holds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.router.event_sources import EventSources
from dynamo.router.recovery_desk import Query, RecoveryRules
from dynamo.shared.kv_events import RouterEvent
from tests.router.event_worker import EventWorker, HeldByName

SLOT = 3
RULES = RecoveryRules(max_buffered_per_rank=4, max_attempts=3)


class Story:
    def __init__(self) -> None:
        self.index = HeldByName()
        self.has_slot = True
        self.sources = EventSources(self.index, lambda _worker_id, _rank: SLOT if self.has_slot else None, RULES)
        self.now = 0.0
        self.worker = EventWorker(max_remembered=6)
        self.asked: list[Query] = []
        self.meet()

    def meet(self) -> None:
        self.sources.source_up(self.worker.key, self.worker.source, self.now)

    def hear(self, event: RouterEvent) -> None:
        self.sources.events(self.worker.publisher_id, [event], self.now)

    def tell(self, step: str, name: int) -> None:
        match step:
            case "store":
                self.hear(self.worker.store(name))
            case "remove":
                self.hear(self.worker.remove(name))
            case "clear":
                self.hear(self.worker.clear())
            case "lose":
                self.worker.store(name)
            case "ask":
                self.asked += self.sources.take_queries()
            case "answer" if self.asked:
                query = self.asked.pop(0)
                self.sources.answer(query, self.worker.answer(query), self.now)
            case "fail" if self.asked:
                self.sources.fail(self.asked.pop(0), "no answer", self.now)
            case "work":
                self.sources.work(2, self.now)
            case "wait":
                self.now += name
                self.sources.tick(self.now)
            case "leave":
                self.sources.source_down(self.worker.key, self.now)
            case "meet":
                self.meet()
            case "take_over":
                former, self.worker = self.worker, EventWorker(publisher_id=self.worker.publisher_id + 1)
                self.meet()
                self.sources.source_down(former.key, self.now)
            case "lose_slot" if self.has_slot:
                self.has_slot = False
                self.index.clear(SLOT)
                self.sources.worker_down(1)
            case "get_slot" if not self.has_slot:
                self.has_slot = True
                self.sources.worker_up(1, self.now)

    def settle(self) -> None:
        """Everything is answered, and enough time passes for every check."""
        self.tell("get_slot", 0)
        self.meet()
        for _ in range(200):
            self.tell("wait", 10)
            self.tell("ask", 0)
            self.tell("answer", 0)
            self.sources.work(1000, self.now)


TELLING = ["store", "store", "store", "remove", "clear", "lose", "lose"]
ASKING = ["ask", "ask", "answer", "answer", "fail", "work", "work", "wait"]
MOVING = ["leave", "meet", "take_over", "lose_slot", "get_slot"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TELLING + ASKING + MOVING), st.integers(1, 5)), max_size=60))
def test_the_index_ends_up_with_what_the_worker_holds(steps: list[tuple[str, int]]) -> None:
    story = Story()
    for step, name in steps:
        story.tell(step, name)
    story.settle()
    assert story.index[SLOT] == story.worker.held
    assert story.sources.counts.buffered == 0
