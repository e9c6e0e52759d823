"""A reader of a watch that tests can ask for what they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dynamo.shared.discovery import Change, Discovery, Put

TIMEOUT_S = 60.0  # bounds a failure


class Watcher:
    """`entries` is what the watch has told so far, `batches` how."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.batches: list[list[Change]] = []
        self._heard = asyncio.Condition()

    async def follow(self, changes: AsyncIterator[list[Change]]) -> None:
        async for batch in changes:
            async with self._heard:
                self.batches.append(batch)
                for change in batch:
                    if isinstance(change, Put):
                        self.entries[change.key] = change.value
                    else:
                        self.entries.pop(change.key, None)
                self._heard.notify_all()

    async def until(self, is_met: Callable[[], bool]) -> None:
        async with self._heard:
            try:
                await asyncio.wait_for(self._heard.wait_for(is_met), TIMEOUT_S)
            except TimeoutError:
                raise AssertionError(f"not met; entries {self.entries}, batches {self.batches}") from None

    async def until_entries(self, expected: dict[str, bytes]) -> None:
        await self.until(lambda: bool(self.batches) and self.entries == expected)


@asynccontextmanager
async def watching(discovery: Discovery, bucket: str) -> AsyncIterator[Watcher]:
    watcher = Watcher()
    task = asyncio.create_task(watcher.follow(discovery.watch(bucket)))
    try:
        yield watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
