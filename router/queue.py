"""Placements that wait until a worker has room for them.

Each policy class has its own order: strict priority first, then the score of its queue policy, then arrival. Deficit
round robin shares what becomes free between classes: a class earns `quantum` uncached tokens of credit per round, and
to start a placement it pays with the tokens that are not in any cache. Within a class, those that compete for the same
workers form a lane; a head that may not start yet holds up its lane and no other.

Nothing here knows when a worker is busy: whoever asks says so, with `may_start`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import count

from dynamo.router.class_queue import SPARE_GARBAGE, ClassQueue, Depth, Entry, PolicyClass, QueueFull, Waiting

__all__ = ["Depth", "PlacementQueue", "PolicyClass", "QueueFull", "Waiting"]

OVERLAP_REFRESH_AFTER_S = 10.0
MAX_REFRESHED_AT_ONCE = 256  # each looks its prompt up in the index


class PlacementQueue:
    """Not a queue of requests but of placements: what is taken out is no longer its concern, except for the number that
    run of a class with a limit on that."""

    def __init__(
        self, classes: Sequence[PolicyClass] = (PolicyClass(),), refresh_after_s: float | None = OVERLAP_REFRESH_AFTER_S
    ) -> None:
        self._queues = {policy_class.name: ClassQueue(policy_class) for policy_class in classes}
        self._ring = list(self._queues.values())
        # Whose turn comes next. It moves past a class only with the quantum of that turn, or shares would drift.
        self._cursor = 0
        self._spending: ClassQueue | None = None  # had the last turn, and may have credit left of it
        self._by_peer: dict[bytes, dict[int, Entry]] = {}
        self._arrivals = count()
        self._refresh_after_s = refresh_after_s or None
        self._to_refresh: deque[tuple[float, Entry]] = deque()
        self._rejections: dict[tuple[str, str], int] = {}
        self._num_waiting = 0
        self._next_deadline = math.inf  # nobody's is earlier

    def __len__(self) -> int:
        return self._num_waiting

    def __contains__(self, key: tuple[bytes, int]) -> bool:
        return key[1] in self._by_peer.get(key[0], ())

    # ---- who waits

    def admits(self, policy_class: str, worker_set_key: str, pinned_to: Hashable = None) -> bool:
        """Whether a newcomer may be placed without waiting, as far as those before it are concerned."""
        queue = self._queues[policy_class]
        return queue.has_room_to_run and (worker_set_key, pinned_to) not in queue.lanes

    def depths(self) -> dict[str, Depth]:
        return {name: queue.depth for name, queue in self._queues.items()}

    def depths_of_sets(self) -> dict[tuple[str, str], Depth]:
        """By policy class and worker set, of those that anybody waits for."""
        return {
            (name, key): depth for name, queue in self._queues.items() for key, depth in queue.depth_of_sets.items()
        }

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
        entry = Entry(waiting, next(self._arrivals))
        queue.add(entry)
        peer, request_id = waiting.key
        self._by_peer.setdefault(peer, {})[request_id] = entry
        self._num_waiting += 1
        self._next_deadline = min(self._next_deadline, self._deadline(waiting))
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
        if now < self._next_deadline:
            return []
        overdue = [entry for entry in self._entries() if self._deadline(entry.waiting) <= now]
        for entry in overdue:
            self._drop(entry)
            self._count_rejection(entry.waiting, "expired")
        self._next_deadline = min((self._deadline(entry.waiting) for entry in self._entries()), default=math.inf)
        return [entry.waiting for entry in overdue]

    # ---- whose turn it is

    def startable(self, may_start: Callable[[Waiting], bool]) -> Iterator[Waiting]:
        """Takes them out one by one. A lane found blocked is not tried again, for what is started only adds load; who
        comes meanwhile is for the next time."""
        if not self._num_waiting:
            return
        heads = {name: queue.open_heads() for name, queue in self._queues.items()}

        def head_of(queue: ClassQueue) -> Entry | None:
            return queue.first_startable(may_start, heads[queue.policy_class.name])

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

    def _next_turn(self, head_of: Callable[[ClassQueue], Entry | None]) -> tuple[ClassQueue, Entry] | None:
        spending = self._spending
        if spending is not None and (entry := head_of(spending)) and entry.waiting.cost <= spending.deficit:
            return spending, entry
        ring = self._ring[self._cursor :] + self._ring[: self._cursor]
        heads: list[tuple[ClassQueue, Entry]] = []
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

    def _rescore(self, entry: Entry, cached_tokens: int, now: float) -> None:
        waiting = entry.waiting
        queue = self._queues[waiting.policy_class]
        fresh = Entry(waiting, entry.arrival, entry.num_looks + 1)
        deficit = queue.deficit
        queue.drop(entry)
        waiting.cached_tokens = cached_tokens
        queue.add(fresh)
        queue.deficit = deficit
        peer, request_id = waiting.key
        self._by_peer[peer][request_id] = fresh
        self._schedule_refresh(fresh, now)

    def _schedule_refresh(self, entry: Entry, now: float) -> None:
        if self._refresh_after_s is None:
            return
        self._to_refresh.append((now + self._refresh_after_s, entry))
        if len(self._to_refresh) > 2 * self._num_waiting + SPARE_GARBAGE:
            self._to_refresh = deque(item for item in self._to_refresh if item[1].is_live)

    # ---- keeping it consistent

    def _drop(self, entry: Entry) -> None:
        peer, request_id = entry.waiting.key
        self._queues[entry.waiting.policy_class].drop(entry)
        del self._by_peer[peer][request_id]
        if not self._by_peer[peer]:
            del self._by_peer[peer]
        self._num_waiting -= 1

    def _entries(self) -> Iterator[Entry]:
        for entries in self._by_peer.values():
            yield from entries.values()

    def _deadline(self, waiting: Waiting) -> float:
        return waiting.arrived_at + self._queues[waiting.policy_class].policy_class.max_wait_s

    def _count_rejection(self, waiting: Waiting, reason: str) -> None:
        key = (waiting.policy_class, reason)
        self._rejections[key] = self._rejections.get(key, 0) + 1


def _skip_rounds(heads: list[tuple[ClassQueue, Entry]]) -> tuple[ClassQueue, Entry]:
    """Credit all with as many rounds as the first of them needs, at once: how long that takes must not depend on the
    length of a prompt."""

    def rounds_needed(head: tuple[ClassQueue, Entry]) -> int:
        queue, entry = head
        return -(-(entry.waiting.cost - queue.deficit) // queue.policy_class.quantum)

    winner = min(heads, key=rounds_needed)
    num_rounds = rounds_needed(winner)
    for queue, _entry in heads:
        queue.deficit += num_rounds * queue.policy_class.quantum
    return winner
