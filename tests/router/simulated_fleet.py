"""A router and its workers in virtual time: engines that prefill one prompt after another, cache blocks and tell so."""

from __future__ import annotations

import heapq
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

from dynamo.router.config import RouterConfig
from dynamo.router.core import Router
from dynamo.shared.discovery import CARDS, INSTANCES, Put
from dynamo.shared.hashing import sequence_hashes
from dynamo.shared.kv_events import Change, KvEvent, Removed, RouterEvent, Stored, StoredBlock
from dynamo.shared.messages import AcceptorMessage, Free, Heartbeat, Hello, Place, Placed, PrefillCompleted
from tests.router.registrations import card_value, instance_value

BLOCK_SIZE = 16
ENDPOINT = "ns/backend/generate"
PREFILL_TOKENS_PER_S = 8000
SECONDS_PER_TOKEN = 0.02
TICK_S = 1.0


class Prompt(NamedTuple):
    """`tokens_hashes` has one per block, all of them full."""

    tokens_hashes: Sequence[int]
    num_output_tokens: int

    @property
    def num_tokens(self) -> int:
        return len(self.tokens_hashes) * BLOCK_SIZE


class Served(NamedTuple):
    at: float
    worker_id: int
    num_blocks: int
    num_cached_blocks: int
    first_token_s: float  # after it came


class Engine:
    """Its cache holds `num_blocks`; the one used longest ago leaves first, of one prompt the last before the others."""

    def __init__(self, worker_id: int, num_blocks: int) -> None:
        self.worker_id = worker_id
        self.num_blocks = num_blocks
        self.free_at = 0.0  # when what it has to prefill is done
        self._held: OrderedDict[int, None] = OrderedDict()
        self._num_events = 0

    def prefill(self, prompt: Prompt, now: float) -> tuple[int, float]:
        """How many blocks were cached, and when it is done."""
        chain = sequence_hashes(prompt.tokens_hashes)
        num_cached = next((at for at, block in enumerate(chain) if block not in self._held), len(chain))
        num_tokens = max(1, prompt.num_tokens - num_cached * BLOCK_SIZE)
        self.free_at = max(self.free_at, now) + num_tokens / PREFILL_TOKENS_PER_S
        return num_cached, self.free_at

    def keep(self, prompt: Prompt) -> list[RouterEvent]:
        """The prompt is in the cache now."""
        chain = sequence_hashes(prompt.tokens_hashes)
        first_new = next((at for at, block in enumerate(chain) if block not in self._held), len(chain))
        for block in reversed(chain):
            self._held[block] = None
            self._held.move_to_end(block)
        events = []
        if first_new < len(chain):
            blocks = [StoredBlock(*pair) for pair in zip(chain, prompt.tokens_hashes, strict=True)][first_new:]
            events.append(self._event(Change(stored=Stored(blocks, chain[first_new - 1] if first_new else None))))
        if gone := [self._held.popitem(last=False)[0] for _ in range(len(self._held) - self.num_blocks)]:
            events.append(self._event(Change(removed=Removed(gone))))
        return events

    def _event(self, change: Change) -> RouterEvent:
        self._num_events += 1
        return RouterEvent(self.worker_id, KvEvent(self._num_events, change))


class SimulatedFleet:
    """`seed` is the router's. Acceptors take turns."""

    def __init__(
        self, *flags: str, num_workers: int, num_acceptors: int = 1, seed: int = 0, blocks: int = 5000
    ) -> None:
        config, _ = RouterConfig.load(flags, {}, prog="router")
        self.router = Router(config.rules, random.Random(seed))
        self.now = 0.0
        self.served: list[Served] = []
        self._engines: dict[int, Engine] = {}
        self._num_blocks = blocks
        self._peers = [f"p{number}".encode() for number in range(num_acceptors)]
        self._ids = count(1)
        self._waiting: dict[tuple[bytes, int], tuple[Prompt, float]] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        for worker_id in range(1, num_workers + 1):
            self.join(worker_id)
        for peer in self._peers:
            self._say(peer, Hello(peer.decode(), 1))

    def join(self, worker_id: int) -> None:
        key, options = f"{ENDPOINT}/{worker_id:x}", {"model": "m", "block_size": str(BLOCK_SIZE)}
        self._engines[worker_id] = Engine(worker_id, self._num_blocks)
        self.router.discover(INSTANCES, [Put(key, instance_value(worker_id, ENDPOINT))], self.now)
        self.router.discover(CARDS, [Put(key, card_value(worker_id, ENDPOINT, options))], self.now)

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), action))

    def ask(self, when: float, prompt: Prompt) -> None:
        self.at(when, lambda: self._place(prompt))

    def run(self) -> None:
        """Until all is served."""
        self.at(self.now + TICK_S, self._tick)
        while self._due:
            self.now, _order, action = heapq.heappop(self._due)
            action()

    # ---- what came of it

    @property
    def hit_share(self) -> float:
        """Of all prompt blocks, those that were cached where they were prefilled."""
        return sum(each.num_cached_blocks for each in self.served) / sum(each.num_blocks for each in self.served)

    def requests_of(self, since: float = 0.0) -> list[int]:
        """Per worker, of those that came later."""
        counts = Counter(each.worker_id for each in self.served if each.at >= since)
        return [counts[worker_id] for worker_id in self._engines]

    # ---- inside

    def _tick(self) -> None:
        if self._due:
            self.at(self.now + TICK_S, self._tick)
        for peer in self._peers:
            self._say(peer, Heartbeat())
        self.router.tick(self.now)
        self._hear()

    def _place(self, prompt: Prompt) -> None:
        request_id = next(self._ids)
        peer = self._peers[request_id % len(self._peers)]
        hashes = b"".join(each.to_bytes(8, "little") for each in sequence_hashes(prompt.tokens_hashes))
        self._waiting[peer, request_id] = prompt, self.now
        self._say(peer, Place(request_id, "m", prompt.num_tokens, hashes))

    def _say(self, peer: bytes, message: AcceptorMessage) -> None:
        self.router.receive(peer, [message], self.now)
        self._hear()

    def _hear(self) -> None:
        for peer, messages in self.router.take_outgoing().items():
            for message in messages:
                if isinstance(message, Placed):
                    self._start(peer, message)

    def _start(self, peer: bytes, placed: Placed) -> None:
        prompt, came_at = self._waiting.pop((peer, placed.request_id))
        engine = self._engines[placed.instance_id]
        num_cached, done_at = engine.prefill(prompt, self.now)
        self.served.append(Served(came_at, engine.worker_id, len(prompt.tokens_hashes), num_cached, done_at - came_at))
        self.at(done_at, lambda: self._finish_prefill(peer, placed.request_id, engine, prompt))

    def _finish_prefill(self, peer: bytes, request_id: int, engine: Engine, prompt: Prompt) -> None:
        events = engine.keep(prompt)
        if self.router.sources is not None:
            self.router.sources.events(engine.worker_id, events, self.now)
        self._say(peer, PrefillCompleted(request_id))
        self.at(self.now + prompt.num_output_tokens * SECONDS_PER_TOKEN, lambda: self._say(peer, Free(request_id)))
