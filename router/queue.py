"""Placements that wait until a worker has room for them.

Each policy class has its own order: strict priority first, then the score of its queue policy, then arrival. Deficit
round robin shares what becomes free between classes: a class earns `quantum` uncached tokens of credit per round, and
to start a placement it pays with the tokens that are not in any cache. Within a class, those that compete for the same
workers form a lane; a head that may not start yet holds up its lane and no other.

Nothing here knows when a worker is busy: whoever asks says so, with `may_start`.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

from msgspec import Struct

from dynamo.shared.messages import Place, RoutingHints

QUEUE_POLICIES = ("fcfs", "wspt", "lcfs")
UNKNOWN_MAX_BATCHED_TOKENS = 10_000_000  # of a worker that does not advertise it
OVERLAP_REFRESH_AFTER_S = 10.0
MAX_REFRESHED_AT_ONCE = 256  # each looks its prompt up in the index
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
    most that any candidate has of the prompt. `pinned_to` is (instance id, rank or None) where no other will do."""

    key: tuple[bytes, int]
    place: Place
    worker_set_key: str
    policy_class: str
    arrived_at: float
    cached_tokens: int = 0
    pinned_to: tuple[int, int | None] | None = None

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
    requests: int
    raw_isl_tokens: int
    cached_tokens: int


def score(policy: str, waiting: Waiting) -> float:
    """The higher goes first."""
    jump = max(0.0, (waiting.place.hints or NO_HINTS).priority_jump)
    if policy == "wspt":
        return (1.0 + jump) / waiting.cost
    return jump + waiting.arrived_at if policy == "lcfs" else jump - waiting.arrived_at


class _Entry(Struct, eq=False):
    waiting: Waiting
    arrival: int
    num_looks: int = 0  # at what is cached of it; each makes a new entry
    is_live: bool = True  # a heap may hold entries that were removed


Order = tuple[int, float, int, int]  # the smallest goes first; no two entries of a queue are equal
LaneKey = tuple[str, tuple[int, int | None] | None]  # worker set, pin


class _Lane:
    """Those of one class that compete for the same workers."""

    def __init__(self) -> None:
        self._heap: list[tuple[Order, _Entry]] = []
        self.num_live = 0

    def push(self, order: Order, entry: _Entry) -> None:
        heapq.heappush(self._heap, (order, entry))
        self.num_live += 1

    @property
    def head(self) -> tuple[Order, _Entry]:
        """Needs a live entry."""
        while not self._heap[0][1].is_live:
            heapq.heappop(self._heap)
        return self._heap[0]

    def drop(self, entry: _Entry) -> None:
        entry.is_live = False
        self.num_live -= 1
        if len(self._heap) > 2 * self.num_live + SPARE_GARBAGE:
            self._heap = [item for item in self._heap if item[1].is_live]
            heapq.heapify(self._heap)


class _ClassQueue:
    def __init__(self, policy_class: PolicyClass) -> None:
        self.policy_class = policy_class
        self.lanes: dict[LaneKey, _Lane] = {}
        self.deficit = 0
        self.num_running = 0
        self._num_requests = self._num_tokens = self._num_cached_tokens = 0

    @property
    def depth(self) -> Depth:
        return Depth(self._num_requests, self._num_tokens, self._num_cached_tokens)

    @property
    def has_room_to_run(self) -> bool:
        limit = self.policy_class.max_running_requests
        return limit is None or self.num_running < limit

    def check_limits(self, num_workers: int) -> None:
        limits = self.policy_class
        for reason, current, per_worker, total in (
            ("requests", self._num_requests, limits.request_queue_limit_per_worker, limits.max_queued_requests),
            ("raw_isl_tokens", self._num_tokens, limits.raw_isl_token_queue_limit_per_worker, limits.max_queued_tokens),
            ("cached_tokens", self._num_cached_tokens, limits.cached_token_queue_limit_per_worker, None),
        ):
            bounds = [] if per_worker is None else [per_worker * num_workers]
            limit = min(bounds if total is None else [*bounds, total], default=None)
            if limit is not None and current >= limit:
                raise QueueFull(limits.name, reason, current, limit)

    def add(self, entry: _Entry) -> None:
        waiting = entry.waiting
        self._count(waiting, 1)
        hints = waiting.place.hints or NO_HINTS
        rank = score(self.policy_class.queue_policy, waiting)
        order = (-hints.strict_priority, -rank, entry.arrival, entry.num_looks)
        self.lanes.setdefault(_lane_of(waiting), _Lane()).push(order, entry)

    def drop(self, entry: _Entry) -> None:
        key = _lane_of(entry.waiting)
        lane = self.lanes[key]
        lane.drop(entry)
        self._count(entry.waiting, -1)
        if not lane.num_live:
            del self.lanes[key]
        if not self.lanes:
            self.deficit = 0  # credit is earned by those who wait

    def _count(self, waiting: Waiting, sign: int) -> None:
        self._num_requests += sign
        self._num_tokens += sign * waiting.place.num_tokens
        self._num_cached_tokens += sign * waiting.num_cached_tokens

    def first_startable(self, may_start: Callable[[Waiting], bool], blocked: set[LaneKey]) -> _Entry | None:
        """The first of the lanes' heads that may start; lanes whose head may not are added to `blocked`."""
        if not self.has_room_to_run:
            return None
        while open_lanes := [(lane.head, key) for key, lane in self.lanes.items() if key not in blocked]:
            (_order, entry), key = min(open_lanes, key=_order_of_head)
            if may_start(entry.waiting):
                return entry
            blocked.add(key)
        return None


