"""Prefixes of ranks, against a look at every block."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo.router.prefix_tree import Coverage, Prefixes, PrefixTree, cut, deepest, ends, pack, unpack

NUM_SLOTS = 6
ALL_SLOTS = (1 << NUM_SLOTS) - 1

lengths = st.lists(st.integers(0, 200), min_size=NUM_SLOTS, max_size=NUM_SLOTS)


def prefixes_of(lengths: list[int]) -> Prefixes:
    """Of slots with these numbers of blocks."""
    return [
        (sum(1 << slot for slot, length in enumerate(lengths) if length >= num_blocks), num_blocks)
        for num_blocks in sorted(set(lengths) - {0})
    ]


@given(lengths, st.integers(1, 300), st.integers(0, ALL_SLOTS))
def test_prefixes_are_found_by_bisection(lengths: list[int], prompt_length: int, candidates: int) -> None:
    tree = PrefixTree()
    for slot, length in enumerate(lengths):
        if length:
            tree.extend(Coverage(slot), None, list(range(length)))
    expected = [min(length, prompt_length) if candidates >> slot & 1 else 0 for slot, length in enumerate(lengths)]
    assert tree.prefixes(range(prompt_length), candidates) == prefixes_of(expected)


@given(lengths, lengths)
def test_the_deeper_of_two(one: list[int], other: list[int]) -> None:
    assert deepest(prefixes_of(one), prefixes_of(other)) == prefixes_of(list(map(max, one, other)))


@given(lengths, st.lists(st.tuples(st.integers(0, NUM_SLOTS - 1), st.integers(0, 200))))
def test_cuts_end_prefixes_earlier(lengths: list[int], cuts: list[tuple[int, int]]) -> None:
    expected = list(lengths)
    for slot, num_blocks in cuts:
        expected[slot] = min(expected[slot], num_blocks)
    assert cut(prefixes_of(lengths), [(1 << slot, num) for slot, num in cuts]) == prefixes_of(expected)


@given(lengths)
def test_ends_name_each_rank_once(lengths: list[int]) -> None:
    found = {slot: num for ranks, num in ends(prefixes_of(lengths)) for slot in range(NUM_SLOTS) if ranks >> slot & 1}
    assert found == {slot: length for slot, length in enumerate(lengths) if length}


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_hashes_are_packed_as_little_endian(hashes: list[int]) -> None:
    packed = pack(hashes)
    assert packed == b"".join(value.to_bytes(8, "little") for value in hashes)
    assert unpack(packed).tolist() == hashes
