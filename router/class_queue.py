"""The queue of one policy class: who waits in it, in which order, and how many may."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable
from typing import NamedTuple

from msgspec import Struct

from dynamo.shared.messages import Place, RoutingHints

UNKNOWN_MAX_BATCHED_TOKENS = 10_000_000  # of a worker that does not advertise it
SPARE_GARBAGE = 64  # removed entries that a heap may hold beyond the number of live ones

NO_HINTS = RoutingHints()


class PolicyClass(Struct, frozen=True, kw_only=True):
    """One queue. Limits `_per_worker` grow with the workers of the placement's set; None means no limit.

    A class limit counts what waits already, so the placement that crosses it is let in, and one that alone is larger
    than the limit can be queued too.
    """

    name: str = "default"
    queue_policy: str = "fcfs"
    quantum: int = 1
    prefill_busy_threshold: int | None = None
    prefill_busy_threshold_frac: float | None = None
    request_queue_limit_per_worker: int | None = None
    raw_isl_token_queue_limit_per_worker: int | None = None
    cached_token_queue_limit_per_worker: int | None = None
    max_queued_requests: int = 65_536
    max_queued_tokens: int = 1 << 28  # their hashes are 128 MiB at 16 tokens per block
    max_running_requests: int | None = None
    max_wait_s: float = 600.0

    @property
    def is_queueing(self) -> bool:
        """Whether placements of this class ever wait."""
        thresholds = (self.prefill_busy_threshold, self.prefill_busy_threshold_frac, self.max_running_requests)
        return any(threshold is not None for threshold in thresholds)

    def busy_above(self, max_num_batched_tokens: int | None) -> float:
        """A worker with more active prefill tokens than this is busy; infinite where none ever is."""
        absolute = math.inf if self.prefill_busy_threshold is None else self.prefill_busy_threshold
        if self.prefill_busy_threshold_frac is None:
            return absolute
        return min(absolute, self.prefill_busy_threshold_frac * (max_num_batched_tokens or UNKNOWN_MAX_BATCHED_TOKENS))


class Waiting(Struct, kw_only=True, eq=False):
    """One placement in the queue, which owns it while it is there. `key` is (peer, request id); `cached_tokens` is the
    most that any candidate has of the prompt. `pinned_to` names, in any form, who of the set will do; None: all."""

    key: tuple[bytes, int]
    place: Place
    worker_set_key: str
    policy_class: str
    arrived_at: float
    cached_tokens: int = 0
    pinned_to: Hashable = None

    @property
    def num_cached_tokens(self) -> int:
        return min(self.cached_tokens, self.place.num_tokens)

    @property
    def cost(self) -> int:
        """Tokens to prefill, at least 1, so that a placement that is cached whole is not free."""
        return max(1, self.place.num_tokens - self.cached_tokens)


class QueueFull(Exception):
    """The class may not take another placement. `reason` is one of requests, raw_isl_tokens, cached_tokens."""

    def __init__(self, policy_class: str, reason: str, current: int, limit: int) -> None:
        super().__init__(
            f"The queue of policy class {policy_class!r} is full: {current} {reason.replace('_', ' ')} wait, "
            f"the limit is {limit}."
        )
        self.policy_class = policy_class
        self.reason = reason


class Depth(NamedTuple):
    requests: int = 0
    raw_isl_tokens: int = 0
    cached_tokens: int = 0

    def plus(self, waiting: Waiting, sign: int) -> Depth:
        return Depth(
            self.requests + sign,
            self.raw_isl_tokens + sign * waiting.place.num_tokens,
            self.cached_tokens + sign * waiting.num_cached_tokens,
        )


def score(policy: str, waiting: Waiting) -> float:
    """The higher goes first."""
    jump = max(0.0, (waiting.place.hints or NO_HINTS).priority_jump)
    if policy == "wspt":
        return (1.0 + jump) / waiting.cost
    return jump + waiting.arrived_at if policy == "lcfs" else jump - waiting.arrived_at


class Entry(Struct, eq=False):
    waiting: Waiting
    arrival: int
    num_looks: int = 0  # at what is cached of it; each makes a new entry
    is_live: bool = True  # a heap may hold entries that were removed


Order = tuple[int, float, int, int]  # the smallest goes first; no two entries of a queue are equal
LaneKey = tuple[str, Hashable]  # worker set, pin
OpenHead = tuple[Order, LaneKey]


class Lane:
    """Those of one class that compete for the same workers."""

    def __init__(self) -> None:
        self._heap: list[tuple[Order, Entry]] = []
        self.num_live = 0

    def push(self, order: Order, entry: Entry) -> None:
        heapq.heappush(self._heap, (order, entry))
        self.num_live += 1

    @property
    def head(self) -> tuple[Order, Entry]:
        """Needs a live entry."""
        while not self._heap[0][1].is_live:
            heapq.heappop(self._heap)
        return self._heap[0]

    def drop(self, entry: Entry) -> None:
        entry.is_live = False
        self.num_live -= 1
        if len(self._heap) > 2 * self.num_live + SPARE_GARBAGE:
            self._heap = [item for item in self._heap if item[1].is_live]
            heapq.heapify(self._heap)


class ClassQueue:
    def __init__(self, policy_class: PolicyClass) -> None:
        self.policy_class = policy_class
        self.lanes: dict[LaneKey, Lane] = {}
        self.deficit = 0
        self.num_running = 0
        self.depth = Depth()
        self.depth_of_sets: dict[str, Depth] = {}  # of worker sets that anybody waits for

    @property
    def has_room_to_run(self) -> bool:
        limit = self.policy_class.max_running_requests
        return limit is None or self.num_running < limit

    def check_limits(self, num_workers: int) -> None:
        limits, depth = self.policy_class, self.depth
        for reason, current, per_worker, total in (
            ("requests", depth.requests, limits.request_queue_limit_per_worker, limits.max_queued_requests),
            (
                "raw_isl_tokens",
                depth.raw_isl_tokens,
                limits.raw_isl_token_queue_limit_per_worker,
                limits.max_queued_tokens,
            ),
            ("cached_tokens", depth.cached_tokens, limits.cached_token_queue_limit_per_worker, None),
        ):
            bounds = [] if per_worker is None else [per_worker * num_workers]
            limit = min(bounds if total is None else [*bounds, total], default=None)
            if limit is not None and current >= limit:
                raise QueueFull(limits.name, reason, current, limit)

    def add(self, entry: Entry) -> None:
        waiting = entry.waiting
        self._count(waiting, 1)
        hints = waiting.place.hints or NO_HINTS
        rank = score(self.policy_class.queue_policy, waiting)
        order = (-hints.strict_priority, -rank, entry.arrival, entry.num_looks)
        self.lanes.setdefault(_lane_of(waiting), Lane()).push(order, entry)

    def drop(self, entry: Entry) -> None:
        key = _lane_of(entry.waiting)
        lane = self.lanes[key]
        lane.drop(entry)
        self._count(entry.waiting, -1)
        if not lane.num_live:
            del self.lanes[key]
        if not self.lanes:
            self.deficit = 0  # credit is earned by those who wait

    def _count(self, waiting: Waiting, sign: int) -> None:
        self.depth = self.depth.plus(waiting, sign)
        of_set = self.depth_of_sets.pop(waiting.worker_set_key, Depth()).plus(waiting, sign)
        if of_set.requests:
            self.depth_of_sets[waiting.worker_set_key] = of_set

    def open_heads(self) -> list[OpenHead]:
        """A heap of the lanes' heads, to be worked through by `first_startable`."""
        heads = [(lane.head[0], key) for key, lane in self.lanes.items()]
        heapq.heapify(heads)
        return heads

    def first_startable(self, may_start: Callable[[Waiting], bool], heads: list[OpenHead]) -> Entry | None:
        """The first head that may start; lanes whose head may not are taken off `heads`."""
        while heads and self.has_room_to_run:
            order, key = heads[0]
            lane = self.lanes.get(key)
            if lane is None:
                heapq.heappop(heads)
            elif (head := lane.head)[0] != order:
                heapq.heapreplace(heads, (head[0], key))
            elif may_start(head[1].waiting):
                return head[1]
            else:
                heapq.heappop(heads)
        return None


def _lane_of(waiting: Waiting) -> LaneKey:
    return waiting.worker_set_key, waiting.pinned_to