class PlacementQueue:
    """Not a queue of requests but of placements: what is taken out is no longer its concern, except for the number that
    run of a class with a limit on that."""

    def __init__(
        self, classes: Sequence[PolicyClass] = (PolicyClass(),), refresh_after_s: float | None = OVERLAP_REFRESH_AFTER_S
    ) -> None:
        self._queues = {policy_class.name: _ClassQueue(policy_class) for policy_class in classes}
        self._ring = list(self._queues.values())
        # Whose turn comes next. It moves past a class only with the quantum of that turn, or shares would drift.
        self._cursor = 0
        self._spending: _ClassQueue | None = None  # has credit left of its last turn
        self._by_peer: dict[bytes, dict[int, _Entry]] = {}
        self._arrivals = count()
        self._refresh_after_s = refresh_after_s or None
        self._to_refresh: deque[tuple[float, _Entry]] = deque()
        self._rejections: dict[tuple[str, str], int] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __contains__(self, key: tuple[bytes, int]) -> bool:
        return key[1] in self._by_peer.get(key[0], ())

    # ---- who waits

    def admits(self, policy_class: str, worker_set_key: str, pinned_to: tuple[int, int | None] | None = None) -> bool:
        """Whether a newcomer may be placed without waiting, as far as those before it are concerned."""
        queue = self._queues[policy_class]
        return queue.has_room_to_run and (worker_set_key, pinned_to) not in queue.lanes

    def has_backlog(self, policy_class: str) -> bool:
        return bool(self._queues[policy_class].lanes)

    def depths(self) -> dict[str, Depth]:
        return {name: queue.depth for name, queue in self._queues.items()}

    def take_rejections(self) -> dict[tuple[str, str], int]:
        """How often (policy class, reason) ended a wait, or kept it from beginning, since the last call. Reasons are
        those of QueueFull, and expired."""
        rejections, self._rejections = self._rejections, {}
        return rejections

    # ---- coming and going

    def push(self, waiting: Waiting, now: float, *, num_workers: int = 1) -> None:
        """Raises QueueFull. A key waits once: the same key again takes the place of the first."""
        queue = self._queues[waiting.policy_class]
        self.remove(waiting.key)
        try:
            queue.check_limits(num_workers)
        except QueueFull as full:
            self._count_rejection(waiting, full.reason)
            raise
        entry = _Entry(waiting, next(self._arrivals))
        queue.add(entry)
        peer, request_id = waiting.key
        self._by_peer.setdefault(peer, {})[request_id] = entry
        self._num_waiting += 1
        self._schedule_refresh(entry, now)

    def remove(self, key: tuple[bytes, int]) -> bool:
        """Whether it waited."""
        peer, request_id = key
        entry = self._by_peer.get(peer, {}).get(request_id)
        if entry is not None:
            self._drop(entry)
        return entry is not None

    def remove_peer(self, peer: bytes) -> int:
        """All that this peer waits for; how many that was."""
        entries = list(self._by_peer.get(peer, {}).values())
        for entry in entries:
            self._drop(entry)
        return len(entries)

    def expire(self, now: float) -> list[Waiting]:
        """Takes out whoever has waited for as long as its class allows."""
        overdue = [
            entry
            for entries in self._by_peer.values()
            for entry in entries.values()
            if entry.waiting.arrived_at + self._class_of(entry.waiting).max_wait_s <= now
        ]
        for entry in overdue:
            self._drop(entry)
            self._count_rejection(entry.waiting, "expired")
        return [entry.waiting for entry in overdue]

    # ---- whose turn it is

    def next(self, may_start: Callable[[Waiting], bool]) -> Waiting | None:
        """Takes out the one whose turn it is; None when nobody may start."""
        return next(self.startable(may_start), None)

    def startable(self, may_start: Callable[[Waiting], bool]) -> Iterator[Waiting]:
        """Takes them out one by one. A lane found blocked is not tried again, for what is started only adds load."""
        blocked: dict[str, set[LaneKey]] = {name: set() for name in self._queues}

        def head_of(queue: _ClassQueue) -> _Entry | None:
            return queue.first_startable(may_start, blocked[queue.policy_class.name])

        while (turn := self._next_turn(head_of)) is not None:
            queue, entry = turn
            queue.deficit -= entry.waiting.cost
            self._spending = queue
            self._drop(entry)
            yield entry.waiting

    def started(self, policy_class: str) -> None:
        """A placement of this class runs now, whether or not it has waited."""
        self._queues[policy_class].num_running += 1

    def finished(self, policy_class: str) -> None:
        self._queues[policy_class].num_running -= 1

    def _next_turn(self, head_of: Callable[[_ClassQueue], _Entry | None]) -> tuple[_ClassQueue, _Entry] | None:
        spending, self._spending = self._spending, None
        if spending is not None and (entry := head_of(spending)) and entry.waiting.cost <= spending.deficit:
            return spending, entry
        ring = self._ring[self._cursor :] + self._ring[: self._cursor]
        heads: list[tuple[_ClassQueue, _Entry]] = []
        for queue in ring:
            if (entry := head_of(queue)) is None:
                continue
            heads.append((queue, entry))
            queue.deficit += queue.policy_class.quantum
            if entry.waiting.cost <= queue.deficit:
                self._cursor = (self._ring.index(queue) + 1) % len(self._ring)
                return queue, entry
        return _skip_rounds(heads) if heads else None

    # ---- overlap that changes while they wait

    def refresh(self, now: float, cached_tokens_of: Callable[[Waiting], int]) -> int:
        """Look again at what is cached of those that have waited for long, a bounded number per call; how many."""
        num_refreshed = 0
        while self._to_refresh and self._to_refresh[0][0] <= now and num_refreshed < MAX_REFRESHED_AT_ONCE:
            _due, entry = self._to_refresh.popleft()
            if entry.is_live:
                self._rescore(entry, cached_tokens_of(entry.waiting), now)
                num_refreshed += 1
        return num_refreshed

    def _rescore(self, entry: _Entry, cached_tokens: int, now: float) -> None:
        waiting = entry.waiting
        queue = self._queues[waiting.policy_class]
        fresh = _Entry(waiting, entry.arrival, entry.num_looks + 1)
        deficit = queue.deficit
        queue.drop(entry)
        waiting.cached_tokens = cached_tokens
        queue.add(fresh)
        queue.deficit = deficit
        peer, request_id = waiting.key
        self._by_peer[peer][request_id] = fresh
        self._schedule_refresh(fresh, now)

    def _schedule_refresh(self, entry: _Entry, now: float) -> None:
        if self._refresh_after_s is None:
            return
        self._to_refresh.append((now + self._refresh_after_s, entry))
        if len(self._to_refresh) > 2 * self._num_waiting + SPARE_GARBAGE:
            self._to_refresh = deque(item for item in self._to_refresh if item[1].is_live)

    # ---- keeping it consistent

    def _drop(self, entry: _Entry) -> None:
        peer, request_id = entry.waiting.key
        self._queues[entry.waiting.policy_class].drop(entry)
        del self._by_peer[peer][request_id]
        if not self._by_peer[peer]:
            del self._by_peer[peer]
        self._num_waiting -= 1

    def _class_of(self, waiting: Waiting) -> PolicyClass:
        return self._queues[waiting.policy_class].policy_class

    def _count_rejection(self, waiting: Waiting, reason: str) -> None:
        key = (waiting.policy_class, reason)
        self._rejections[key] = self._rejections.get(key, 0) + 1


def _lane_of(waiting: Waiting) -> LaneKey:
    return waiting.worker_set_key, waiting.pinned_to


def _order_of_head(lane: tuple[tuple[Order, _Entry], LaneKey]) -> Order:
    return lane[0][0]


def _skip_rounds(heads: list[tuple[_ClassQueue, _Entry]]) -> tuple[_ClassQueue, _Entry]:
    """Credit all with as many rounds as the first of them needs, at once: how long that takes must not depend on the
    length of a prompt."""

    def rounds_needed(head: tuple[_ClassQueue, _Entry]) -> int:
        queue, entry = head
        return -(-(entry.waiting.cost - queue.deficit) // queue.policy_class.quantum)

    winner = min(heads, key=rounds_needed)
    num_rounds = rounds_needed(winner)
    for queue, _entry in heads:
        queue.deficit += num_rounds * queue.policy_class.quantum
    return winner
