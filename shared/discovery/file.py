"""Discovery through a directory that all participants share.

An entry is a file `<root>/<bucket>/<percent-encoded key>`. Its owner touches it every TTL/3; whoever finds one that was
not touched for the TTL deletes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from dynamo.shared.discovery import Change, DiscoveryError
from dynamo.shared.discovery.directory import Directory
from dynamo.shared.discovery.inotify import Inotify
from dynamo.shared.discovery.outage import Outage, report_failure
from dynamo.shared.discovery.view import View

logger = logging.getLogger("dynamo.discovery")

T = TypeVar("T")

TTL_S = 10.0
SETTLE_S = 0.005  # several changes in a row cost one look
POLL_WITHOUT_INOTIFY_S = 0.25


def default_root(environ: Mapping[str, str] = os.environ) -> Path:
    if configured := environ.get("DYN_FILE_KV"):
        return Path(configured)
    return Path(environ.get("TMPDIR") or "/tmp") / "dynamo_store_kv"


@dataclass
class _Bucket:
    directory: Directory
    outage: Outage
    published: dict[str, bytes] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)


class FileDiscovery:
    """All disk access happens in one thread of its own, in order: a stuck disk does not stop the event loop, and a long
    computation in the event loop's other threads does not let our entries expire."""

    is_local = True

    def __init__(self, root: Path | None = None, ttl_s: float = TTL_S) -> None:
        self._root = root or default_root()
        self._ttl_s = ttl_s
        self._buckets: dict[str, _Bucket] = {}
        self._changed = asyncio.Event()
        self._inotify: Inotify | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="discovery-file")
        self._lease_id = 0

    async def open(self) -> None:
        await self._on_disk(lambda: self._root.mkdir(parents=True, exist_ok=True))
        self._lease_id = 1 + secrets.randbelow(2**63 - 1)
        self._inotify = self._open_inotify()
        self._keeper = asyncio.create_task(self._keep(), name="discovery-file")
        self._keeper.add_done_callback(self._close_views)

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        with suppress(DiscoveryError):  # what we cannot remove expires
            await self._on_disk(self._withdraw_all)
        if self._inotify is not None:  # and the disk thread, which has done all it had to do, no longer uses it
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None
        self._disk.shutdown(wait=False)

    @property
    def lease_id(self) -> int:
        return self._lease_id

    async def publish(self, bucket: str, key: str, value: bytes) -> None:
        target = self._bucket(bucket)

        def write() -> None:
            target.directory.write(key, value)
            target.published[key] = value

        await self._on_disk(write)

    async def withdraw(self, bucket: str, key: str) -> None:
        target = self._bucket(bucket)

        def delete() -> None:
            if target.published.pop(key, None) is not None:
                target.directory.delete(key)

        await self._on_disk(delete)

    async def watch(self, bucket: str) -> AsyncIterator[list[Change]]:
        view = View()
        views = self._bucket(bucket).views
        views.append(view)
        self._changed.set()
        try:
            async for batch in view.changes():
                yield batch
        finally:
            views.remove(view)

    def _close_views(self, keeper: asyncio.Task[None]) -> None:
        report_failure(keeper)
        for bucket in self._buckets.values():
            for view in bucket.views:
                view.close()

    def _bucket(self, name: str) -> _Bucket:
        if name not in self._buckets:
            path = self._root / name
            self._buckets[name] = _Bucket(Directory(path), Outage(f"file discovery {path}"))
        return self._buckets[name]

    async def _on_disk(self, operation: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, operation)
        except OSError as error:
            raise DiscoveryError(
                f"file discovery in {self._root}: {error}; check that the directory is writable and has space, "
                "or name another one with DYN_FILE_KV"
            ) from error

    def _open_inotify(self) -> Inotify | None:
        try:
            inotify = Inotify()
        except OSError as error:
            logger.warning("file discovery polls every %.2f s: %s", POLL_WITHOUT_INOTIFY_S, error)
            return None
        asyncio.get_running_loop().add_reader(inotify.fileno(), self._on_inotify, inotify)
        return inotify

    def _on_inotify(self, inotify: Inotify) -> None:
        inotify.drain()
        self._changed.set()

    async def _keep(self) -> None:
        """Refresh and look at everything every TTL/3; look at what is watched as soon as it changes."""
        loop = asyncio.get_running_loop()
        heartbeat_at = loop.time()
        while True:
            await self._wait_for_change(heartbeat_at)
            is_heartbeat = loop.time() >= heartbeat_at
            if is_heartbeat:
                heartbeat_at = loop.time() + self._ttl_s / 3
            await self._look(with_heartbeat=is_heartbeat)

    async def _wait_for_change(self, heartbeat_at: float) -> None:
        now = asyncio.get_running_loop().time()
        wait_s = heartbeat_at - now if self._inotify else min(heartbeat_at - now, POLL_WITHOUT_INOTIFY_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
                await asyncio.sleep(SETTLE_S)
        self._changed.clear()

    async def _look(self, with_heartbeat: bool) -> None:
        for bucket in list(self._buckets.values()):
            views = list(bucket.views)
            if not (views or with_heartbeat):
                continue
            try:
                if with_heartbeat:
                    await self._on_disk(partial(self._refresh, bucket))
                if views:
                    entries = await self._on_disk(partial(self._entries, bucket.directory))
                    for view in views:
                        view.replace(entries)
            except DiscoveryError as error:
                bucket.outage.begin(error)
            else:
                bucket.outage.end()

    def _entries(self, directory: Directory) -> dict[str, bytes]:
        if self._inotify is not None:
            directory.path.mkdir(parents=True, exist_ok=True)
            self._inotify.add(directory.path)  # before we look, so that nothing falls between the two
        return directory.entries(self._ttl_s)

    def _refresh(self, bucket: _Bucket) -> None:
        for key, value in bucket.published.items():
            if not bucket.directory.touch(key):
                logger.warning("%s/%s: was removed by someone else, published again", bucket.directory.path, key)
                bucket.directory.write(key, value)
        bucket.directory.expire(self._ttl_s)

    def _withdraw_all(self) -> None:
        for bucket in self._buckets.values():
            for key in bucket.published:
                bucket.directory.delete(key)
            bucket.published.clear()
