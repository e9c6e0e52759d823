"""What ranks are expected to hold because prompts were placed on them: for engines without KV events, and until the
events of the others arrive.

A placement stands for all blocks of its prompt, so only its last block is kept, with its time: the blocks before it
stay for its sake. A block's time is thus the latest placement of any prompt through it, at no cost per block.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import OrderedDict

from dynamo.router.prefix_tree import Coverage, Prefixes, PrefixTree, unpack

MAX_BLOCKS = 2**20


class PlacedBlocks(Coverage):
    """`placed_at` has the last blocks of prompts, the least recently placed first."""

    def __init__(self, slot: int) -> None:
        super().__init__(slot)
        self.placed_at: OrderedDict[int, float] = OrderedDict()

    @property
    def oldest(self) -> float:
        return next(iter(self.placed_at.values()), math.inf)


class PredictedIndex:
    """With policy "ttl" a block is believed for `ttl_s` seconds after its last placement; with "lru" until the rank has
    more blocks than `set_capacity` says, the least recently placed going first. Either way no more than `max_blocks`
    are kept, each counted per rank: beyond them the least recently placed go, a thousandth at a time.

    Times are seconds that never decrease. `num_expired` and `num_evicted` count blocks.
    """

    def __init__(self, ttl_s: float, policy: str = "ttl", max_blocks: int = MAX_BLOCKS) -> None:
        self.max_blocks = max_blocks
        self.num_blocks = 0
        self.num_expired = 0
        self.num_evicted = 0
        self._ttl_s = ttl_s if policy == "ttl" else math.inf
        self._is_lru = policy == "lru"
        self._capacities: dict[int, int] = {}
        self._tree = PrefixTree()
        self._ranks: dict[int, PlacedBlocks] = {}
        self._next_expiry = math.inf  # nothing expires before

    def set_capacity(self, slot: int, num_blocks: int | None) -> None:
        """How much the rank's engine can hold; None where it does not say. Only policy "lru" heeds it."""
        if num_blocks is None or not self._is_lru:
            self._capacities.pop(slot, None)
            return
        self._capacities[slot] = num_blocks
        if rank := self._ranks.get(slot):
            self._fit(rank, num_blocks)

    def insert(self, slot: int, block_hashes: bytes, now: float) -> None:
        """A prompt, given as packed u64 LE sequence hashes, was placed on this rank."""
        chain = unpack(block_hashes)
        if not chain:
            return
        rank = self._ranks.get(slot)
        if rank is None:
            rank = self._ranks[slot] = PlacedBlocks(slot)
        last = self._cover(rank, chain)
        if last is None:
            return
        rank.placed_at[last] = now
        rank.placed_at.move_to_end(last)
        self._next_expiry = min(self._next_expiry, now + self._ttl_s)
        if (capacity := self._capacities.get(slot)) is not None:
            self._fit(rank, capacity)
        if self.num_blocks > self.max_blocks:
            self._make_room()

    def match(self, block_hashes: bytes, candidates: int, now: float) -> Prefixes:
        """What ranks in the mask `candidates` are believed to hold of a prompt."""
        self.expire(now)
        return self._tree.prefixes(unpack(block_hashes), candidates)

    def drop(self, slot: int) -> None:
        """The rank is gone."""
        self._capacities.pop(slot, None)
        rank = self._ranks.pop(slot, None)
        if rank is not None:
            self.num_blocks -= rank.num_blocks
            self._tree.remove(rank)

    def expire(self, now: float) -> None:
        if now < self._next_expiry:
            return
        num_before = self.num_blocks
        for rank in self._ranks.values():
            while rank.oldest + self._ttl_s <= now:
                self._remove_oldest(rank)
        self.num_expired += num_before - self.num_blocks
        self._next_expiry = min((rank.oldest for rank in self._ranks.values()), default=math.inf) + self._ttl_s

    def _cover(self, rank: PlacedBlocks, chain: array[int]) -> int | None:
        """The last block of the prompt that the rank covers now: None only if hashes collide."""
        num_covered = self._tree.num_covered(rank, chain)
        if num_covered < len(chain):
            parent = chain[num_covered - 1] if num_covered else None
            num_added = self._tree.extend(rank, parent, chain[num_covered:].tolist())
            self.num_blocks += num_added
            num_covered += num_added
        return chain[num_covered - 1] if num_covered else None

    def _remove_oldest(self, rank: PlacedBlocks) -> None:
        """Forget the end of the rank's oldest prompt: one block, unless another prompt goes through it."""
        last, placed_at = rank.placed_at.popitem(last=False)
        if not rank.is_leaf(last):
            return
        self.num_blocks -= 1
        before = self._tree.remove_leaf(rank, last)
        if before is not None and before not in rank.placed_at:
            rank.placed_at[before] = placed_at
            rank.placed_at.move_to_end(before, last=False)

    def _fit(self, rank: PlacedBlocks, capacity: int) -> None:
        num_before = self.num_blocks
        while rank.num_blocks > capacity:
            self._remove_oldest(rank)
        self.num_evicted += num_before - self.num_blocks

    def _make_room(self) -> None:
        num_before = self.num_blocks
        wanted = self.max_blocks - self.max_blocks // 1024
        by_age = [(rank.oldest, slot) for slot, rank in self._ranks.items()]
        heapq.heapify(by_age)
        while self.num_blocks > wanted:
            slot = by_age[0][1]
            self._remove_oldest(self._ranks[slot])
            heapq.heapreplace(by_age, (self._ranks[slot].oldest, slot))
        self.num_evicted += num_before - self.num_blocks
