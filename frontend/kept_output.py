"""The output of one choice so far, kept for a worker that may have to go on with it."""

from __future__ import annotations

from array import array
from collections.abc import Callable

NO_LIMIT = 1 << 62


class KeptOutput:
    """The ids of all tokens of one choice so far, four bytes each. `keep` adds some; it is None for a choice that does
    not move, or does not any more: `has_outgrown` says that it has more than `room` tokens."""

    __slots__ = ("_ids", "has_outgrown", "keep", "room")

    def __init__(self, room: int | None) -> None:
        self._ids = array("I")
        self.room = NO_LIMIT if room is None else room
        self.keep: Callable[[list[int]], None] | None = None if room is None else self._ids.fromlist
        self.has_outgrown = False
        if self.room < 0:
            self.outgrow()

    def __len__(self) -> int:
        return len(self._ids)

    def outgrow(self) -> None:
        self.has_outgrown = self.keep is not None
        self.drop()

    def drop(self) -> None:
        """What is missing cannot be repeated to another worker."""
        self.keep = None
        self._ids = array("I")

    def packed(self) -> bytes:
        """u32 LE."""
        return self._ids.tobytes()
