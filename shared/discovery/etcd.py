"""Discovery through etcd.

The lease id is the identity of the process, so it never changes: when etcd loses the lease (it expired, or etcd came
back with an empty disk), the same id is granted again and everything published is put back under the same keys.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from dynamo.shared.discovery import Change, DiscoveryError
from dynamo.shared.discovery.etcd_client import EtcdClient, LeaseNotFound, Refused
from dynamo.shared.discovery.etcd_config import EtcdConfig
from dynamo.shared.discovery.outage import Outage, report_failure
from dynamo.shared.discovery.view import View

logger = logging.getLogger("dynamo.discovery")

T = TypeVar("T")

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 2.0
REVOKE_TIMEOUT_S = 2.0


class EtcdDiscovery:
    is_local = False

    def __init__(self, config: EtcdConfig | None = None) -> None:
        self._config = config or EtcdConfig.load([], prog="etcd")[0]
        self._published: dict[str, bytes] = {}
        self._writing = asyncio.Lock()  # what is in etcd under our lease follows `_published` in its order of changes
        self._tasks: set[asyncio.Task[None]] = set()
        self._lease_id = 0

    async def open(self) -> None:
        self._client = EtcdClient(self._config)
        try:
            self._lease_id = await self._retried(lambda: self._client.grant(self._config.lease_ttl_s))
        except DiscoveryError:
            await self._client.close()
            raise
        self._spawn(self._keep_lease(), "etcd-lease")

    async def close(self) -> None:
        if not self._lease_id:  # `open` failed, or never happened
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(DiscoveryError, TimeoutError):  # what we cannot remove expires
            async with asyncio.timeout(REVOKE_TIMEOUT_S):
                await self._client.revoke(self._lease_id)
        await self._client.close()

    @property
    def lease_id(self) -> int:
        return self._lease_id

    async def publish(self, bucket: str, key: str, value: bytes) -> None:
        name = f"{bucket}/{key}"
        async with self._writing:
            await self._retried(lambda: self._put(name, value))
            self._published[name] = value

    async def withdraw(self, bucket: str, key: str) -> None:
        name = f"{bucket}/{key}"
        async with self._writing:
            if self._published.pop(name, None) is not None:
                await self._retried(lambda: self._client.delete(name))

    async def watch(self, bucket: str) -> AsyncIterator[list[Change]]:
        view = View()
        follower = self._spawn(self._follow(f"{bucket}/", view), f"etcd-watch {bucket}")
        follower.add_done_callback(lambda _: view.close())
        try:
            async for batch in view.changes():
                yield batch
        finally:
            follower.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(report_failure)
        return task

    async def _retried(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Until it succeeds, is refused for good, or ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS have passed."""
        deadline = asyncio.get_running_loop().time() + self._config.connect_timeout_s
        outage = Outage(f"etcd at {self._config.endpoints}")
        attempt = 0
        while True:
            try:
                result = await operation()
            except Refused:
                raise
            except DiscoveryError as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise DiscoveryError(
                        f"no success with etcd within {self._config.connect_timeout_s:g} s: {error}; "
                        f"check ETCD_ENDPOINTS ({self._config.endpoints}) and that etcd runs"
                    ) from error
                outage.begin(error)
                await _pause(attempt)
                attempt += 1
            else:
                outage.end()
                return result

    async def _put(self, name: str, value: bytes) -> None:
        try:
            await self._client.put(name, value, self._lease_id)
        except LeaseNotFound:
            await self._restore()
            await self._client.put(name, value, self._lease_id)

    async def _restore(self) -> None:
        """Bring the lease and everything under it back. The caller holds `_writing`."""
        await self._client.grant(self._config.lease_ttl_s, self._lease_id)
        for name, value in self._published.items():
            await self._client.put(name, value, self._lease_id)
        logger.warning(
            "etcd lease %x was gone (not renewed in time, or etcd lost its data): granted again with its %d entries",
            self._lease_id,
            len(self._published),
        )

    async def _keep_lease(self) -> None:
        outage = Outage(f"etcd lease {self._lease_id:x}")
        attempt = 0
        while True:
            try:
                async with aclosing(self._client.keep_alive(self._lease_id, self._config.lease_ttl_s / 3)) as renewals:
                    async for ttl_s in renewals:
                        if ttl_s == 0:
                            async with self._writing:
                                await self._restore()
                        outage.end()
                        attempt = 0
            except DiscoveryError as error:
                outage.begin(error)
                await _pause(attempt)
                attempt += 1

    async def _follow(self, prefix: str, view: View) -> None:
        """Keep `view` equal to what etcd holds below `prefix`; after a loss, read it all again."""
        outage = Outage(f"etcd watch of {prefix}")
        attempt = 0
        while True:
            try:
                entries, revision = await self._client.range(prefix)
                view.replace(entries)
                async with aclosing(self._client.watch(prefix, revision + 1)) as batches:
                    async for batch in batches:
                        view.apply(batch)
                        outage.end()
                        attempt = 0
            except DiscoveryError as error:
                outage.begin(error)
                await _pause(attempt)
                attempt += 1


async def _pause(attempt: int) -> None:
    """Longer each time, and not the same in every process."""
    await asyncio.sleep(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0))
