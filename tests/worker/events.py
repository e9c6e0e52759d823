"""A listener that writes down what it is told."""

from __future__ import annotations

from dynamo.shared.kv_events import Stored


class Record:
    def __init__(self) -> None:
        self.events: list[tuple[str, int | None, list[int]]] = []

    def stored(self, stored: Stored) -> None:
        self.events.append(("stored", stored.parent_hash, [block.block_hash for block in stored.blocks]))

    def removed(self, block_hashes: list[int]) -> None:
        self.events.append(("removed", None, block_hashes))

    def cleared(self) -> None:
        self.events.append(("cleared", None, []))

    @property
    def present(self) -> set[int]:
        """The blocks that somebody who followed every event believes in."""
        blocks: set[int] = set()
        for kind, _, hashes in self.events:
            blocks = blocks | set(hashes) if kind == "stored" else blocks - (set(hashes) or blocks)
        return blocks
