"""How long the router's core takes to place a request, in a fleet that holds and runs something. Prints JSON figures.

The mix is that of a gateway: each request is placed, has its first token a while later, and then ends.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence

from bench.figures import Figure, print_figures
from bench.made_up_fleet import MODEL, Conversations, entries
from dynamo.router.core import Router
from dynamo.router.rules import Rules
from dynamo.shared.messages import AcceptorMessage, Free, Hello, Place, Placed, PrefillCompleted

PEER = b"acceptor"
MAX_INDEX_BLOCKS = 1_000_000
RUNNING_PER_WORKER = 4
PREFILLING_SHARE = 0.25  # of those that run
MAX_RUNNING = 1_000
STRICT = (100, 60_000)  # workers and tokens for which the bar is meant
P99_BAR_US = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.router_core")
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--placements", type=int, default=3_000)
    args = parser.parse_args()
    print_figures(placements(args.workers, args.tokens, args.placements))


def placements(num_workers: int, num_tokens: int, count: int) -> Iterator[Figure]:
    router = Router(Rules(router_mode="kv"), random.Random(1))
    gc.collect()
    gc.freeze()  # as the router does when it is ready; what it learns later is not frozen
    conversations = Conversations(num_workers, num_tokens, MAX_INDEX_BLOCKS)
    _populate(router, num_workers, conversations)
    load = _Load(router, num_tokens, max_running=min(MAX_RUNNING, RUNNING_PER_WORKER * num_workers))
    for _ in range(load.max_running + 100):
        load.step(conversations.prompt())
    prompts = [conversations.prompt() for _ in range(count)]
    load.forget_times()
    for prompt in prompts:
        load.step(prompt)
    bar = P99_BAR_US if (num_workers, num_tokens) == STRICT else None
    yield Figure("placement p50 µs", _quantile(load.placing_ns, 0.5) / 1e3)
    yield Figure("placement p99 µs", _quantile(load.placing_ns, 0.99) / 1e3, at_most=bar)
    yield Figure("requests/s", 1e9 * count / (sum(load.placing_ns) + sum(load.other_ns)))


class _Load:
    """Keeps `max_running` requests running, the older ones past their first token. Times are of CPU."""

    def __init__(self, router: Router, num_tokens: int, max_running: int) -> None:
        self.max_running = max_running
        self.placing_ns: list[int] = []
        self.other_ns: list[int] = []
        self._router = router
        self._num_tokens = num_tokens
        self._max_prefilling = max(1, int(PREFILLING_SHARE * max_running))
        self._prefilling: deque[int] = deque()
        self._decoding: deque[int] = deque()
        self._num_placed = 0

    def step(self, prompt: bytes) -> None:
        """One request comes, and another has its first token, and another ends."""
        self._num_placed += 1
        request_id = self._num_placed
        self.placing_ns.append(self._say([Place(request_id, MODEL, self._num_tokens, prompt)]))
        self._prefilling.append(request_id)
        if len(self._prefilling) > self._max_prefilling:
            self._decoding.append(started := self._prefilling.popleft())
            self.other_ns.append(self._say([PrefillCompleted(started)]))
        if len(self._decoding) > self.max_running - self._max_prefilling:
            self.other_ns.append(self._say([Free(self._decoding.popleft())]))

    def forget_times(self) -> None:
        self.placing_ns.clear()
        self.other_ns.clear()

    def _say(self, messages: Sequence[AcceptorMessage]) -> int:
        """Nanoseconds until the router has answered."""
        started = time.thread_time_ns()
        self._router.receive(PEER, messages, time.monotonic())
        answers = self._router.take_outgoing()
        elapsed = time.thread_time_ns() - started
        assert isinstance(messages[0], Place) == any(isinstance(a, Placed) for a in answers.get(PEER, ()))
        return elapsed


def _populate(router: Router, num_workers: int, conversations: Conversations) -> None:
    for bucket, entry in entries(num_workers):
        router.discover(bucket, [entry])
    router.receive(PEER, [Hello("bench", 1)], 0.0)
    router.take_outgoing()
    index = router.fleet.index
    assert index is not None
    for worker, events in conversations.events().items():
        slot = router.fleet.ranks.slot_of(worker, 0)
        assert slot is not None
        for event in events:
            index.apply(slot, event)


def _quantile(values: list[int], quantile: float) -> float:
    return sorted(values)[math.ceil(quantile * len(values)) - 1]


if __name__ == "__main__":
    main()
