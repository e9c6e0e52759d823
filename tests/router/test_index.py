"""Against a model that keeps every name of every rank, and the tokens it stands for, by itself."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo.router.held_blocks import MAX_ORPHANS
from dynamo.router.index import Matches, PrefixIndex
from dynamo.router.index_snapshot import Path, RankSnapshot
from dynamo.router.prefix_tree import pack
from dynamo.shared.hashing import sequence_hashes
from dynamo.shared.kv_events import TIERS, Change, KvEvent, Removed, RouterEvent, Stored, StoredBlock

DEVICE, HOST, DISK, EXTERNAL = TIERS
NUM_SLOTS = 3
ALL_SLOTS = (1 << NUM_SLOTS) - 1
PROMPT = [1, 2, 3, 4]
Tokens = tuple[int, ...]

slots = st.integers(0, NUM_SLOTS - 1)
tiers = st.sampled_from((DEVICE, DEVICE, DEVICE, HOST, DISK, EXTERNAL))
blocks = st.lists(st.integers(1, 3), min_size=1, max_size=5)
prompts = st.lists(st.integers(1, 3), max_size=8)


def prompt_of(tokens: Sequence[int]) -> bytes:
    """What is asked for a prompt whose blocks have these hashes."""
    return pack(sequence_hashes(tokens))


def held(matches: Matches, slot: int) -> list[int]:
    """Blocks per tier."""
    device = max((num for ranks, num in matches.device if ranks >> slot & 1), default=0)
    return [device, *(tier.get(slot, 0) for tier in matches[1:])]


class NaiveRank:
    """One rank: what each name stands for, per tier, and which names wait for their parent."""

    def __init__(self) -> None:
        self.names: dict[str, dict[int, Tokens]] = {tier: {} for tier in TIERS}
        self.orphans: dict[tuple[str, int], tuple[int, int]] = {}

    def store(self, tier: str, parent: int | None, names: list[int], tokens: list[int]) -> bool:
        before = () if parent is None else self.tokens_of(parent)
        if tier == DEVICE and (before is None or before not in {(), *self.covered()}):
            return False
        if before is not None:
            for i, name in enumerate(names):
                self.names[tier][name] = (*before, *tokens[: i + 1])
        elif parent is not None:
            for orphan, its_parent, its_tokens in zip(names, [parent, *names], tokens, strict=False):
                self.orphans[tier, orphan] = (its_parent, its_tokens)
        self.adopt()
        return True

    def adopt(self) -> None:
        """An orphan that is found is one no longer, whether as such or under its own name."""
        for _ in range(len(self.orphans)):
            for (tier, name), (parent, token) in list(self.orphans.items()):
                before = self.tokens_of(parent)
                if before is not None:
                    self.names[tier].setdefault(name, (*before, token))
                if name in self.names[tier]:
                    del self.orphans[tier, name]

    def remove(self, tier: str, name: int) -> None:
        self.names[tier].pop(name, None)
        self.orphans.pop((tier, name), None)

    def tokens_of(self, name: int) -> Tokens | None:
        return next((names[name] for names in self.names.values() if name in names), None)

    def covered(self) -> set[Tokens]:
        """What is on the device, and what is before that."""
        return {tokens[: i + 1] for tokens in self.names[DEVICE].values() for i in range(len(tokens))}

    def match(self, prompt: list[int]) -> list[int]:
        position, found = 0, []
        for tier in TIERS:
            start, there = position, set(self.names[tier].values())
            while position < len(prompt) and tuple(prompt[: position + 1]) in there:
                position += 1
            found.append(position - start)
        return found


class IndexMachine(RuleBasedStateMachine):
    """Blocks come and go in any order, under any name, also one that stands for another block already. Only the device
    is asked to store what follows an unknown name."""

    max_blocks = 10_000
    names = st.integers(1, 12)

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(self.max_blocks)
        self.ranks = [NaiveRank() for _ in range(NUM_SLOTS)]

    @rule(slot=slots, tier=tiers, tokens=blocks, data=st.data())
    def store(self, slot: int, tier: str, tokens: list[int], data: st.DataObject) -> None:
        rank = self.ranks[slot]
        known = sorted(name for names in rank.names.values() for name in names)
        parents = st.sampled_from(known) if known else st.none()
        parent = data.draw(st.none() | parents | self.names if tier == DEVICE else st.none() | parents)
        names = data.draw(st.lists(self.names, min_size=len(tokens), max_size=len(tokens)))
        is_known = rank.store(tier, parent, names, tokens)
        assert self.index.store(slot, tier, parent, names, tokens) == is_known

    @rule(slot=slots, tier=tiers, names=st.lists(names, max_size=4))
    def remove(self, slot: int, tier: str, names: list[int]) -> None:
        for name in names:
            self.ranks[slot].remove(tier, name)
        self.index.remove(slot, tier, names)

    @rule(slot=slots)
    def clear(self, slot: int) -> None:
        self.ranks[slot] = NaiveRank()
        self.index.clear(slot)

    @rule(slot=slots)
    def reload(self, slot: int) -> None:
        snapshot = msgspec.msgpack.decode(msgspec.msgpack.encode(self.index.dump(slot)), type=RankSnapshot)
        self.index.load(slot, snapshot)

    @rule(prompt=prompts, candidates=st.integers(0, ALL_SLOTS))
    def match(self, prompt: list[int], candidates: int) -> None:
        self.check(prompt, candidates)

    @precondition(lambda self: any(rank.names[DEVICE] for rank in self.ranks))
    @rule(data=st.data(), more=prompts)
    def match_what_there_is(self, data: st.DataObject, more: list[int]) -> None:
        known = sorted(tokens for rank in self.ranks for tokens in rank.names[DEVICE].values())
        self.check([*data.draw(st.sampled_from(known)), *more], ALL_SLOTS)

    def check(self, prompt: list[int], candidates: int) -> None:
        matches = self.index.match(prompt_of(prompt), candidates)
        check_shape(matches, candidates)
        for slot, rank in enumerate(self.ranks):
            is_candidate = candidates >> slot & 1
            assert held(matches, slot) == (rank.match(prompt) if is_candidate else [0, 0, 0, 0])

    @invariant()
    def counts_are_right(self) -> None:
        covered = [rank.covered() for rank in self.ranks]
        below = [{t for rank in self.ranks for t in rank.names[tier].values()} for tier in TIERS[1:]]
        on_device = [set(rank.names[DEVICE].values()) for rank in self.ranks]
        assert self.index.num_blocks == len(set().union(*covered)) + sum(map(len, below))
        assert self.index.num_holdings == sum(len(names) for rank in self.ranks for names in rank.names.values())
        assert self.index.num_holes == sum(len(all_) - len(own) for all_, own in zip(covered, on_device, strict=True))


class OrderlyIndexMachine(IndexMachine):
    """Engines name a prompt in one of two ways, so what follows an unknown name is found when that gets known."""

    names = st.builds(lambda tokens, way: name_of(tuple(tokens), way), blocks, st.integers(0, 1))

    @rule(slot=slots, tier=tiers, parent=prompts, way=st.integers(0, 1), tokens=blocks)
    def store(self, slot: int, tier: str, parent: list[int], way: int, tokens: list[int]) -> None:
        names = [name_of((*parent, *tokens[: i + 1]), way) for i in range(len(tokens))]
        parent_name = name_of(tuple(parent), way) if parent else None
        is_there = self.ranks[slot].store(tier, parent_name, names, tokens)
        self.check_stored(self.index.store(slot, tier, parent_name, names, tokens), is_there)

    def check_stored(self, is_stored: bool, is_there: bool) -> None:
        assert is_stored == is_there

    @rule(slot=slots)
    def reload(self, slot: int) -> None:
        """Orphans are not kept."""
        super().reload(slot)
        self.ranks[slot].orphans.clear()

    @invariant()
    def orphans_are_counted(self) -> None:
        assert self.index.num_orphans == sum(len(rank.orphans) for rank in self.ranks)


class CrowdedIndexMachine(OrderlyIndexMachine):
    """With a cap the index knows less than there is, and never more."""

    max_blocks = 12

    def check_stored(self, is_stored: bool, is_there: bool) -> None:
        assert is_stored <= is_there

    def check(self, prompt: list[int], candidates: int) -> None:
        matches = self.index.match(prompt_of(prompt), candidates)
        check_shape(matches, candidates)
        for slot, rank in enumerate(self.ranks):
            found, there = held(matches, slot), rank.match(prompt)
            assert all(sum(found[: i + 1]) <= sum(there[: i + 1]) for i in range(len(TIERS)))

    @invariant()
    def counts_are_right(self) -> None:
        num_names = sum(len(names) for rank in self.ranks for names in rank.names.values())
        assert self.index.num_blocks <= self.index.num_holdings + self.index.num_holes <= self.max_blocks
        assert self.index.num_holdings <= num_names

    @invariant()
    def orphans_are_counted(self) -> None:
        """Those whose parents were forgotten are more, those forgotten with a reload are less."""


TestIndex = IndexMachine.TestCase
TestOrderlyIndex = OrderlyIndexMachine.TestCase
TestCrowdedIndex = CrowdedIndexMachine.TestCase


def name_of(tokens: Tokens, way: int) -> int:
    return int("".join(map(str, tokens)), 4) + way * 2**60


def check_shape(matches: Matches, candidates: int) -> None:
    last_ranks, last_num = candidates, 0
    for ranks, num_blocks in matches.device:
        assert ranks
        assert ranks & ~last_ranks == 0
        assert num_blocks > last_num
        last_ranks, last_num = ranks, num_blocks
    assert all(num for tier in matches[1:] for num in tier.values())


# ---- one by one


@pytest.fixture
def index() -> PrefixIndex:
    """Slot 0 has four blocks named 101 to 104, slot 1 the first two of them as 201 and 202."""
    index = PrefixIndex(1000)
    index.store(0, DEVICE, None, [101, 102, 103, 104], PROMPT)
    index.store(1, DEVICE, None, [201, 202], PROMPT[:2])
    return index


def found(index: PrefixIndex, prompt: list[int], candidates: int = ALL_SLOTS) -> Matches:
    return index.match(prompt_of(prompt), candidates)


def test_a_match_says_how_far_each_rank_goes(index: PrefixIndex) -> None:
    assert found(index, [1, 2, 3, 4, 5]) == ([(0b11, 2), (0b01, 4)], {}, {}, {})
    assert found(index, [1, 2, 9]).device == [(0b11, 2)]
    assert found(index, [1, 2, 3], candidates=0b10).device == [(0b10, 2)]
    assert found(index, [2, 3, 4]).device == []
    assert found(index, []).device == []


def test_ranks_name_blocks_independently(index: PrefixIndex) -> None:
    index.store(1, DEVICE, 202, [101], [7])
    assert found(index, [1, 2, 7]).device == [(0b11, 2), (0b10, 3)]
    index.remove(0, DEVICE, [104])
    index.remove(1, DEVICE, [101])
    assert found(index, [1, 2, 7]).device == [(0b11, 2)]
    assert found(index, PROMPT).device == [(0b11, 2), (0b01, 3)]


def test_a_match_ends_before_a_hole_until_it_is_filled(index: PrefixIndex) -> None:
    index.remove(0, DEVICE, [102])
    assert found(index, PROMPT).device == [(0b11, 1), (0b10, 2)]
    assert index.num_holes == 1
    index.store(0, DEVICE, 101, [102], [2])
    assert found(index, PROMPT).device == [(0b11, 2), (0b01, 4)]
    assert index.num_holes == 0


def test_a_hole_is_forgotten_with_the_last_block_after_it(index: PrefixIndex) -> None:
    index.remove(0, DEVICE, [103, 102, 101])
    assert (index.num_holes, index.num_blocks, index.num_holdings) == (3, 4, 3)
    index.remove(0, DEVICE, [104])
    assert (index.num_holes, index.num_blocks, index.num_holdings) == (0, 2, 2)


def test_a_block_with_several_names_stays_until_all_are_gone(index: PrefixIndex) -> None:
    index.store(1, DEVICE, 201, [302], [2])
    index.store(1, DEVICE, 201, [402], [2])
    index.remove(1, DEVICE, [202])
    index.remove(1, DEVICE, [402])
    assert found(index, PROMPT).device == [(0b11, 2), (0b01, 4)]
    index.remove(1, DEVICE, [302])
    assert found(index, PROMPT).device == [(0b11, 1), (0b01, 4)]


def test_storing_again_changes_nothing(index: PrefixIndex) -> None:
    index.store(0, DEVICE, None, [101, 102, 103, 104], PROMPT)
    assert index.num_holdings == 6
    index.remove(0, DEVICE, [104])
    assert found(index, PROMPT).device == [(0b11, 2), (0b01, 3)]


def test_a_name_given_to_another_block_leaves_the_first(index: PrefixIndex) -> None:
    index.store(0, DEVICE, 103, [104], [9])
    assert found(index, PROMPT).device == [(0b11, 2), (0b01, 3)]
    assert found(index, [1, 2, 3, 9]).device == [(0b11, 2), (0b01, 4)]


def test_unknown_parents_and_removals_are_counted(index: PrefixIndex) -> None:
    assert not index.store(1, DEVICE, 103, [5], [5])  # a name of slot 0
    assert not index.store(2, DEVICE, 103, [5], [5])
    index.remove(1, DEVICE, [103, 202, 202])
    index.remove(2, HOST, [1])
    assert (index.num_unknown_parents, index.num_unknown_removals) == (2, 3)
    assert found(index, PROMPT).device == [(0b11, 1), (0b01, 4)]


def test_clearing_a_rank_leaves_the_others(index: PrefixIndex) -> None:
    index.store(0, HOST, 104, [105], [5])
    index.remove(0, DEVICE, [102])
    index.clear(0)
    assert found(index, [*PROMPT, 5]) == ([(0b10, 2)], {}, {}, {})
    assert (index.num_holes, index.num_blocks, index.num_holdings) == (0, 2, 2)
    assert not index.store(0, DEVICE, 101, [5], [5])


def test_lower_tiers_go_on_where_the_tiers_above_end(index: PrefixIndex) -> None:
    index.store(1, HOST, 202, [203], [3])
    index.store(1, DISK, 203, [204], [4])
    index.store(1, EXTERNAL, 204, [205, 206], [5, 6])
    index.store(0, DISK, 104, [105], [5])
    index.store(2, HOST, None, [301], [1])
    assert found(index, [1, 2, 3, 4, 5, 6]) == (
        [(0b011, 2), (0b001, 4)],
        {1: 1, 2: 1},
        {0: 1, 1: 1},
        {1: 2},
    )
    index.remove(1, HOST, [203])
    assert found(index, [1, 2, 3, 4, 5, 6])[1:] == ({2: 1}, {0: 1}, {})


def test_ranks_go_on_below_from_where_each_device_ends(index: PrefixIndex) -> None:
    index.store(1, HOST, 202, [203, 204, 205, 206], [3, 4, 5, 6])
    index.store(0, HOST, 104, [105], [5])
    index.store(2, HOST, None, [301, 302, 303], [1, 2, 3])
    assert found(index, [1, 2, 3, 4, 5, 6]).host == {0: 1, 1: 4, 2: 3}


def test_a_lower_tier_may_repeat_what_the_device_has(index: PrefixIndex) -> None:
    index.store(0, HOST, None, [101, 102, 103, 104], PROMPT)
    assert found(index, PROMPT) == ([(0b11, 2), (0b01, 4)], {}, {}, {})
    index.remove(0, DEVICE, [104, 103])
    assert found(index, PROMPT) == ([(0b11, 2)], {0: 2}, {}, {})


def test_below_the_device_blocks_wait_for_their_parent(index: PrefixIndex) -> None:
    index.remove(0, DEVICE, [104, 103, 102])
    index.store(0, HOST, 103, [104], [4])
    index.store(0, DISK, 102, [103], [3])
    assert found(index, PROMPT)[1:] == ({}, {}, {})
    assert index.num_orphans == 2
    index.store(0, HOST, 101, [102], [2])
    assert found(index, PROMPT)[1:] == ({0: 1}, {0: 1}, {})
    assert index.num_orphans == 0
    index.store(0, HOST, 102, [103], [3])
    assert found(index, PROMPT).host == {0: 3}


def test_a_block_found_otherwise_waits_no_longer(index: PrefixIndex) -> None:
    index.store(0, HOST, 909, [105], [6])
    index.store(0, HOST, 104, [105], [5])
    assert index.num_orphans == 0


def test_blocks_that_wait_can_be_removed(index: PrefixIndex) -> None:
    index.store(0, HOST, 204, [205, 206], [5, 6])
    index.remove(0, HOST, [205])
    assert (index.num_orphans, index.num_unknown_removals) == (1, 0)
    index.clear(0)
    assert index.num_orphans == 0


def test_only_so_many_blocks_wait(index: PrefixIndex) -> None:
    names = list(range(1000, 1001 + MAX_ORPHANS))
    assert not index.store(0, HOST, 999, names, names)
    assert index.num_orphans == MAX_ORPHANS
    assert index.num_unknown_parents == 1


def test_lower_tiers_go_on_where_the_device_is_believed_to_end(index: PrefixIndex) -> None:
    index.store(1, HOST, 202, [203, 204, 205], [3, 4, 5])
    matches = index.match(prompt_of([1, 2, 3, 4, 5]), ALL_SLOTS, predicted=[(0b110, 1), (0b010, 4)])
    assert matches == ([(0b111, 1), (0b011, 4)], {1: 1}, {}, {})


def test_the_device_cannot_go_on_where_it_has_nothing(index: PrefixIndex) -> None:
    index.store(1, HOST, 202, [203], [3])
    assert not index.store(1, DEVICE, 203, [204], [4])
    assert index.num_unknown_parents == 1


def test_an_unknown_tier_counts_as_external(index: PrefixIndex) -> None:
    index.store(1, "moon", 202, [203], [3])
    assert found(index, PROMPT).external == {1: 1}
    index.remove(1, "moon", [203])
    assert found(index, PROMPT).external == {}


def test_events_are_applied(index: PrefixIndex) -> None:
    def event(data: Change | str, tier: str = DEVICE) -> RouterEvent:
        return RouterEvent(worker_id=7, event=KvEvent(event_id=1, data=data), storage_tier=tier)  # type: ignore[arg-type]

    stored = [StoredBlock(block_hash=203, tokens_hash=3), StoredBlock(block_hash=204, tokens_hash=4)]
    assert index.apply(1, event(Change(stored=Stored(stored, parent_hash=202))))
    assert not index.apply(1, event(Change(stored=Stored(stored, parent_hash=999))))
    assert index.apply(1, event(Change(stored=Stored([StoredBlock(205, 5)], parent_hash=204)), HOST))
    assert found(index, [*PROMPT, 5]) == ([(0b11, 4)], {1: 1}, {}, {})
    assert index.apply(1, event(Change(removed=Removed([204]))))
    assert index.apply(1, event(Change(stored=Stored([]))))
    assert found(index, PROMPT).device == [(0b11, 3), (0b01, 4)]
    assert index.apply(0, event("cleared"))
    assert found(index, PROMPT).device == [(0b10, 3)]


def test_blocks_known_by_another_parent_are_not_stored(index: PrefixIndex) -> None:
    second = sequence_hashes(PROMPT)[1]
    index.store(2, DEVICE, None, [301, 302], [second, 3])
    assert index.num_conflicts == 1
    assert found(index, PROMPT).device == [(0b11, 2), (0b01, 4)]
    index.clear(0)
    index.clear(1)
    assert index.num_blocks == 0


def test_a_full_index_forgets_the_oldest_ends_first() -> None:
    index = PrefixIndex(8)
    index.store(0, DEVICE, None, [11, 12, 13, 14], [1, 2, 3, 4])
    index.store(0, DEVICE, 11, [21, 22], [5, 6])
    index.store(1, DEVICE, None, [11, 12], [1, 2])
    index.store(0, DEVICE, 22, [23], [7])
    assert index.num_evicted == 1
    assert found(index, [1, 2, 3, 4]).device == [(0b11, 2), (0b01, 3)]
    assert found(index, [1, 5, 6, 7]).device == [(0b11, 1), (0b01, 4)]
    assert index.num_holdings == 8


def test_a_prompt_longer_than_the_index_keeps_its_beginning() -> None:
    index = PrefixIndex(10)
    tokens = list(range(1, 101))
    index.store(0, DEVICE, None, tokens, tokens)
    assert found(index, tokens).device == [(0b1, 10)]
    assert index.num_evicted == 90


# ---- snapshots


def test_what_was_dumped_can_be_loaded_elsewhere(index: PrefixIndex) -> None:
    index.store(0, DEVICE, 102, [113, 114], [8, 9])
    index.store(0, HOST, 104, [105], [5])
    index.remove(0, DEVICE, [103])
    other = PrefixIndex(1000)
    other.load(5, index.dump(0))
    assert found(other, [1, 2, 8, 9], 1 << 5).device == [(1 << 5, 4)]
    assert found(other, PROMPT, 1 << 5).device == [(1 << 5, 2)]
    other.store(5, DEVICE, 102, [103], [3])
    assert found(other, [*PROMPT, 5], 1 << 5) == ([(1 << 5, 4)], {5: 1}, {}, {})


def test_loading_replaces_what_was_there(index: PrefixIndex) -> None:
    index.load(1, index.dump(2))
    assert found(index, PROMPT).device == [(0b01, 4)]


def test_a_snapshot_that_contradicts_itself_is_refused(index: PrefixIndex) -> None:
    paths, holdings = index.dump(0).paths, index.dump(0).holdings
    orphans = [Path(1234, paths[0].sequence_hashes)]
    for snapshot in (
        RankSnapshot(orphans, holdings),
        RankSnapshot(paths * 2, holdings),
        RankSnapshot([], holdings),
        RankSnapshot(paths, []),
        RankSnapshot([Path(None, paths[0].sequence_hashes[8:])], []),
        RankSnapshot([Path(None, b"odd")], []),
    ):
        with pytest.raises(ValueError, match=r"cannot load the prefix index|not a multiple"):
            index.load(0, snapshot)
        assert found(index, PROMPT).device == [(0b10, 2)]
        assert (index.num_holes, index.num_blocks, index.num_holdings) == (0, 2, 2)
