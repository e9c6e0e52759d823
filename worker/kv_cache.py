"""A paged KV cache without the memory: which blocks would be there, which would have to go.

A block is *anonymous* while it fills up, *active* once full, hashed and used by a sequence, *cached* when no sequence
uses it any more. Cached blocks make room for new ones, the least recently used first. Full blocks of the same sequence
hash are one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dynamo.shared.kv_events import Stored, StoredBlock


class KvListener(Protocol):
    """Told what enters and leaves the cache, in order. Blocks are named by their sequence hashes."""

    def stored(self, stored: Stored) -> None: ...

    def removed(self, block_hashes: list[int]) -> None: ...

    def cleared(self) -> None: ...


class BlockPool:
    def __init__(self, num_blocks: int, listener: KvListener | None = None, *, keeps_finished: bool = True) -> None:
        self.num_blocks = num_blocks
        self._listener = listener
        self._keeps_finished = keeps_finished
        self._num_anonymous = 0
        self._active: dict[int, int] = {}  # sequence hash -> how many sequences use it
        self._cached: dict[int, None] = {}  # sequence hash, least recently used first

    @property
    def num_used(self) -> int:
        """Blocks that running sequences hold."""
        return self._num_anonymous + len(self._active)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out, by eviction if need be."""
        return self.num_blocks - self.num_used

    def match(self, sequence_hashes: Sequence[int]) -> int:
        """How many leading blocks are here."""
        for position, block in enumerate(sequence_hashes):
            if block not in self._active and block not in self._cached:
                return position
        return len(sequence_hashes)

    def can_reuse(self, sequence_hashes: Sequence[int], num_new: int) -> bool:
        """Whether these blocks, all here, can be used together with `num_new` anonymous ones."""
        num_revived = sum(block in self._cached for block in sequence_hashes)
        return num_revived + num_new <= self.num_available

    def reuse(self, sequence_hashes: Sequence[int]) -> None:
        """Use blocks that are here for one more sequence."""
        for block in sequence_hashes:
            self._cached.pop(block, None)
            self._active[block] = self._active.get(block, 0) + 1

    def allocate(self, num_blocks: int) -> bool:
        """Take anonymous blocks, all or none; evicts what must go."""
        if num_blocks > self.num_available:
            return False
        self._evict(num_blocks - (self.num_available - self.num_cached))
        self._num_anonymous += num_blocks
        return True

    def commit(self, parent_hash: int | None, blocks: Sequence[StoredBlock]) -> None:
        """Anonymous blocks are full now. One that is here already is merged, which frees the anonymous one."""
        stored: list[StoredBlock] = []
        for block in blocks:
            self._num_anonymous -= 1
            if block.block_hash in self._active or block.block_hash in self._cached:
                self._announce(parent_hash, stored)
                stored, parent_hash = [], block.block_hash
            else:
                stored.append(block)
            self.reuse((block.block_hash,))
        self._announce(parent_hash, stored)

    def release(self, sequence_hashes: Sequence[int], num_anonymous: int) -> None:
        """A sequence lets go of its blocks. Its tail is the first to be evicted: others share its beginning."""
        self._num_anonymous -= num_anonymous
        dropped = []
        for block in reversed(sequence_hashes):
            self._active[block] -= 1
            if self._active[block]:
                continue
            del self._active[block]
            if self._keeps_finished:
                self._cached[block] = None
            else:
                dropped.append(block)
        self._forget(dropped)

    def clear(self) -> bool:
        """Forget the blocks that nobody uses. Only an idle cache is cleared: blocks in use have parents here."""
        if self.num_used:
            return False
        self._cached.clear()
        if self._listener is not None:
            self._listener.cleared()
        return True

    def _evict(self, count: int) -> None:
        evicted = [block for block, _ in zip(self._cached, range(count), strict=False)]
        for block in evicted:
            del self._cached[block]
        self._forget(evicted)

    def _announce(self, parent_hash: int | None, stored: list[StoredBlock]) -> None:
        if stored and self._listener is not None:
            self._listener.stored(Stored(stored, parent_hash))

    def _forget(self, blocks: list[int]) -> None:
        if blocks and self._listener is not None:
            self._listener.removed(blocks)
