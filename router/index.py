"""What every rank holds in its KV cache, as its events tell: which leading blocks of a prompt, in which tier.

An engine names a block as it likes; the tokens of a block and of all before it make its sequence hash. Names are kept
per rank, sequence hashes for all ranks together (`PrefixTree`, and `LowerTier` for each tier below the device).

An engine may remove a block from its device and keep what follows. The tree goes on covering such a *hole*, so that
prefixes stay nested, and a match ends before it. A hole goes when it is filled, or with the last block after it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from dynamo.router.held_blocks import HeldBlocks
from dynamo.router.holes import Holes
from dynamo.router.index_snapshot import Holdings, Path, RankSnapshot
from dynamo.router.lower_tier import LowerTier, slots_of
from dynamo.router.prefix_tree import Prefixes, PrefixTree, deepest, ends, pack, unpack
from dynamo.shared.hashing import sequence_hashes
from dynamo.shared.kv_events import CLEARED, TIERS, RouterEvent

DEVICE, HOST, DISK, EXTERNAL = TIERS


class Matches(NamedTuple):
    """What of a prompt the ranks hold. The lower tiers give, per slot, how many blocks follow on what the tiers above
    hold; slots with none are left out."""

    device: Prefixes
    host: dict[int, int]
    disk: dict[int, int]
    external: dict[int, int]


class PrefixIndex:
    """Holds at most `max_blocks` names and holes, so at most as many blocks, and a few orphans besides. When they
    become more, the rank and tier with the most forgets the oldest of its blocks that no other follows, until one in
    256 is free: matches of that rank become shorter, and what its engine says of them later counts as unknown.

    `num_unknown_parents` and `num_conflicts` count stored events that could not be applied, or not to their end;
    `num_unknown_removals` and `num_evicted` count blocks.
    """

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self.num_holdings = 0
        self.num_evicted = 0
        self.num_unknown_parents = 0
        self.num_conflicts = 0
        self.num_unknown_removals = 0
        self._tree = PrefixTree()
        self._lower = {tier: LowerTier() for tier in (HOST, DISK, EXTERNAL)}
        self._ranks: dict[int, HeldBlocks] = {}
        self._holes = Holes()
        self._ranks_with_lower = 0

    @property
    def num_blocks(self) -> int:
        """Different sequence hashes; one that is in several tiers counts in each."""
        return len(self._tree.blocks) + sum(map(len, self._lower.values()))

    @property
    def num_holes(self) -> int:
        return len(self._holes)

    @property
    def num_orphans(self) -> int:
        """Blocks that wait for their parent."""
        return sum(len(rank.orphans) for rank in self._ranks.values())

    # ---- what engines say

    def apply(self, slot: int, event: RouterEvent) -> bool:
        """Whether it could be applied; see `store`."""
        change = event.event.data
        if change == CLEARED:
            self.clear(slot)
        elif stored := change.stored:
            names = [block.block_hash for block in stored.blocks]
            tokens_hashes = [block.tokens_hash for block in stored.blocks]
            return self.store(slot, event.storage_tier, stored.parent_hash, names, tokens_hashes)
        elif removed := change.removed:
            self.remove(slot, event.storage_tier, removed.block_hashes)
        return True

    def store(
        self, slot: int, tier: str, parent: int | None, block_hashes: list[int], tokens_hashes: list[int]
    ) -> bool:
        """Consecutive blocks, by the engine's names and the hashes of their tokens; `parent` is a name, None at the
        start of a prompt. An unknown tier counts as external. False if the rank does not know the parent, or if the
        device should go on where it has nothing: then nothing is stored. Below the device, blocks wait for a parent
        that is unknown, and False says that there are too many of them."""
        if not block_hashes:
            return True
        tier = _known(tier)
        rank = self._ranks.get(slot)
        if rank is None:
            rank = self._ranks[slot] = HeldBlocks(slot)
        after = None if parent is None else rank.sequence_of(parent)
        is_kept = True
        if parent is None or self._can_follow(rank, tier, after):
            self._store_blocks(rank, tier, after, block_hashes, tokens_hashes)
        else:
            is_kept = tier != DEVICE and self._store_orphans(rank, tier, parent, block_hashes, tokens_hashes)
            self.num_unknown_parents += not is_kept
        if self._size > self.max_blocks:
            self._make_room()
        return is_kept

    def remove(self, slot: int, tier: str, block_hashes: list[int]) -> None:
        """Blocks by the engine's names; unknown ones are counted and ignored."""
        tier = _known(tier)
        rank = self._ranks.get(slot)
        if rank is None:
            self.num_unknown_removals += len(block_hashes)
            return
        names = rank.names[tier]
        for name in block_hashes:
            if name in names:
                self._remove_name(rank, tier, name)
            elif not rank.orphans.remove(tier, name):
                self.num_unknown_removals += 1
        self._note_lower_tiers(rank)

    def clear(self, slot: int) -> None:
        """The rank holds nothing any more, in no tier."""
        rank = self._ranks.pop(slot, None)
        if rank is None:
            return
        self._tree.remove(rank)
        self._holes.fill_all(rank)
        for tier, names in rank.names.items():
            self.num_holdings -= len(names)
            if tier != DEVICE:
                for sequence_hash in set(names.values()):
                    self._lower[tier].remove(rank.bit, sequence_hash)
        self._ranks_with_lower &= ~rank.bit

    # ---- what routing asks

    def match(self, block_hashes: bytes, candidates: int, predicted: Prefixes | None = None) -> Matches:
        """What ranks in the mask `candidates` hold of a prompt, given as packed u64 LE sequence hashes. On their
        devices they are believed to have what is `predicted`, too; the lower tiers go on from there."""
        prompt = unpack(block_hashes)
        device = self._holes.end_before(self._tree.prefixes(prompt, candidates), prompt)
        if predicted:
            device = deepest(device, predicted)
        if below := candidates & self._ranks_with_lower:
            return Matches(device, *self._continue_below(device, prompt, below))
        return Matches(device, {}, {}, {})

    def _continue_below(self, device: Prefixes, prompt: array[int], ranks: int) -> list[dict[int, int]]:
        reached = dict.fromkeys(slots_of(ranks), 0)
        for ending, num_blocks in ends(device):
            reached.update(dict.fromkeys(slots_of(ending & ranks), num_blocks))
        found = []
        for tier in self._lower.values():
            runs = tier.runs(prompt, reached)
            found.append(runs)
            for slot, num_blocks in runs.items():
                reached[slot] += num_blocks
        return found

    # ---- snapshots

    def dump(self, slot: int) -> RankSnapshot:
        """All that the rank holds, for `load`."""
        rank = self._ranks.get(slot) or HeldBlocks(slot)
        return RankSnapshot(
            [Path(parent, pack(chain)) for parent, chain in self._tree.paths(rank)],
            [Holdings(tier, pack(names), pack(names.values())) for tier, names in rank.names.items()],
        )

    def load(self, slot: int, snapshot: RankSnapshot) -> None:
        """Let the rank hold what another or an earlier index has dumped, and nothing else. Raises ValueError for a
        snapshot that contradicts itself; then the rank holds nothing."""
        self.clear(slot)
        rank = self._ranks[slot] = HeldBlocks(slot)
        try:
            self._load_paths(rank, snapshot.paths)
            for holdings in snapshot.holdings:
                self._load_names(rank, holdings)
            _check_leaves(rank)
        except ValueError:
            self.clear(slot)
            raise
        if self._size > self.max_blocks:
            self._make_room()

    def _load_paths(self, rank: HeldBlocks, paths: list[Path]) -> None:
        """All blocks are holes until they get a name."""
        for path in paths:
            chain = unpack(path.sequence_hashes).tolist()
            is_new = len(set(chain)) == len(chain) and not any(self._tree.covers(rank, block) for block in chain)
            if not chain or not is_new or not (path.parent is None or self._tree.covers(rank, path.parent)):
                raise ValueError("cannot load the prefix index: a path repeats blocks or has no known parent")
            if self._tree.extend(rank, path.parent, chain) < len(chain):
                raise ValueError("cannot load the prefix index: other ranks know a block of it by another parent")
            for block in chain:
                self._holes.make(rank, block)

    def _load_names(self, rank: HeldBlocks, holdings: Holdings) -> None:
        tier = _known(holdings.tier)
        names, blocks = unpack(holdings.names).tolist(), unpack(holdings.sequence_hashes).tolist()
        if len(set(names)) != len(blocks) or (tier == DEVICE and not all(self._tree.covers(rank, b) for b in blocks)):
            raise ValueError("cannot load the prefix index: a name stands for a block that is in no path")
        if tier == DEVICE:
            for name, block in zip(names, blocks, strict=True):
                self._name(rank, DEVICE, name, block, is_new=self._holes.fill(rank, block))
        else:
            self._store_below(rank, tier, names, blocks)

    # ---- keeping it consistent

    @property
    def _size(self) -> int:
        return self.num_holdings + len(self._holes)

    def _can_follow(self, rank: HeldBlocks, tier: str, after: int | None) -> bool:
        return after is not None and (tier != DEVICE or self._tree.covers(rank, after))

    def _store_blocks(
        self, rank: HeldBlocks, tier: str, after: int | None, names: list[int], tokens_hashes: list[int]
    ) -> None:
        chain = sequence_hashes(tokens_hashes, after)
        if tier == DEVICE:
            self._store_on_device(rank, after, names, chain)
        else:
            self._store_below(rank, tier, names, chain)
        if rank.orphans:
            self._adopt(rank, tier, names)

    def _store_orphans(
        self, rank: HeldBlocks, tier: str, parent: int, names: list[int], tokens_hashes: list[int]
    ) -> bool:
        """Whether all of them are kept."""
        for name, tokens_hash in zip(names, tokens_hashes, strict=True):
            if (after := rank.sequence_of(parent)) is not None:
                self._store_blocks(rank, tier, after, [name], [tokens_hash])
            elif name not in rank.names[tier] and not rank.orphans.add(tier, name, parent, tokens_hash):
                return False
            parent = name
        return True

    def _adopt(self, rank: HeldBlocks, tier: str, names: list[int]) -> None:
        """Store the orphans that follow on blocks just stored, and those that follow on them."""
        for name in names:
            rank.orphans.remove(tier, name)
        parents = list(names)
        for parent in parents:
            if (after := rank.sequence_of(parent)) is not None:
                for orphan_tier, name, tokens_hash in rank.orphans.take(parent):
                    self._store_below(rank, orphan_tier, [name], sequence_hashes([tokens_hash], after))
                    parents.append(name)

    def _store_on_device(self, rank: HeldBlocks, after: int | None, names: list[int], chain: list[int]) -> None:
        known = rank.names[DEVICE]
        if not known.keys().isdisjoint(names) or self._tree.covers(rank, chain[0]):
            for name, sequence_hash in zip(names, chain, strict=True):
                if not self._store_one(rank, after, name, sequence_hash):
                    return
                after = sequence_hash
            return
        num_added = self._tree.extend(rank, after, chain)
        if num_added < len(chain):
            self.num_conflicts += 1
            names, chain = names[:num_added], chain[:num_added]
        num_before = len(known)
        known.update(zip(names, chain, strict=True))
        num_named = len(known) - num_before
        self.num_holdings += num_named
        if num_named < num_added:
            self._make_holes_of_unnamed(rank, names, chain)

    def _make_holes_of_unnamed(self, rank: HeldBlocks, names: list[int], chain: list[int]) -> None:
        """A name that an event repeats is the later block's."""
        known = rank.names[DEVICE]
        for name, sequence_hash in zip(names, chain, strict=True):
            if known[name] != sequence_hash:
                self._holes.make(rank, sequence_hash)

    def _store_one(self, rank: HeldBlocks, after: int | None, name: int, sequence_hash: int) -> bool:
        """Whether the rank holds it now."""
        if self._tree.covers(rank, sequence_hash):
            is_new = self._holes.fill(rank, sequence_hash)
        elif self._tree.extend(rank, after, [sequence_hash]):
            is_new = True
        else:
            self.num_conflicts += 1
            return False
        self._name(rank, DEVICE, name, sequence_hash, is_new=is_new)
        return True

    def _store_below(self, rank: HeldBlocks, tier: str, names: list[int], chain: list[int]) -> None:
        self._ranks_with_lower |= rank.bit
        for name, sequence_hash in zip(names, chain, strict=True):
            self._name(rank, tier, name, sequence_hash, is_new=self._lower[tier].add(rank.bit, sequence_hash))

    def _name(self, rank: HeldBlocks, tier: str, name: int, sequence_hash: int, *, is_new: bool) -> None:
        """`is_new`: until now the rank did not hold the block in this tier. A name that stood for another block is
        taken from it."""
        names = rank.names[tier]
        before = names.get(name)
        if before == sequence_hash:
            return
        names[name] = sequence_hash
        if not is_new:
            key = (tier, sequence_hash)
            rank.num_more_names[key] = rank.num_more_names.get(key, 0) + 1
        if before is None:
            self.num_holdings += 1
        else:
            self._release(rank, tier, before)

    def _remove_name(self, rank: HeldBlocks, tier: str, name: int) -> None:
        self.num_holdings -= 1
        self._release(rank, tier, rank.names[tier].pop(name))

    def _release(self, rank: HeldBlocks, tier: str, sequence_hash: int) -> None:
        """One name less stands for this block."""
        if rank.num_more_names and (num_more := rank.num_more_names.pop((tier, sequence_hash), 0)):
            if num_more > 1:
                rank.num_more_names[tier, sequence_hash] = num_more - 1
        elif tier != DEVICE:
            self._lower[tier].remove(rank.bit, sequence_hash)
        elif rank.is_leaf(sequence_hash):
            self._remove_leaf(rank, sequence_hash)
        else:
            self._holes.make(rank, sequence_hash)

    def _remove_leaf(self, rank: HeldBlocks, leaf: int) -> None:
        """And the holes that led only there."""
        before = self._tree.remove_leaf(rank, leaf)
        while before is not None and self._holes.fill(rank, before):
            before = self._tree.remove_leaf(rank, before)

    def _note_lower_tiers(self, rank: HeldBlocks) -> None:
        if self._ranks_with_lower & rank.bit and not any(rank.names[tier] for tier in self._lower):
            self._ranks_with_lower ^= rank.bit

    # ---- the cap

    def _make_room(self) -> None:
        wanted = self.max_blocks - self.max_blocks // 256
        while self._size > wanted:
            rank, tier = max(self._holders(), key=_num_kept)
            self._forget_oldest(rank, tier, self._size - wanted)
            self._note_lower_tiers(rank)

    def _holders(self) -> Iterator[tuple[HeldBlocks, str]]:
        return ((rank, tier) for rank in self._ranks.values() for tier in rank.names)

    def _forget_oldest(self, rank: HeldBlocks, tier: str, num_wanted: int) -> None:
        """As many blocks, or less, but at least one."""
        names = rank.names[tier]
        num_oldest = num_wanted
        num_forgotten = 0
        while not num_forgotten:
            for name, sequence_hash in reversed(list(islice(names.items(), num_oldest))):
                if num_forgotten < num_wanted and (tier != DEVICE or rank.is_leaf(sequence_hash)):
                    self._remove_name(rank, tier, name)
                    num_forgotten += 1
            num_oldest *= 2
        self.num_evicted += num_forgotten


def _num_kept(holder: tuple[HeldBlocks, str]) -> int:
    rank, tier = holder
    return len(rank.names[tier]) + (rank.num_holes if tier == DEVICE else 0)


def _check_leaves(rank: HeldBlocks) -> None:
    held = set(rank.names[DEVICE].values())
    if not held.issuperset(rank.leaves):
        raise ValueError("cannot load the prefix index: the last block of a path has no name")


def _known(tier: str) -> str:
    return tier if tier in TIERS else EXTERNAL
