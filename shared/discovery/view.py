"""What one watch knows of its bucket, between the store that updates it and the reader that wants changes.

There is no queue to fill: a reader that was away gets the difference between what it saw last and what is there now, so
memory is bounded by twice the bucket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from dynamo.shared.discovery import Change, Deleted, Put


class View:
    """Has one reader, and a store that calls `replace` before it calls `apply`."""

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}
        self._changed = asyncio.Event()
        self._is_closed = False

    def replace(self, entries: Mapping[str, bytes]) -> None:
        """All that is there now."""
        self._entries = dict(entries)
        self._changed.set()

    def apply(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, Put):
                self._entries[change.key] = change.value
            else:
                self._entries.pop(change.key, None)
        self._changed.set()

    def close(self) -> None:
        self._is_closed = True
        self._changed.set()

    async def changes(self) -> AsyncIterator[list[Change]]:
        """First all that is there (may be empty), then never an empty batch. Ends with `close`."""
        seen: dict[str, bytes] | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._is_closed:
                return
            batch = difference(seen or {}, self._entries)
            if batch or seen is None:
                seen = dict(self._entries)
                yield batch


def difference(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[Change]:
    """What turns `before` into `after`; removals come first."""
    removed: list[Change] = [Deleted(key) for key in before if key not in after]
    return removed + [Put(key, value) for key, value in after.items() if before.get(key) != value]
