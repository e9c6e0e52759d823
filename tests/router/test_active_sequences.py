"""Against a model that keeps every block of every request by itself."""

from __future__ import annotations

import itertools
import random
import struct
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dynamo.router.active import ActiveSequences
from dynamo.router.prompt_tree import Node, PromptTree
from dynamo.shared.hashing import sequence_hashes

BLOCK_SIZE = 4
NUM_SLOTS = 3
ALL_SLOTS = (1 << NUM_SLOTS) - 1


def pack(blocks: Sequence[int]) -> bytes:
    """The sequence hashes of a prompt whose blocks hash to these numbers."""
    hashes = sequence_hashes(blocks)
    return struct.pack(f"<{len(hashes)}Q", *hashes)


class NaiveRequest:
    def __init__(
        self, slot: int, prompt: list[int], num_tokens: int, prefill_tokens: int, expected: int | None
    ) -> None:
        self.slot = slot
        self.prefixes = [tuple(prompt[: i + 1]) for i in range(len(prompt))]
        self.num_tokens = num_tokens
        self.prefill_tokens = prefill_tokens
        self.expected = expected
        self.num_output_blocks = 0
        self.discount = 0.0


class NaiveLoad:
    """What ActiveSequences says it does, block by block."""

    def __init__(self) -> None:
        self.requests: dict[int, NaiveRequest] = {}

    def of(self, slot: int) -> list[NaiveRequest]:
        return [request for request in self.requests.values() if request.slot == slot]

    def owners(self, slot: int) -> Counter[tuple[int, ...]]:
        return Counter(prefix for request in self.of(slot) for prefix in request.prefixes)

    def blocks(self, slot: int) -> float:
        own = sum(request.num_output_blocks - request.discount for request in self.of(slot))
        return len(self.owners(slot)) + own

    def grow(self, key: int, num_blocks: int) -> None:
        request = self.requests[key]
        request.num_output_blocks += num_blocks
        if request.expected:
            owners = self.owners(request.slot)
            exclusive = sum(owners[prefix] == 1 for prefix in request.prefixes) + request.num_output_blocks
            length = request.num_tokens
            blocks_before = -(-length // BLOCK_SIZE) + request.num_output_blocks - 1
            generated = blocks_before * BLOCK_SIZE + 1 - length
            request.discount = exclusive * min(1, generated / request.expected)

    def match(self, prompt: list[int], slot: int) -> int:
        owned = self.owners(slot)
        return sum(tuple(prompt[: i + 1]) in owned for i in range(len(prompt)))


KEYS = st.integers(0, 11)
PROMPTS = st.lists(st.integers(0, 1), max_size=9)


class ActiveSequencesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.active = ActiveSequences()
        self.active.reserve(NUM_SLOTS)
        self.naive = NaiveLoad()

    @rule(
        key=KEYS,
        slot=st.integers(0, NUM_SLOTS - 1),
        prompt=PROMPTS,
        rest=st.integers(0, BLOCK_SIZE - 1),
        expected=st.none() | st.integers(1, 20),
    )
    def add(self, key: int, slot: int, prompt: list[int], rest: int, expected: int | None) -> None:
        num_tokens = len(prompt) * BLOCK_SIZE + rest
        prefill_tokens = num_tokens // 2
        self.active.add(key, slot, pack(prompt), num_tokens, prefill_tokens, BLOCK_SIZE, expected)
        self.naive.requests[key] = NaiveRequest(slot, prompt, num_tokens, prefill_tokens, expected)

    @rule(key=KEYS)
    def complete_prefill(self, key: int) -> None:
        request = self.naive.requests.get(key)
        was_load = request is not None and request.prefill_tokens > 0
        assert self.active.complete_prefill(key) == was_load
        if request is not None:
            request.prefill_tokens = 0

    @rule(key=KEYS, num_blocks=st.integers(1, 3))
    def grow_output(self, key: int, num_blocks: int) -> None:
        self.active.grow_output(key, num_blocks)
        if key in self.naive.requests:
            self.naive.grow(key, num_blocks)

    @rule(key=KEYS)
    def free(self, key: int) -> None:
        assert self.active.free(key) == (self.naive.requests.pop(key, None) is not None)

    @rule(slot=st.integers(0, NUM_SLOTS - 1))
    def drop(self, slot: int) -> None:
        self.active.drop(slot)
        self.naive.requests = {k: request for k, request in self.naive.requests.items() if request.slot != slot}

    @rule(prompt=PROMPTS, candidates=st.integers(0, ALL_SLOTS))
    def match(self, prompt: list[int], candidates: int) -> None:
        found = self.active.match(pack(prompt), candidates)
        for slot in range(NUM_SLOTS):
            num_blocks = max((num for slots, num in found if slots >> slot & 1), default=0)
            assert num_blocks == (self.naive.match(prompt, slot) if candidates >> slot & 1 else 0)
        for (outer, fewer), (inner, more) in itertools.pairwise(found):
            assert fewer < more
            assert inner != outer
            assert inner & outer == inner

    @invariant()
    def agrees(self) -> None:
        for slot in range(NUM_SLOTS):
            requests = self.naive.of(slot)
            assert self.active.num_requests[slot] == len(requests)
            assert self.active.prefill_tokens[slot] == sum(request.prefill_tokens for request in requests)
            assert self.active.blocks[slot] == pytest.approx(self.naive.blocks(slot), abs=1e-9)
            if not requests:
                assert self.active.blocks[slot] == 0.0


TestActiveSequences = ActiveSequencesMachine.TestCase


# --------------------------------------------------------------------------- stories, in blocks of 16 tokens


@pytest.fixture
def active() -> ActiveSequences:
    active = ActiveSequences()
    active.reserve(2)
    return active


def begin(
    active: ActiveSequences,
    key: str,
    prompt: Sequence[int],
    *,
    slot: int = 0,
    expected: int | None = None,
    shares_blocks: bool = True,
) -> None:
    num_tokens = 16 * len(prompt)
    active.add(key, slot, pack(prompt), num_tokens, num_tokens, 16, expected, shares_blocks=shares_blocks)


def test_shared_blocks_count_once_per_rank(active: ActiveSequences) -> None:
    begin(active, "one", [1, 2, 3])
    begin(active, "two", [1, 2, 4, 5])
    begin(active, "elsewhere", [1, 2, 3], slot=1)
    assert active.blocks.tolist() == [5, 3]
    assert active.prefill_tokens.tolist() == [112, 48]
    assert active.num_requests.tolist() == [2, 1]
    assert active.match(pack([1, 2, 3, 9]), 0b11) == [(0b11, 3)]
    assert active.match(pack([1, 2, 4, 5, 6]), 0b11) == [(0b11, 2), (0b01, 4)]
    active.free("two")
    assert active.blocks.tolist() == [3, 3]
    assert active.match(pack([1, 2, 4, 5]), 0b10) == [(0b10, 2)]


def test_requests_that_share_nothing_count_all_their_blocks(active: ActiveSequences) -> None:
    begin(active, "one", [1, 2], shares_blocks=False)
    begin(active, "two", [1, 2], shares_blocks=False)
    assert active.blocks[0] == 4
    assert active.match(pack([1, 2]), 0b1) == []
    active.free("one")
    assert active.blocks[0] == 2


def test_a_prompt_without_hashes_counts_as_tokens_only(active: ActiveSequences) -> None:
    active.add("bare", 0, b"", 100, 60, 16, None)
    assert (active.prefill_tokens[0], active.blocks[0], active.num_requests[0]) == (60, 0, 1)


def test_prefill_is_over_once(active: ActiveSequences) -> None:
    begin(active, "one", [1])
    assert active.complete_prefill("one")
    assert not active.complete_prefill("one")
    assert not active.complete_prefill("unknown")
    assert active.prefill_tokens[0] == 0


def test_a_request_that_begins_again_moves(active: ActiveSequences) -> None:
    begin(active, "one", [1, 2])
    begin(active, "one", [1, 2, 3], slot=1)
    assert active.blocks.tolist() == [0, 3]
    assert active.num_requests.tolist() == [0, 1]


def test_output_weighs_less_the_more_of_it_has_come(active: ActiveSequences) -> None:
    begin(active, "long", [1, 2, 3, 4], expected=65)
    begin(active, "other", [1, 2, 9])
    active.grow_output("long")  # its first token; 2 prompt blocks and 1 of output are its own
    assert active.blocks[0] == pytest.approx(2 + 1 + 3 * 64 / 65)
    active.grow_output("long", 2)  # its 33rd
    assert active.blocks[0] == pytest.approx(2 + 1 + 5 * 32 / 65)
    active.grow_output("long", 3)  # more than expected
    assert active.blocks[0] == 2 + 1
    active.free("long")
    assert active.blocks[0] == 3


def test_output_without_an_expectation_keeps_its_weight(active: ActiveSequences) -> None:
    begin(active, "one", [1, 2])
    active.grow_output("one", 3)
    assert active.blocks[0] == 5


def test_the_first_output_block_begins_after_a_partial_prompt_block(active: ActiveSequences) -> None:
    """Dynamo counts a block when prompt and output together need one more: 17 tokens of prompt leave room for 15."""
    active.add("one", 0, pack([1]), 17, 17, 16, 32)
    active.grow_output("one")  # the 16th token
    assert active.blocks[0] == pytest.approx(2 * 16 / 32)


def test_a_rank_that_is_gone_takes_its_load_along(active: ActiveSequences) -> None:
    begin(active, "one", [1, 2])
    begin(active, "two", [1, 2], slot=1)
    active.drop(0)
    assert active.blocks.tolist() == [0, 2]
    assert not active.free("one")
    assert active.free("two")
    assert len(active) == 0


def test_room_for_more_ranks_leaves_views_of_the_arrays_alone(active: ActiveSequences) -> None:
    begin(active, "one", [1, 2])
    view = memoryview(active.blocks)
    active.reserve(5)
    assert active.blocks.tolist() == [2, 0, 0, 0, 0]
    assert view.tolist() == [2, 0]
    active.reserve(3)
    assert len(active.num_requests) == 5


# --------------------------------------------------------------------------- the tree


def test_branching_points_are_found_in_long_prompts() -> None:
    rng = random.Random(3)
    trunk = pack([rng.getrandbits(64) for _ in range(3750)])
    active = ActiveSequences()
    active.reserve(2)
    active.add("trunk", 0, trunk, 60_000, 0, 16, None)
    for cut in [1, 2, 3, 1875, 3748, 3749, *(rng.randrange(1, 3750) for _ in range(50))]:
        branch = trunk[: 8 * cut] + rng.randbytes(8 * (3750 - cut))
        assert active.match(branch, 0b1) == [(0b1, cut)]
        active.add("branch", 0, branch, 60_000, 0, 16, None)
        assert active.blocks[0] == 3750 + (3750 - cut)
        active.add("twig", 1, branch[: 8 * (cut + 1)], 16 * (cut + 1), 0, 16, None)
        assert active.match(branch, 0b11) == ([(0b11, cut + 1), (0b01, 3750)] if cut + 1 < 3750 else [(0b11, 3750)])
        active.free("branch")


def test_the_tree_grows_with_requests_and_not_with_what_there_once_was() -> None:
    rng = random.Random(4)
    trunk = pack(range(200))
    tree = PromptTree()
    live: list[tuple[Node, int]] = []
    for _ in range(3000):
        prompt = trunk[: 8 * rng.randrange(201)] + rng.randbytes(8 * rng.randrange(3))
        slot = rng.randrange(3)
        end, _num_new = tree.hold(prompt, slot)
        live.append((end, slot))
        if len(live) > 20:
            tree.release(*live.pop(rng.randrange(len(live))))
        assert len(tree) < 2 * len(live)
    for end, slot in live:
        tree.release(end, slot)
    assert len(tree) == 0
