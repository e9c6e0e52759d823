"""Discovery within one process and one event loop: tests, and workers embedded beside their frontend."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import AsyncIterator

from dynamo.shared.discovery import Change, Deleted, Put
from dynamo.shared.discovery.view import View


class MemStore:
    """What the participants share."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, bytes]] = defaultdict(dict)
        self._views: dict[str, list[View]] = defaultdict(list)

    def put(self, bucket: str, key: str, value: bytes) -> None:
        self._buckets[bucket][key] = value
        self._tell(bucket, Put(key, value))

    def delete(self, bucket: str, key: str) -> None:
        if self._buckets[bucket].pop(key, None) is not None:
            self._tell(bucket, Deleted(key))

    def attach(self, bucket: str, view: View) -> None:
        view.replace(self._buckets[bucket])
        self._views[bucket].append(view)

    def detach(self, bucket: str, view: View) -> None:
        self._views[bucket].remove(view)

    def _tell(self, bucket: str, change: Change) -> None:
        for view in self._views[bucket]:
            view.apply([change])


_named_stores: dict[str, MemStore] = defaultdict(MemStore)


class MemDiscovery:
    """One participant of `store`: an object, or the name of a store that this process shares."""

    is_local = True

    def __init__(self, store: MemStore | str = "default") -> None:
        self._store = _named_stores[store] if isinstance(store, str) else store
        self._published: set[tuple[str, str]] = set()
        self._views: set[View] = set()
        self._lease_id = 0

    async def open(self) -> None:
        self._lease_id = 1 + secrets.randbelow(2**63 - 1)

    async def close(self) -> None:
        for bucket, key in list(self._published):
            await self.withdraw(bucket, key)
        for view in self._views:
            view.close()

    @property
    def lease_id(self) -> int:
        return self._lease_id

    async def publish(self, bucket: str, key: str, value: bytes) -> None:
        self._store.put(bucket, key, value)
        self._published.add((bucket, key))

    async def withdraw(self, bucket: str, key: str) -> None:
        if (bucket, key) in self._published:
            self._published.remove((bucket, key))
            self._store.delete(bucket, key)

    async def watch(self, bucket: str) -> AsyncIterator[list[Change]]:
        view = View()
        self._store.attach(bucket, view)
        self._views.add(view)
        try:
            async for batch in view.changes():
                yield batch
        finally:
            self._views.discard(view)
            self._store.detach(bucket, view)
