"""The queue against a list that is searched anew each time."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dynamo.router.class_queue import SPARE_GARBAGE, score
from dynamo.router.queue import Depth, PlacementQueue, PolicyClass, Waiting
from dynamo.shared.messages import Place, RoutingHints

POLICIES = st.sampled_from(["fcfs", "wspt", "lcfs"])
CLASSES = ["a", "b", "c"]
SETS = ["one", "other"]


def hinted(request_id: int, num_tokens: int, jump: float, strict: int) -> Place:
    return Place(request_id, "m", num_tokens, hints=RoutingHints(priority_jump=jump, strict_priority=strict))


waitings = st.builds(
    Waiting,
    key=st.tuples(st.sampled_from([b"p", b"q"]), st.integers(0, 40)),
    place=st.builds(
        hinted, st.just(0), st.integers(0, 9000), st.floats(0, 1e6) | st.just(float("inf")), st.integers(-2, 2)
    ),
    worker_set_key=st.sampled_from(SETS),
    policy_class=st.sampled_from(CLASSES),
    arrived_at=st.floats(0, 1e6),
    cached_tokens=st.integers(0, 9000),
    pinned_to=st.none() | st.tuples(st.integers(1, 2), st.just(0)),
)


@given(st.lists(waitings, max_size=40), POLICIES)
@settings(deadline=None)
def test_one_lane_is_served_in_one_total_order(pushed: list[Waiting], policy: str) -> None:
    queue = PlacementQueue([PolicyClass(queue_policy=policy)])
    expected = []
    for arrival, each in enumerate(pushed):
        each.key, each.policy_class, each.worker_set_key, each.pinned_to = (b"p", arrival), "default", "s", None
        hints = each.place.hints or RoutingHints()
        expected.append((-hints.strict_priority, -score(policy, each), arrival))
        queue.push(each, 0)
    served = [each.key[1] for each in queue.startable(lambda _each: True)]
    assert served == [arrival for *_, arrival in sorted(expected)]


@given(st.lists(st.integers(1, 2000), min_size=2, max_size=5), st.integers(1, 3000), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_classes_that_all_want_more_get_tokens_in_proportion_to_their_quanta(
    quanta: list[int], longest: int, rng: random.Random
) -> None:
    """Counted in rounds, one class is never ahead of another by more than a prompt and a few rounds."""
    classes = [PolicyClass(name=str(index), quantum=quantum) for index, quantum in enumerate(quanta)]
    queue, served = PlacementQueue(classes), Counter[str]()
    request_ids = count()

    def push(name: str) -> None:
        key = (b"p", next(request_ids))
        place = Place(key[1], "m", rng.randint(1, longest))
        queue.push(Waiting(key=key, place=place, worker_set_key="s", policy_class=name, arrived_at=0), 0)

    for each in classes:
        push(each.name)
        push(each.name)
    for _ in range(300):
        taken = next(queue.startable(lambda _each: True), None)
        assert taken is not None
        served[taken.policy_class] += taken.cost
        push(taken.policy_class)
    num_rounds = [served[each.name] / each.quantum for each in classes]
    assert max(num_rounds) - min(num_rounds) <= 3 + longest / min(quanta)


class QueueMachine(RuleBasedStateMachine):
    """No entry is lost, served twice, or served while its lane is blocked."""

    @initialize(policy=POLICIES, limit=st.none() | st.integers(1, 3))
    def start(self, policy: str, limit: int | None) -> None:
        classes = [
            PolicyClass(name=name, quantum=quantum, queue_policy=policy, max_running_requests=limit)
            for name, quantum in zip(CLASSES, (1, 500, 7000), strict=True)
        ]
        self.limit = limit
        self.queue = PlacementQueue(classes, refresh_after_s=5)
        self.waiting: dict[tuple[bytes, int], Waiting] = {}
        self.running: Counter[str] = Counter()
        self.now = 0.0

    @rule(each=waitings)
    def push(self, each: Waiting) -> None:
        each = Waiting(**{name: getattr(each, name) for name in each.__struct_fields__})
        each.arrived_at = self.now
        self.queue.push(each, self.now)
        self.waiting[each.key] = each

    @rule(peer=st.sampled_from([b"p", b"q"]), request_id=st.integers(0, 40))
    def cancel(self, peer: bytes, request_id: int) -> None:
        assert self.queue.remove((peer, request_id)) == (self.waiting.pop((peer, request_id), None) is not None)

    @rule(peer=st.sampled_from([b"p", b"q"]))
    def lose_peer(self, peer: bytes) -> None:
        gone = [key for key in self.waiting if key[0] == peer]
        assert self.queue.remove_peer(peer) == len(gone)
        for key in gone:
            del self.waiting[key]

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        overdue = {key for key, each in self.waiting.items() if each.arrived_at + 600 <= self.now}
        assert {each.key for each in self.queue.expire(self.now)} == overdue
        for key in overdue:
            del self.waiting[key]

    @rule(cached_tokens=st.integers(0, 9000))
    def refresh(self, cached_tokens: int) -> None:
        self.queue.refresh(self.now, lambda _each: cached_tokens)

    @rule(count=st.integers(1, 10), blocked=st.sets(st.sampled_from(SETS), max_size=1))
    def serve(self, count: int, blocked: set[str]) -> None:
        for _, each in zip(range(count), self.queue.startable(lambda w: w.worker_set_key not in blocked), strict=False):
            assert self.waiting.pop(each.key) is each
            assert each.worker_set_key not in blocked
            self.running[each.policy_class] += 1
            self.queue.started(each.policy_class)

    @rule(blocked=st.sets(st.sampled_from(SETS), max_size=1))
    def serve_all(self, blocked: set[str]) -> None:
        self.serve(1000, blocked)
        if self.limit is None:
            assert all(each.worker_set_key in blocked for each in self.waiting.values())

    @rule(name=st.sampled_from(CLASSES))
    def finish(self, name: str) -> None:
        if self.running[name]:
            self.running[name] -= 1
            self.queue.finished(name)

    @invariant()
    def holds_who_waits(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting)
        assert all(key in self.queue for key in self.waiting)
        for name, depth in self.queue.depths().items():
            mine = [each for each in self.waiting.values() if each.policy_class == name]
            assert depth.requests == len(mine)
            assert depth.raw_isl_tokens == sum(each.place.num_tokens for each in mine)
            assert depth.cached_tokens == sum(each.num_cached_tokens for each in mine)
            of_sets = [each for key, each in self.queue.depths_of_sets().items() if key[0] == name]
            assert depth == Depth(*map(sum, zip(*of_sets, strict=True)))
            assert self.limit is None or self.running[name] <= self.limit


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_removed_entries_take_bounded_room() -> None:
    queue = PlacementQueue()
    for request_id in range(5000):
        place = Place(request_id, "m", 10)
        queue.push(
            Waiting(key=(b"p", request_id), place=place, worker_set_key="s", policy_class="default", arrived_at=0), 0
        )
        if request_id >= 3:
            queue.remove((b"p", request_id))
    (lane,) = queue._queues["default"].lanes.values()
    assert len(lane._heap) <= 2 * 3 + SPARE_GARBAGE + 1
    assert len(queue._to_refresh) <= 2 * 4 + SPARE_GARBAGE + 1
