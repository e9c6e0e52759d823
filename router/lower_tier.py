"""Which ranks hold which blocks in one tier below the device. A block here need not have its parent here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


class LowerTier:
    def __init__(self) -> None:
        self._holders: dict[int, int] = {}  # sequence hash -> mask of ranks

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, bit: int, sequence_hash: int) -> bool:
        """Whether that is news."""
        holders = self._holders.get(sequence_hash, 0)
        self._holders[sequence_hash] = holders | bit
        return not holders & bit

    def remove(self, bit: int, sequence_hash: int) -> None:
        if rest := self._holders[sequence_hash] & ~bit:
            self._holders[sequence_hash] = rest
        else:
            del self._holders[sequence_hash]

    def runs(self, prompt: Sequence[int], starts: Mapping[int, int]) -> dict[int, int]:
        """How many consecutive blocks of a prompt each slot holds from its own start on; slots with none are left out.
        One look at each block that is in such a run, however many ranks hold it."""
        joining: dict[int, int] = {}
        for slot, start in starts.items():
            joining[start] = joining.get(start, 0) | 1 << slot
        waiting = sorted(joining, reverse=True)
        found: dict[int, int] = {}
        running, position = 0, 0
        while running or waiting:
            if waiting and (not running or waiting[-1] == position):
                position = waiting.pop()
                running |= joining[position]
            holders = self._holders.get(prompt[position], 0) if position < len(prompt) else 0
            for slot in slots_of(running & ~holders):
                if position > starts[slot]:
                    found[slot] = position - starts[slot]
            running &= holders
            position += 1
        return found


def slots_of(ranks: int) -> Iterator[int]:
    while ranks:
        lowest = ranks & -ranks
        yield lowest.bit_length() - 1
        ranks ^= lowest
