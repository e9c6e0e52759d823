"""The fleet as selectors see it: which ranks there are, what each holds of which prompt, and how much it has to do."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING

from dynamo.router.active import ActiveSequences
from dynamo.router.index import Matches, PrefixIndex
from dynamo.router.predicted import PredictedIndex
from dynamo.router.prefix_tree import Prefixes
from dynamo.router.ranks import Ranks
from dynamo.router.weights import Weights
from dynamo.shared.messages import Candidate, Place
from dynamo.shared.metrics import OVERHEAD_MS, Distribution
from dynamo.shared.protocol import RuntimeConfig

if TYPE_CHECKING:
    from dynamo.router.policies import PolicyRunner  # with numpy


class Fleet:
    """`num_active` counts requests per worker, whoever placed them. `index` follows KV events and `predicted` past
    placements; a router may keep both, either or none. `policies` are the operator's own, by worker type; `clock`
    counts seconds."""

    def __init__(
        self,
        rng: random.Random,
        num_active: dict[int, int],
        weights: Weights,
        index: PrefixIndex | None = None,
        predicted: PredictedIndex | None = None,
        *,
        role_weights: Mapping[str, Weights] | None = None,
        policies: Mapping[str, PolicyRunner] | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.rng = rng
        self.num_active = num_active
        self.weights = weights
        self.index = index
        self.predicted = predicted
        self._role_weights = role_weights or {}
        self._policies = policies or {}
        self._clock = clock
        self._match_ms = Distribution(OVERHEAD_MS)
        self.ranks = Ranks()
        self.sequences = ActiveSequences()

    # ---- how workers of a type are chosen

    def weights_for(self, worker_type: str) -> Weights:
        return self._role_weights.get(worker_type, self.weights)

    def policy_for(self, worker_type: str) -> PolicyRunner | None:
        return self._policies.get(worker_type)

    # ---- workers

    def up(self, instance_id: int, facts: RuntimeConfig) -> list[int]:
        """The slots that this worker got."""
        slots = self.ranks.up(instance_id, facts)
        self.sequences.reserve(self.ranks.num_slots)
        if self.predicted is not None:
            for slot in slots:
                self.predicted.set_capacity(slot, facts.total_kv_blocks)
        return slots

    def down(self, instance_id: int) -> list[int]:
        """The slots that it had; nothing of them is remembered."""
        slots = self.ranks.down(instance_id)
        for slot in slots:
            self.sequences.drop(slot)
            if self.index is not None:
                self.index.clear(slot)
            if self.predicted is not None:
                self.predicted.drop(slot)
        return slots

    def slot_for(self, instance_id: int, dp_rank: int | None) -> int | None:
        """Where the load of a request on this worker is counted: its first rank unless one was chosen."""
        if dp_rank is not None:
            return self.ranks.slot_of(instance_id, dp_rank)
        return next(iter(self.ranks.slots_of(instance_id).values()), None)

    # ---- requests

    def begin(
        self, key: Hashable, slot: int, place: Place, cached_tokens: int, block_size: int, weights: Weights, now: float
    ) -> None:
        """Count a request that was placed on this rank."""
        is_counted = weights.track_active_blocks
        self.sequences.add(
            key,
            slot,
            place.block_hashes if is_counted else b"",
            place.num_tokens if is_counted else 0,
            max(0, place.num_tokens - cached_tokens) if weights.track_prefill_tokens else 0,
            block_size,
            None if place.hints is None else place.hints.expected_output_tokens,
            shares_blocks=weights.assume_kv_reuse,
        )
        if self.predicted is not None:
            self.predicted.insert(slot, place.block_hashes, now)

    # ---- what is cached

    def match(self, block_hashes: bytes, candidates: int, now: float) -> Matches:
        """What ranks hold of a prompt: what their events say or what placements predict, whichever is more."""
        started = self._clock()
        found = self._match(block_hashes, candidates, now)
        self._match_ms.observe((self._clock() - started) * 1000)
        return found

    def take_match_ms(self) -> Distribution:
        """How long `match` took, each time since the last call."""
        taken, self._match_ms = self._match_ms, Distribution(OVERHEAD_MS)
        return taken

    def _match(self, block_hashes: bytes, candidates: int, now: float) -> Matches:
        predicted = [] if self.predicted is None else self.predicted.match(block_hashes, candidates, now)
        if self.index is None:
            return Matches(predicted, {}, {}, {})
        return self.index.match(block_hashes, candidates, predicted)

    def cached_blocks(self, instance_id: int, dp_rank: int | None, block_hashes: bytes, now: float) -> int | None:
        """Leading blocks of a prompt that a worker has in any tier; None where that is not followed."""
        slot = self.slot_for(instance_id, dp_rank)
        if slot is None or (self.index is None and self.predicted is None):
            return None
        found = self.match(block_hashes, 1 << slot, now)
        return most(found.device) + sum(tier.get(slot, 0) for tier in (found.host, found.disk, found.external))

    def most_cached(self, block_hashes: bytes, candidates: int, now: float) -> int:
        """Leading blocks of a prompt that the best of these ranks has on its device."""
        return most(self.match(block_hashes, candidates, now).device)

    # ---- for people

    def as_candidate(self, instance_id: int) -> Candidate:
        """A worker by its load alone, all its ranks together."""
        slots = self.ranks.slots_of(instance_id)
        sequences = self.sequences
        return Candidate(
            instance_id,
            next(iter(slots), 0),
            prefill_tokens=sum(sequences.prefill_tokens[slot] for slot in slots.values()),
            decode_blocks=sum(sequences.blocks[slot] for slot in slots.values()),
            num_requests=self.num_active.get(instance_id, 0),
        )


def most(found: Prefixes) -> int:
    """The most blocks that any of the ranks has."""
    return found[-1][1] if found else 0
