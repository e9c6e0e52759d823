"""A core of three workers that logs its decisions, and requests for it."""

from __future__ import annotations

import random
from pathlib import Path

from dynamo.router.core import Router
from dynamo.router.decisions import DecisionLog
from dynamo.router.rules import Rules
from dynamo.shared.discovery import CARDS, INSTANCES, Put
from dynamo.shared.messages import Free, Hello, Place, Placed, PrefillCompleted, RoutingHints
from tests.router.prompts import packed_hashes
from tests.router.registrations import BLOCK_SIZE, card_value, instance_value

ENDPOINT = "ns/backend/generate"
WORKERS = (1, 2, 3)
PEER = b"acceptor"


class LoggedRouter:
    """In mode kv; what it placed is what it believes to be cached."""

    def __init__(self, path: Path, max_bytes: int = 1 << 20) -> None:
        self.log = DecisionLog(path, max_bytes)
        rules = Rules(router_mode="kv", uses_kv_events=False, predicted_ttl_s=100.0)
        self._core = Router(rules, random.Random(0), on_decision=self.log.note)
        self._core.discover(INSTANCES, [Put(f"{ENDPOINT}/{i}", instance_value(i, ENDPOINT)) for i in WORKERS])
        self._core.discover(CARDS, [Put(f"{ENDPOINT}/{i}", card_value(i, ENDPOINT, {"model": "m"})) for i in WORKERS])
        self._core.receive(PEER, [Hello("a", 1)], 0.0)
        self._core.take_outgoing()
        self._serial = 0

    def place(self, prompt: str, worker: int | None = None, hints: RoutingHints | None = None) -> int:
        """A request for the blocks of `a.b.c` that goes on for ever; returns its worker."""
        self._serial += 1
        hashes = packed_hashes(prompt)
        num_tokens = len(hashes) // 8 * BLOCK_SIZE
        label = f"request {self._serial}"
        place = Place(self._serial, "m", num_tokens, hashes, instance_id=worker, label=label, hints=hints)
        self._core.receive(PEER, [place], 1.0)
        (answer,) = self._core.take_outgoing()[PEER]
        assert isinstance(answer, Placed)
        return answer.instance_id

    def complete_prefill(self) -> None:
        """Of the last request."""
        self._core.receive(PEER, [PrefillCompleted(self._serial)], 1.0)

    def free(self) -> None:
        """The last request."""
        self._core.receive(PEER, [Free(self._serial)], 1.0)
