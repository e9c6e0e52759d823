"""What comes to the router from workers besides requests: KV events, answers to its questions, load.

One thing to open and to close for the server. KV events are followed in mode kv; load reports only while somebody has
set a threshold to compare them with.
"""

from __future__ import annotations

import asyncio
import socket

from dynamo.router.config import RouterConfig
from dynamo.router.core import Router
from dynamo.router.event_feed import EventFeed
from dynamo.router.jetstream_feed import DurableRules
from dynamo.router.load_feed import LoadFeed
from dynamo.router.recovery import MAX_ANSWER_BYTES, RecoveryClient
from dynamo.router.snapshot_store import make_snapshot_store
from dynamo.router.warm_start import WarmStart
from dynamo.shared.discovery import Discovery
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.nats import NatsConnection
from dynamo.shared.network import routable_host
from dynamo.shared.request_plane.client import EngineClient, EngineLimits
from dynamo.shared.request_plane.stream import ResponseServer


class Intake:
    """Made and used inside the running loop. `warm_start` is None without --router-snapshot, `feed` without events,
    `load` until it matters."""

    def __init__(self, config: RouterConfig, router: Router, discovery: Discovery, nats: NatsConnection) -> None:
        self._config = config
        self._router = router
        self._discovery = discovery
        self._nats = nats
        self._responses: ResponseServer | None = None
        self._client: EngineClient | None = None
        self._following_load: asyncio.Task[None] | None = None
        self.load: LoadFeed | None = None
        self.feed: EventFeed | None = None
        self.warm_start = _warm_start(config, router, nats)
        self._restored_positions: dict[str, int] = {}

    async def restore(self) -> None:
        """Before the first worker is known: what a predecessor knew of it comes with it."""
        if self.warm_start is not None:
            self._restored_positions = await self.warm_start.restore(asyncio.get_running_loop().time())

    async def open(self) -> None:
        """When the workers that are there are known: what a broker kept of events whose rank is not would be lost."""
        if self._router.sources is None:
            return
        self._responses = ResponseServer(self._host, 0, max_message_size=MAX_ANSWER_BYTES)
        await self._responses.start()
        self._client = EngineClient(self._responses, EngineLimits())
        self.feed = EventFeed(
            self._discovery,
            self._router.sources,
            RecoveryClient(self._client),
            self._nats,
            is_relevant=self._is_relevant,
            durable=self._durable(),
        )
        await self.feed.open()

    async def follow(self) -> None:
        """Until cancelled, or until a watch ends."""
        async with asyncio.TaskGroup() as group:
            if self.feed is not None:
                group.create_task(self.feed.follow())
            if self.warm_start is not None:
                group.create_task(self.warm_start.keep_saving(self._positions))

    def tick(self) -> None:
        """Begin to listen to load when it starts to matter. It then matters until the end."""
        if self.load is None and self._router.overload.is_watching:
            self.load = LoadFeed(self._discovery, self._nats, self._router.report_load, self._is_relevant)
            self._following_load = asyncio.get_running_loop().create_task(self.load.run())

    async def close(self) -> None:
        if self.warm_start is not None and self.feed is not None:
            await self.warm_start.save(self._positions)
        if self._following_load is not None:
            self._following_load.cancel()
            await asyncio.gather(self._following_load, return_exceptions=True)
        if self.feed is not None:
            await self.feed.close()
        if self._client is not None:
            self._client.close()
        if self._responses is not None:
            self._responses.stop()

    def _positions(self) -> dict[str, int]:
        durable = None if self.feed is None else self.feed.durable
        return {} if durable is None else dict(durable.positions)

    def _is_relevant(self, scope: EndpointScope) -> bool:
        return self._router.rules.serves_namespace(scope.namespace)

    @property
    def _host(self) -> str:
        """Where workers reach us with their answers."""
        if self._config.tcp_response_stream_host:
            return self._config.tcp_response_stream_host
        return "127.0.0.1" if self._config.discovery_backend in {"file", "mem"} else routable_host()

    def _durable(self) -> DurableRules | None:
        if not self._config.router_durable_kv_events:
            return None
        replica = self._config.router_replica_name or socket.gethostname()
        return DurableRules(replica=replica, positions=self._restored_positions)


def _warm_start(config: RouterConfig, router: Router, nats: NatsConnection) -> WarmStart | None:
    """Raises ValueError for a place that is none."""
    if config.router_snapshot is None or router.sources is None:
        return None
    return WarmStart(router, make_snapshot_store(config.router_snapshot, nats), config.router_snapshot_interval_s)
