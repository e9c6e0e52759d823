"""Which blocks a rank holds, tier by tier: for counting references, and for telling a router that comes late."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Self

from msgspec import Struct

from dynamo.shared.kv_events import TIERS, Stored, StoredBlock

MAX_BLOCKS_PER_EVENT = 1024


class HeldBlock(Struct, gc=False):
    parent_hash: int | None
    tokens_hash: int
    mm_extra_info: Any
    num_references: int = 1


Tier = dict[int, HeldBlock]  # by the engine's hash


class HeldBlocks:
    """Engines may store a block that is there already, and remove it as often. Beyond `max_blocks` new ones are not
    remembered (`num_forgotten`): routers are told of them, but latecomers are not."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._tiers: dict[str, Tier] = {tier: {} for tier in TIERS}
        self.num_forgotten = 0

    def __len__(self) -> int:
        return sum(map(len, self._tiers.values()))

    def store(self, tier: str, stored: Stored) -> None:
        held, room = self._tiers[tier], self._max_blocks - len(self)
        parent_hash = stored.parent_hash
        for block in stored.blocks:
            if (known := held.get(block.block_hash)) is not None:
                known.num_references += 1
            elif room > 0:
                held[block.block_hash] = HeldBlock(parent_hash, block.tokens_hash, block.mm_extra_info)
                room -= 1
            else:
                self.num_forgotten += 1
            parent_hash = block.block_hash

    def release(self, tier: str, block_hashes: list[int]) -> list[int]:
        """Those that are gone now. One that was never seen is: its beginning may have been missed."""
        return [block_hash for block_hash in block_hashes if self._release(self._tiers[tier], block_hash)]

    def _release(self, held: Tier, block_hash: int) -> bool:
        if (block := held.get(block_hash)) is None:
            return True
        block.num_references -= 1
        if block.num_references:
            return False
        del held[block_hash]
        return True

    def clear(self) -> None:
        for held in self._tiers.values():
            held.clear()

    def snapshot(self) -> Self:
        """To be dumped at leisure, in another thread if need be."""
        snapshot = type(self)(self._max_blocks)
        snapshot._tiers = {tier: held.copy() for tier, held in self._tiers.items()}
        return snapshot

    def dump(self) -> Iterator[tuple[str, Stored]]:
        """Everything, a tier after the other, parents before their children where the parents are here."""
        for tier, held in self._tiers.items():
            for stored in _chains(held):
                yield tier, stored


def _chains(held: Tier) -> Iterator[Stored]:
    """Runs of only children, each as one."""
    tree = _Tree(held)
    heads = [block_hash for block_hash, block in held.items() if block.parent_hash not in held]
    for head in chain(heads, tree.left()):  # what no head leads to is a circle: an engine's mistake
        pending = [head]
        while pending:
            if names := tree.take_chain(pending.pop()):
                pending += reversed(tree.children(names[-1]))
                yield Stored([_stored_block(name, held[name]) for name in names], held[names[0]].parent_hash)


class _Tree:
    """Blocks below their parents, each to be taken once. Most have one child, so a list each would be a waste."""

    def __init__(self, held: Tier) -> None:
        self._first_child: dict[int | None, int] = {}
        self._several: dict[int | None, list[int]] = {}
        self._left = set(held)
        for block_hash, block in held.items():
            first = self._first_child.setdefault(block.parent_hash, block_hash)
            if first != block_hash:
                self._several.setdefault(block.parent_hash, [first]).append(block_hash)

    def left(self) -> Iterator[int]:
        while self._left:
            yield next(iter(self._left))

    def children(self, block_hash: int) -> list[int]:
        first = self._first_child.get(block_hash)
        return self._several.get(block_hash, [] if first is None else [first])

    def take_chain(self, head: int) -> list[int]:
        """Down to the first with several children, or none, of bounded length; empty if the head was taken already."""
        names: list[int] = []
        name: int | None = head
        while name in self._left and len(names) < MAX_BLOCKS_PER_EVENT:
            self._left.remove(name)
            names.append(name)
            name = None if name in self._several else self._first_child.get(name)
        return names


def _stored_block(block_hash: int, block: HeldBlock) -> StoredBlock:
    return StoredBlock(block_hash, block.tokens_hash, block.mm_extra_info)
