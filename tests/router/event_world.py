"""A router's event feed and workers, all real, in one event loop: they meet in a directory and talk over sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dynamo.router.event_feed import EventFeed
from dynamo.router.event_sources import Cursor, EventSources
from dynamo.router.jetstream_feed import DurableRules
from dynamo.router.load_feed import LoadFeed
from dynamo.router.recovery import MAX_ANSWER_BYTES, RecoveryClient
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.kv_events import LoadReport, Stored, StoredBlock
from dynamo.shared.nats import NatsConnection
from dynamo.shared.request_plane.client import EngineClient, EngineLimits
from dynamo.shared.request_plane.stream import ResponseServer
from dynamo.shared.runtime import DistributedRuntime
from dynamo.shared.serving_config import serving_config
from dynamo.worker.kv_publisher import KvEventPublisher
from dynamo.worker.load_publisher import WorkerMetricsPublisher
from tests.router.event_worker import HeldByName
from tests.support.waiting import until

ENDPOINT = "demo.backend.generate"


class Worker:
    """One rank that tells what it holds; `held` is the truth."""

    def __init__(self, runtime: DistributedRuntime, publisher: KvEventPublisher) -> None:
        self.runtime = runtime
        self.held: set[int] = set()
        self._publisher = publisher
        self._nats = runtime._shared_nats()

    @property
    def worker_id(self) -> int:
        return self.runtime.instance_id

    @property
    def is_connected(self) -> bool:
        """To NATS, which is then its event plane."""
        return self._nats is not None and self._nats.is_connected

    def store(self, *names: int) -> None:
        self.held |= set(names)
        self._publisher.stored(Stored([StoredBlock(name, name) for name in names]))

    def remove(self, *names: int) -> None:
        self.held -= set(names)
        self._publisher.removed(list(names))

    def clear(self) -> None:
        self.held.clear()
        self._publisher.cleared()


@asynccontextmanager
async def open_worker(event_plane: str, *, answers: bool = True) -> AsyncIterator[Worker]:
    runtime = DistributedRuntime(config=serving_config({"discovery_backend": "file", "event_plane": event_plane}))
    await runtime.open()
    publisher = KvEventPublisher(runtime.endpoint(ENDPOINT), kv_block_size=16, enable_local_indexer=answers)
    try:
        yield Worker(runtime, publisher)
    finally:
        await runtime.wait_closed()


@asynccontextmanager
async def load_publisher(worker: Worker) -> AsyncIterator[WorkerMetricsPublisher]:
    publisher = WorkerMetricsPublisher()
    await publisher.create_endpoint(worker.runtime.endpoint(ENDPOINT))
    yield publisher


class RouterSide:
    """What a router keeps, and may take along to its next life."""

    def __init__(self) -> None:
        self.index = HeldByName()
        self.slots: dict[int, int] = {}
        self.feed: EventFeed

    def slot_of(self, worker_id: int, _dp_rank: int) -> int | None:
        """Whoever is asked about is in the table."""
        return self.slots.setdefault(worker_id, len(self.slots))

    def held(self, worker: Worker) -> set[int]:
        return self.index[self.slots[worker.worker_id]] if worker.worker_id in self.slots else set()

    async def agrees_with(self, *workers: Worker) -> None:
        await until(lambda: all(self.held(worker) == worker.held for worker in workers), "the index to be right")


@asynccontextmanager
async def load_feed(reports: list[LoadReport]) -> AsyncIterator[LoadFeed]:
    discovery, nats = FileDiscovery(), NatsConnection()
    await discovery.open()
    feed = LoadFeed(discovery, nats, reports.append, lambda _scope: True)
    running = asyncio.create_task(feed.run())
    try:
        yield feed
    finally:
        running.cancel()
        await asyncio.wait([running])
        await nats.close()
        await discovery.close()


@asynccontextmanager
async def open_router(
    router: RouterSide, *, durable: DurableRules | None = None, cursors: tuple[Cursor, ...] = ()
) -> AsyncIterator[EventFeed]:
    discovery = FileDiscovery()
    await discovery.open()
    nats = NatsConnection()
    server = ResponseServer("127.0.0.1", 0, max_message_size=MAX_ANSWER_BYTES)
    await server.start()
    client = EngineClient(server, EngineLimits())
    sources = EventSources(router.index, router.slot_of, is_durable=durable is not None)
    sources.restore(cursors, asyncio.get_running_loop().time())
    feed = router.feed = EventFeed(discovery, sources, RecoveryClient(client), nats, durable=durable)
    await feed.open()
    following = asyncio.create_task(feed.follow())
    try:
        yield feed
    finally:
        following.cancel()
        await asyncio.wait([following])
        await feed.close()
        client.close()
        server.stop()
        await nats.close()
        await discovery.close()
