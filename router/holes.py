"""Blocks that a rank covers in the prefix tree, because of what follows them, and does not hold on its device."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo.router.held_blocks import HeldBlocks
from dynamo.router.prefix_tree import Prefixes, cut


class Holes:
    """`ranks` is the mask of those that have any; `len` counts each hole of each rank."""

    def __init__(self) -> None:
        self.ranks = 0
        self._num = 0
        self._ranks: dict[int, int] = {}  # sequence hash -> mask

    def __len__(self) -> int:
        return self._num

    def make(self, rank: HeldBlocks, sequence_hash: int) -> None:
        self._ranks[sequence_hash] = self._ranks.get(sequence_hash, 0) | rank.bit
        self.ranks |= rank.bit
        self._num += 1
        rank.num_holes += 1

    def fill(self, rank: HeldBlocks, sequence_hash: int) -> bool:
        """Whether there was one."""
        ranks = self._ranks.get(sequence_hash, 0)
        if not ranks & rank.bit:
            return False
        if rest := ranks ^ rank.bit:
            self._ranks[sequence_hash] = rest
        else:
            del self._ranks[sequence_hash]
        self._num -= 1
        rank.num_holes -= 1
        if not rank.num_holes:
            self.ranks ^= rank.bit
        return True

    def fill_all(self, rank: HeldBlocks) -> None:
        if rank.num_holes:
            for sequence_hash in list(self._ranks):
                self.fill(rank, sequence_hash)

    def end_before(self, prefixes: Prefixes, prompt: Sequence[int]) -> Prefixes:
        """Prefixes of a prompt, given as its sequence hashes, up to each rank's first hole."""
        if not prefixes or not prefixes[0][0] & self.ranks:
            return prefixes
        covered = prompt[: prefixes[-1][1]]
        holes = self._ranks
        if holes.keys().isdisjoint(covered):
            return prefixes
        return cut(prefixes, [(holes[block], position) for position, block in enumerate(covered) if block in holes])
