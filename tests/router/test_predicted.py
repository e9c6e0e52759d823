"""Against a model that keeps a time for every block of every rank."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dynamo.router.predicted import PredictedIndex
from dynamo.router.prefix_tree import pack
from dynamo.shared.hashing import sequence_hashes

NUM_SLOTS = 3
ALL_SLOTS = (1 << NUM_SLOTS) - 1
TTL_S = 10.0
Tokens = tuple[int, ...]

slots = st.integers(0, NUM_SLOTS - 1)
prompts = st.lists(st.integers(1, 3), max_size=6)


def prompt_of(tokens: Sequence[int]) -> bytes:
    return pack(sequence_hashes(tokens))


class PredictedMachine(RuleBasedStateMachine):
    """A block's time is that of the last prompt through it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.predicted = PredictedIndex(TTL_S)
        self.times: list[dict[Tokens, float]] = [{} for _ in range(NUM_SLOTS)]

    @rule(slot=slots, tokens=prompts)
    def insert(self, slot: int, tokens: list[int]) -> None:
        self.predicted.insert(slot, prompt_of(tokens), self.now)
        self.times[slot].update({tuple(tokens[: i + 1]): self.now for i in range(len(tokens))})

    @rule(seconds=st.sampled_from((1, 4, 10)))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.times = [{t: at for t, at in times.items() if at + TTL_S > self.now} for times in self.times]

    @rule(slot=slots)
    def drop(self, slot: int) -> None:
        self.predicted.drop(slot)
        self.times[slot] = {}

    @rule(tokens=prompts, candidates=st.integers(0, ALL_SLOTS))
    def match(self, tokens: list[int], candidates: int) -> None:
        found = self.predicted.match(prompt_of(tokens), candidates, self.now)
        for slot, times in enumerate(self.times):
            length = sum(tuple(tokens[: i + 1]) in times for i in range(len(tokens)))
            expected = length if candidates >> slot & 1 else 0
            assert max((num for ranks, num in found if ranks >> slot & 1), default=0) == expected

    @invariant()
    def counts_are_right(self) -> None:
        self.predicted.expire(self.now)
        assert self.predicted.num_blocks == sum(map(len, self.times))


class LruMachine(RuleBasedStateMachine):
    """A rank keeps the most recently placed blocks, of one prompt the first, up to its capacity."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.predicted = PredictedIndex(TTL_S, policy="lru")
        self.capacities: list[int] = []
        self.uses: list[dict[Tokens, tuple[int, int]]] = [{} for _ in range(NUM_SLOTS)]

    @initialize(capacities=st.lists(st.integers(1, 8), min_size=NUM_SLOTS, max_size=NUM_SLOTS))
    def set_capacities(self, capacities: list[int]) -> None:
        self.capacities = capacities
        for slot, capacity in enumerate(capacities):
            self.predicted.set_capacity(slot, capacity)

    @rule(slot=slots, tokens=prompts)
    def insert(self, slot: int, tokens: list[int]) -> None:
        self.turn += 1
        self.predicted.insert(slot, prompt_of(tokens), float(self.turn))
        uses = self.uses[slot]
        uses.update({tuple(tokens[: i + 1]): (self.turn, -i) for i in range(len(tokens))})
        self.uses[slot] = dict(sorted(uses.items(), key=lambda item: item[1], reverse=True)[: self.capacities[slot]])

    @rule(tokens=prompts)
    def match(self, tokens: list[int]) -> None:
        found = self.predicted.match(prompt_of(tokens), ALL_SLOTS, float(self.turn) + 1e9)
        for slot, uses in enumerate(self.uses):
            expected = sum(tuple(tokens[: i + 1]) in uses for i in range(len(tokens)))
            assert max((num for ranks, num in found if ranks >> slot & 1), default=0) == expected


TestPredicted = PredictedMachine.TestCase
TestLru = LruMachine.TestCase


def test_a_placement_is_believed_for_its_time_and_again_when_repeated() -> None:
    predicted = PredictedIndex(TTL_S)
    prompt = prompt_of([1, 2, 3])
    predicted.insert(0, prompt, 0.0)
    predicted.insert(1, prompt[:8], 4.0)
    assert predicted.match(prompt, ALL_SLOTS, 9.0) == [(0b11, 1), (0b01, 3)]
    predicted.insert(0, prompt[:16], 9.0)
    assert predicted.match(prompt, ALL_SLOTS, 10.0) == [(0b11, 1), (0b01, 2)]
    assert predicted.match(prompt, ALL_SLOTS, 19.0) == []
    assert (predicted.num_blocks, predicted.num_expired) == (0, 4)


def test_the_prompt_that_was_not_placed_again_goes_first() -> None:
    predicted = PredictedIndex(TTL_S, policy="lru")
    predicted.set_capacity(0, 4)
    for turn, tokens in enumerate(([1, 1], [2, 2], [1, 1], [3])):
        predicted.insert(0, prompt_of(tokens), float(turn))
    assert predicted.match(prompt_of([1, 1]), ALL_SLOTS, 4.0) == [(0b1, 2)]
    assert predicted.match(prompt_of([2, 2]), ALL_SLOTS, 4.0) == [(0b1, 1)]


def test_a_capacity_that_shrinks_holds_at_once() -> None:
    predicted = PredictedIndex(TTL_S, policy="lru")
    prompt = prompt_of([1, 2, 3, 4])
    predicted.insert(0, prompt, 0.0)
    predicted.set_capacity(0, 3)
    assert predicted.match(prompt, ALL_SLOTS, 0.0) == [(0b1, 3)]
    predicted.set_capacity(0, None)
    predicted.insert(0, prompt, 1.0)
    assert predicted.match(prompt, ALL_SLOTS, 1.0) == [(0b1, 4)]


@pytest.mark.parametrize("policy", ["ttl", "lru"])
def test_beyond_the_cap_the_oldest_of_all_ranks_go(policy: str) -> None:
    predicted = PredictedIndex(TTL_S, policy, max_blocks=4)
    for slot in range(3):
        predicted.insert(slot, prompt_of([slot, 1]), float(slot))
    assert predicted.num_blocks == 4
    assert predicted.num_evicted == 2
    assert predicted.match(prompt_of([0, 1]), ALL_SLOTS, 2.0) == []
    assert predicted.match(prompt_of([1, 1]), ALL_SLOTS, 2.0) == [(0b010, 2)]


def test_a_prompt_longer_than_the_cap_keeps_its_beginning() -> None:
    predicted = PredictedIndex(TTL_S, max_blocks=4)
    predicted.insert(0, prompt_of(range(10)), 0.0)
    assert predicted.match(prompt_of(range(10)), ALL_SLOTS, 0.0) == [(0b1, 4)]
