"""Who waits, who goes first, and who is turned away."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dynamo.router.queue import Depth, PlacementQueue, PolicyClass, QueueFull, Waiting
from dynamo.shared.messages import Place, RoutingHints


def waiting(
    request_id: int,
    *,
    peer: bytes = b"a0",
    arrived_at: float = 0.0,
    num_tokens: int = 512,
    cached_tokens: int = 0,
    jump: float = 0.0,
    strict: int = 0,
    policy_class: str = "default",
    worker_set: str = "set",
    pinned_to: tuple[int, int | None] | None = None,
) -> Waiting:
    hints = RoutingHints(priority_jump=jump, strict_priority=strict) if jump or strict else None
    return Waiting(
        key=(peer, request_id),
        place=Place(request_id, "m", num_tokens, hints=hints),
        worker_set_key=worker_set,
        policy_class=policy_class,
        arrived_at=arrived_at,
        cached_tokens=cached_tokens,
        pinned_to=pinned_to,
    )


def always(_waiting: Waiting) -> bool:
    return True


def never(_waiting: Waiting) -> bool:
    return False


def only(*request_ids: int) -> Callable[[Waiting], bool]:
    return lambda waiting: waiting.key[1] in request_ids


def drain(queue: PlacementQueue, may_start: Callable[[Waiting], bool] = always) -> list[int]:
    return [each.key[1] for each in queue.startable(may_start)]


# --------------------------------------------------------------------------- order


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("fcfs", [1, 3, 2]),  # 3 came at 20 and jumps 15 s, so it is due at 5
        ("wspt", [3, 2, 1]),  # (1 + 15) / 4000, 1 / 500, 1 / 1000
        ("lcfs", [3, 2, 1]),
    ],
)
def test_the_policy_decides_who_goes_first(policy: str, expected: list[int]) -> None:
    queue = PlacementQueue([PolicyClass(queue_policy=policy)])
    queue.push(waiting(1, arrived_at=0, num_tokens=1000), 0)
    queue.push(waiting(2, arrived_at=10, num_tokens=1000, cached_tokens=500), 10)
    queue.push(waiting(3, arrived_at=20, num_tokens=4000, jump=15), 20)
    assert drain(queue) == expected


def test_strict_priority_goes_before_everything_else() -> None:
    queue = PlacementQueue()
    queue.push(waiting(1, jump=1000), 0)
    queue.push(waiting(2, arrived_at=9, strict=1), 9)
    queue.push(waiting(3, arrived_at=9, strict=-1), 9)
    assert drain(queue) == [2, 1, 3]


@pytest.mark.parametrize("policy", ["fcfs", "wspt", "lcfs"])
def test_equals_go_in_order_of_arrival(policy: str) -> None:
    queue = PlacementQueue([PolicyClass(queue_policy=policy)])
    for request_id in range(20):
        queue.push(waiting(request_id), 0)
    assert drain(queue) == list(range(20))


@pytest.mark.parametrize("jump", [float("nan"), -5.0])
def test_a_jump_that_is_no_advantage_is_no_disadvantage(jump: float) -> None:
    queue = PlacementQueue()
    queue.push(waiting(1, jump=jump), 0)
    queue.push(waiting(2), 0)
    assert drain(queue) == [1, 2]


def test_a_prompt_that_is_cached_whole_still_costs_something() -> None:
    assert waiting(1, num_tokens=64, cached_tokens=64).cost == 1
    assert waiting(1, num_tokens=64, cached_tokens=80).cost == 1


# --------------------------------------------------------------------------- lanes


def test_a_head_that_may_not_start_holds_up_those_behind_it() -> None:
    queue = PlacementQueue()
    queue.push(waiting(1), 0)
    queue.push(waiting(2), 0)
    assert drain(queue, only(2)) == []
    assert drain(queue) == [1, 2]


def test_a_head_that_may_not_start_holds_up_no_other_worker_set() -> None:
    queue = PlacementQueue()
    queue.push(waiting(1, worker_set="one"), 0)
    queue.push(waiting(2, worker_set="one"), 0)
    queue.push(waiting(3, worker_set="other"), 0)
    assert drain(queue, only(2, 3)) == [3]


def test_a_pin_on_a_busy_worker_holds_up_only_the_same_pin() -> None:
    queue = PlacementQueue()
    queue.push(waiting(1, pinned_to=(7, 0)), 0)
    queue.push(waiting(2, pinned_to=(7, 0)), 0)
    queue.push(waiting(3, pinned_to=(8, 0)), 0)
    queue.push(waiting(4), 0)
    assert drain(queue, lambda each: each.pinned_to != (7, 0)) == [3, 4]


def test_a_lane_found_blocked_is_asked_once_per_drain() -> None:
    queue = PlacementQueue()
    for request_id in range(10):
        queue.push(waiting(request_id, worker_set="busy"), 0)
        queue.push(waiting(100 + request_id, worker_set="free"), 0)
    asked: list[int] = []

    def is_free(each: Waiting) -> bool:
        asked.append(each.key[1])
        return each.worker_set_key == "free"

    assert len(drain(queue, is_free)) == 10
    assert [request_id for request_id in asked if request_id < 100] == [0]


def test_newcomers_wait_behind_those_for_the_same_workers_only() -> None:
    queue = PlacementQueue([PolicyClass(name="a"), PolicyClass(name="b")])
    queue.push(waiting(1, policy_class="a"), 0)
    assert not queue.admits("a", "set")
    assert queue.admits("a", "other set")
    assert queue.admits("a", "set", (7, 0))
    assert queue.admits("b", "set")


# --------------------------------------------------------------------------- classes


def two_classes(first: int, second: int) -> PlacementQueue:
    return PlacementQueue([PolicyClass(name="premium", quantum=first), PolicyClass(name="regular", quantum=second)])


@pytest.mark.parametrize(
    ("quanta", "expected"),
    [
        ((512, 128), [256, 64]),
        ((512, 512), [160, 160]),
        ((1, 1), [160, 160]),
        ((4, 1), [256, 64]),
        ((3, 2), [192, 128]),
    ],
)
def test_classes_share_by_their_quanta(quanta: tuple[int, int], expected: list[int]) -> None:
    queue = two_classes(*quanta)
    for request_id in range(320):
        queue.push(waiting(request_id, policy_class="premium"), 0)
        queue.push(waiting(1000 + request_id, policy_class="regular"), 0)
    first = [next(queue.startable(always)) for _ in range(320)]
    names = [each.policy_class for each in first]
    assert [names.count("premium"), names.count("regular")] == expected


def test_shares_are_of_tokens_not_of_requests() -> None:
    queue = two_classes(1000, 1000)
    for request_id in range(400):
        queue.push(waiting(request_id, policy_class="premium", num_tokens=3000), 0)
        queue.push(waiting(1000 + request_id, policy_class="regular", num_tokens=1000), 0)
    names = [each.policy_class for _, each in zip(range(200), queue.startable(always), strict=False)]
    assert [names.count("premium"), names.count("regular")] == [50, 150]


def test_a_round_is_spent_before_the_next_class_has_its_turn() -> None:
    queue = two_classes(10, 10)
    for request_id in range(6):
        queue.push(waiting(request_id, policy_class="premium", num_tokens=3), 0)
        queue.push(waiting(10 + request_id, policy_class="regular", num_tokens=3), 0)
    assert drain(queue) == [0, 1, 2, 10, 11, 12, 3, 4, 5, 13, 14, 15]


def test_a_long_prompt_is_paid_for_at_once() -> None:
    queue = two_classes(1, 1)
    queue.push(waiting(1, policy_class="premium", num_tokens=10**12), 0)
    queue.push(waiting(2, policy_class="regular", num_tokens=10**12 + 1), 0)
    assert drain(queue) == [1, 2]


def test_whoever_cannot_start_earns_nothing() -> None:
    queue = two_classes(100, 100)
    for request_id in range(50):
        queue.push(waiting(request_id, policy_class="premium", num_tokens=100, worker_set="busy"), 0)
        queue.push(waiting(100 + request_id, policy_class="regular", num_tokens=100, worker_set="free"), 0)
    for _ in range(20):
        assert next(queue.startable(lambda each: each.worker_set_key == "free"), None) is not None
    names = [each.policy_class for _, each in zip(range(10), queue.startable(always), strict=False)]
    assert [names.count("premium"), names.count("regular")] == [5, 5]


def test_a_class_runs_no_more_than_it_may() -> None:
    queue = PlacementQueue([PolicyClass(max_running_requests=2)])
    for request_id in range(4):
        queue.push(waiting(request_id), 0)
    for each in queue.startable(always):
        queue.started(each.policy_class)
    assert len(queue) == 2
    assert not queue.admits("default", "set")
    queue.finished("default")
    assert drain(queue) == [2, 3]


# --------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (PolicyClass(name="c", request_queue_limit_per_worker=2), "requests"),
        (PolicyClass(name="c", max_queued_requests=4), "requests"),
        (PolicyClass(name="c", raw_isl_token_queue_limit_per_worker=2000), "raw_isl_tokens"),
        (PolicyClass(name="c", max_queued_tokens=4000), "raw_isl_tokens"),
        (PolicyClass(name="c", cached_token_queue_limit_per_worker=400), "cached_tokens"),
    ],
)
def test_a_full_class_says_which_limit_it_has_reached(limits: PolicyClass, reason: str) -> None:
    queue = PlacementQueue([limits])
    for request_id in range(4):
        queue.push(waiting(request_id, policy_class="c", num_tokens=1000, cached_tokens=200), 0, num_workers=2)
    with pytest.raises(QueueFull, match=rf"policy class 'c' is full: \d+ {reason.replace('_', ' ')}") as refusal:
        queue.push(waiting(4, policy_class="c"), 0, num_workers=2)
    assert refusal.value.reason == reason
    assert queue.take_rejections() == {("c", reason): 1}
    assert queue.take_rejections() == {}
    queue.remove((b"a0", 0))
    queue.push(waiting(4, policy_class="c"), 0, num_workers=2)


def test_one_prompt_longer_than_the_limit_may_wait_alone() -> None:
    queue = PlacementQueue([PolicyClass(max_queued_tokens=10)])
    queue.push(waiting(1, num_tokens=1000), 0)
    with pytest.raises(QueueFull):
        queue.push(waiting(2, num_tokens=1), 0)


def test_a_limit_of_none_waiting_lets_nobody_wait() -> None:
    with pytest.raises(QueueFull):
        PlacementQueue([PolicyClass(request_queue_limit_per_worker=0)]).push(waiting(1), 0, num_workers=8)


@pytest.mark.parametrize(
    ("limits", "max_num_batched_tokens", "above"),
    [
        (PolicyClass(), 8192, float("inf")),
        (PolicyClass(prefill_busy_threshold=1536), 8192, 1536),
        (PolicyClass(prefill_busy_threshold_frac=2.0), 8192, 16384),
        (PolicyClass(prefill_busy_threshold_frac=0.0), 8192, 0),
        (PolicyClass(prefill_busy_threshold_frac=0.5), None, 5_000_000),
        (PolicyClass(prefill_busy_threshold=1536, prefill_busy_threshold_frac=0.125), 8192, 1024),
    ],
)
def test_a_worker_is_busy_above_either_threshold(
    limits: PolicyClass, max_num_batched_tokens: int | None, above: float
) -> None:
    assert limits.busy_above(max_num_batched_tokens) == above
    assert limits.is_queueing == (above < float("inf"))


# --------------------------------------------------------------------------- leaving


def test_whoever_is_cancelled_or_loses_its_acceptor_waits_no_longer() -> None:
    queue = PlacementQueue()
    for request_id in range(3):
        queue.push(waiting(request_id, peer=b"a0"), 0)
        queue.push(waiting(request_id, peer=b"a1"), 0)
    assert queue.remove((b"a0", 1))
    assert not queue.remove((b"a0", 1))
    assert (b"a1", 1) in queue
    assert (b"a0", 1) not in queue
    assert queue.remove_peer(b"a1") == 3
    assert queue.remove_peer(b"a1") == 0
    assert drain(queue) == [0, 2]
    assert queue.depths() == {"default": Depth(0, 0, 0)}


def test_the_same_key_again_replaces_what_waited() -> None:
    queue = PlacementQueue()
    queue.push(waiting(1, num_tokens=100), 0)
    queue.push(waiting(1, num_tokens=7), 1)
    assert queue.depths() == {"default": Depth(1, 7, 0)}
    assert drain(queue) == [1]


def test_nobody_waits_longer_than_its_class_allows() -> None:
    queue = PlacementQueue([PolicyClass(name="short", max_wait_s=5), PolicyClass(name="long", max_wait_s=50)])
    queue.push(waiting(1, policy_class="short", arrived_at=0), 0)
    queue.push(waiting(2, policy_class="long", arrived_at=0), 0)
    queue.push(waiting(3, policy_class="short", arrived_at=3), 3)
    assert queue.expire(4.9) == []
    assert [each.key[1] for each in queue.expire(5)] == [1]
    assert queue.take_rejections() == {("short", "expired"): 1}
    assert sorted(drain(queue)) == [2, 3]


# --------------------------------------------------------------------------- overlap


def test_those_that_wait_for_long_are_ordered_by_what_is_cached_now() -> None:
    queue = PlacementQueue([PolicyClass(queue_policy="wspt")], refresh_after_s=10)
    queue.push(waiting(1, num_tokens=1000), 0)
    queue.push(waiting(2, num_tokens=900), 0)
    looked_at: list[int] = []

    def cached(each: Waiting) -> int:
        looked_at.append(each.key[1])
        return 950 if each.key[1] == 1 else 0

    assert queue.refresh(9.9, cached) == 0
    assert queue.refresh(10, cached) == 2
    assert queue.refresh(11, cached) == 0
    assert looked_at == [1, 2]
    assert queue.depths() == {"default": Depth(2, 1900, 950)}
    assert queue.refresh(20, cached) == 2
    assert drain(queue) == [1, 2]


def test_no_look_is_taken_at_those_who_left_or_when_it_is_off() -> None:
    queue, without = PlacementQueue(refresh_after_s=1), PlacementQueue(refresh_after_s=0)
    queue.push(waiting(1), 0)
    without.push(waiting(1), 0)
    queue.remove((b"a0", 1))
    assert queue.refresh(100, lambda _each: 0) == 0
    assert without.refresh(100, lambda _each: 0) == 0


def test_one_look_is_bounded() -> None:
    queue = PlacementQueue(refresh_after_s=1)
    for request_id in range(300):
        queue.push(waiting(request_id), 0)
    assert queue.refresh(5, lambda _each: 0) == 256
    assert queue.refresh(5, lambda _each: 0) == 44
