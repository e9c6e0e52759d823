"""What one rank holds, by the names that its engine gives to blocks."""

from __future__ import annotations

from dynamo.router.prefix_tree import Coverage
from dynamo.shared.kv_events import TIERS

MAX_ORPHANS = 4096


class HeldBlocks(Coverage):
    """`names` says per tier which sequence hash a name stands for. Engines may name one sequence several times:
    `num_more_names` counts those beyond the first, per (tier, sequence hash)."""

    def __init__(self, slot: int) -> None:
        super().__init__(slot)
        self.names: dict[str, dict[int, int]] = {tier: {} for tier in TIERS}
        self.num_more_names: dict[tuple[str, int], int] = {}
        self.num_holes = 0
        self.orphans = Orphans()

    def sequence_of(self, name: int) -> int | None:
        for names in self.names.values():
            if (sequence_hash := names.get(name)) is not None:
                return sequence_hash
        return None


class Orphans:
    """Blocks below the device that nobody can find yet, for their parent is unknown. Engines move prompts down from
    the end to the beginning, and what has left the device may not have arrived below. No more than MAX_ORPHANS."""

    def __init__(self) -> None:
        self._children: dict[int, dict[tuple[str, int], int]] = {}  # parent -> (tier, name) -> hash of the tokens
        self._parents: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def add(self, tier: str, name: int, parent: int, tokens_hash: int) -> bool:
        """Whether there is room for it."""
        self.remove(tier, name)
        if len(self._parents) >= MAX_ORPHANS:
            return False
        self._parents[tier, name] = parent
        self._children.setdefault(parent, {})[tier, name] = tokens_hash
        return True

    def remove(self, tier: str, name: int) -> bool:
        """Whether it was there."""
        parent = self._parents.pop((tier, name), None)
        if parent is None:
            return False
        children = self._children[parent]
        del children[tier, name]
        if not children:
            del self._children[parent]
        return True

    def take(self, parent: int) -> list[tuple[str, int, int]]:
        """(tier, name, hash of the tokens) of those that follow this name: orphans no longer."""
        children = self._children.pop(parent, {})
        for child in children:
            del self._parents[child]
        return [(tier, name, tokens_hash) for (tier, name), tokens_hash in children.items()]
