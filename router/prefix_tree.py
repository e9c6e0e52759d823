"""Which ranks have which prefixes: a radix tree kept flat, as a map from sequence hash to block.

One rule holds for every rank: if it covers a block, it covers the block's parent. So for any prompt the ranks' prefixes
are nested, and the places where they end are found by bisection, without a look at every block.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter

from msgspec import Struct

# What of a prompt each rank has: (ranks, num_blocks) with growing numbers and shrinking masks. A rank has the largest
# number whose mask it is in; a rank without any block is in no mask.
Prefixes = list[tuple[int, int]]


class Block(Struct, gc=False):
    """`ranks` is the mask of those that cover it; `parent` the sequence hash before it, None for a prompt's first."""

    ranks: int
    parent: int | None


class Coverage:
    """One rank's part of the tree. `num_children` has only the blocks that do not have exactly one child."""

    def __init__(self, slot: int) -> None:
        self.bit = 1 << slot
        self.num_blocks = 0
        self.num_children: dict[int, int] = {}

    @property
    def leaves(self) -> list[int]:
        return [sequence_hash for sequence_hash, num in self.num_children.items() if not num]

    def is_leaf(self, sequence_hash: int) -> bool:
        """Of a block that the rank covers."""
        return not self.num_children.get(sequence_hash, 1)


class PrefixTree:
    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}

    def covers(self, rank: Coverage, sequence_hash: int) -> bool:
        block = self.blocks.get(sequence_hash)
        return block is not None and block.ranks & rank.bit != 0

    def num_covered(self, rank: Coverage, chain: Sequence[int]) -> int:
        """How many of these consecutive blocks the rank covers."""
        if not chain or not self.covers(rank, chain[0]):
            return 0
        return bisect_left(chain, True, key=lambda sequence_hash: not self.covers(rank, sequence_hash))

    def extend(self, rank: Coverage, parent: int | None, chain: list[int]) -> int:
        """Let the rank cover consecutive blocks; it covers their parent and none of them. Returns how many: it ends
        before a block known to follow another parent, which only hashes that are wrong or made to collide can say."""
        blocks, find, bit, before, num_added = self.blocks, self.blocks.get, rank.bit, parent, 0
        for sequence_hash in chain:
            block = find(sequence_hash)
            if block is None:
                blocks[sequence_hash] = Block(bit, before)
            elif block.parent == before:
                block.ranks |= bit
            else:
                break
            before = sequence_hash
            num_added += 1
        if num_added:
            rank.num_blocks += num_added
            rank.num_children[chain[num_added - 1]] = 0
            if parent is not None:
                _count_child(rank, parent, 1)
        return num_added

    def remove_leaf(self, rank: Coverage, leaf: int) -> int | None:
        """Returns the block before it if that is a leaf now."""
        block = self.blocks[leaf]
        block.ranks ^= rank.bit
        if not block.ranks:
            del self.blocks[leaf]
        del rank.num_children[leaf]
        rank.num_blocks -= 1
        parent = block.parent
        return parent if parent is not None and not _count_child(rank, parent, -1) else None

    def remove(self, rank: Coverage) -> None:
        for leaf in rank.leaves:
            following: int | None = leaf
            while following is not None:
                following = self.remove_leaf(rank, following)

    def paths(self, rank: Coverage) -> Iterable[tuple[int | None, list[int]]]:
        """The rank's blocks, as arguments for `extend` in an order that it takes."""
        seen: set[int] = set()
        for leaf in rank.leaves:
            path: list[int] = []
            following: int | None = leaf
            while following is not None and following not in seen:
                path.append(following)
                following = self.blocks[following].parent
            seen.update(path)
            yield following, path[::-1]

    def prefixes(self, prompt: Sequence[int], candidates: int) -> Prefixes:
        """What these ranks cover of a prompt, given as its sequence hashes."""
        found: Prefixes = []
        find = self.blocks.get
        position, ranks = 0, self._ranks(prompt[0]) & candidates if prompt else 0
        ahead = [(len(prompt), 0)]  # positions already looked at, and who covers them; the nearest is last
        while ranks:
            next_position, next_ranks = ahead.pop()
            while next_ranks != ranks and next_position - position > 1:
                ahead.append((next_position, next_ranks))
                next_position = (position + next_position) // 2
                block = find(prompt[next_position])
                next_ranks = block.ranks & candidates if block is not None else 0
            if next_ranks != ranks:
                found.append((ranks, next_position))
            position, ranks = next_position, next_ranks
        return found

    def _ranks(self, sequence_hash: int) -> int:
        block = self.blocks.get(sequence_hash)
        return block.ranks if block is not None else 0


def _count_child(rank: Coverage, parent: int, change: int) -> int:
    num = rank.num_children.get(parent, 1) + change
    if num == 1:
        del rank.num_children[parent]
    else:
        rank.num_children[parent] = num
    return num


def ends(prefixes: Prefixes) -> Iterator[tuple[int, int]]:
    """(ranks, num_blocks) of those whose prefix is exactly that long."""
    for (ranks, num_blocks), (longer, _) in pairwise([*prefixes, (0, 0)]):
        yield ranks & ~longer, num_blocks


def cut(prefixes: Prefixes, cuts: Iterable[tuple[int, int]]) -> Prefixes:
    """Let the prefixes of some ranks end earlier: `cuts` are (ranks, num_blocks)."""
    left = prefixes[0][0] if prefixes else 0
    found: dict[int, int] = {}
    for ranks, num_blocks in sorted((*cuts, *ends(prefixes)), key=itemgetter(1)):
        if left & ranks:
            found.setdefault(num_blocks, left)
            left &= ~ranks
    return [(ranks, num_blocks) for num_blocks, ranks in found.items() if num_blocks]


def deepest(one: Prefixes, other: Prefixes) -> Prefixes:
    """For each rank the longer of its two prefixes."""
    if not one or not other:
        return one or other
    found: dict[int, int] = {}
    reached = 0
    for ranks, num_blocks in sorted((*one, *other), key=itemgetter(1), reverse=True):
        if ranks & ~reached:
            found[num_blocks] = reached = reached | ranks
    return [(ranks, num_blocks) for num_blocks, ranks in reversed(found.items())]


def pack(sequence_hashes: Iterable[int]) -> bytes:
    """Numbers to packed u64 LE."""
    return _little_endian(array("Q", sequence_hashes)).tobytes()


def unpack(block_hashes: bytes) -> array[int]:
    """Packed u64 LE to numbers. Raises ValueError if its length is not a multiple of eight."""
    return _little_endian(array("Q", block_hashes))


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
