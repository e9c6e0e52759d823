"""The shell of replica sync: event plane and clock around `ReplicaSync`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from msgspec.structs import replace

from dynamo.router.event_traffic import Traffic
from dynamo.router.replicas import ReplicaSync
from dynamo.shared.discovery import Discovery, DiscoveryError
from dynamo.shared.event_plane import EndpointScope, Envelope, EventChannel
from dynamo.shared.event_plane.channel_watch import ChannelWatch
from dynamo.shared.event_plane.publisher import EventPublisher
from dynamo.shared.event_plane.subscriber import EventSubscriber
from dynamo.shared.nats import NatsConnection
from dynamo.shared.replica_events import ACTIVE_SEQUENCES_TOPIC, AFFINITY_TOPIC, REPLICA_TOPIC

log = logging.getLogger("dynamo.router")

TOPICS = (ACTIVE_SEQUENCES_TOPIC, AFFINITY_TOPIC, REPLICA_TOPIC)
TICK_S = 1.0
BATCH_S = 0.001  # what happens within it is published together


class ReplicaLink:
    """Made and used inside the running loop. `transport` is zmq or nats; for the latter `sync` must not batch.

    `on_heard` is called once for all that came in a turn of the loop: load, thresholds or bindings may have changed.
    """

    def __init__(
        self,
        sync: ReplicaSync,
        discovery: Discovery,
        transport: str,
        on_heard: Callable[[], None],
        *,
        nats: NatsConnection | None = None,
    ) -> None:
        self._sync = sync
        self._discovery = discovery
        self._transport = transport
        self._on_heard = on_heard
        self._nats = nats
        self._loop = asyncio.get_running_loop()
        self._lines: dict[EndpointScope, _Lines] = {}
        self._past = Traffic()
        self._closing: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._is_hearing = False
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def follow(self, scopes: Collection[EndpointScope]) -> None:
        """Exchange news of these scopes and of no others: those of the worker sets that there are."""
        for scope in self._lines.keys() - set(scopes):
            self._sync.close(scope)
            self._start_closing(self._lines.pop(scope))
        for scope in set(scopes) - self._lines.keys():
            self._open(scope)

    async def serve(self) -> None:
        """Until cancelled. Raises OSError or DiscoveryError when a scope cannot be announced."""
        await self._failed

    def flush_soon(self) -> None:
        """This router has done something that the others should know."""
        if self._flush_timer is None:
            self._flush_timer = self._loop.call_later(BATCH_S, self._flush)

    @property
    def traffic(self) -> Traffic:
        """Also of scopes that are followed no longer. Messages "dropped" are ours, for the event plane had no room."""
        traffic = Traffic()
        for each in (self._past, *(lines.traffic for lines in self._lines.values())):
            traffic.add(each)
        return traffic

    async def close(self) -> None:
        self._sync.leaving()
        self._flush()
        self._ticker.cancel()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        for scope in list(self._lines):
            self._start_closing(self._lines.pop(scope))
        if self._closing:
            await asyncio.wait(self._closing)

    # ---- inside

    def _open(self, scope: EndpointScope) -> None:
        lines = self._lines[scope] = _Lines(self._discovery, scope, self._transport, self._nats, self._hear, self._gone)
        self._sync.open(scope, lines.publisher_id)
        lines.opening.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not self._failed.done():
            self._failed.set_exception(
                task.exception() or DiscoveryError("the watch of event channels ended by itself")
            )

    def _start_closing(self, lines: _Lines) -> None:
        self._past.add(replace(lines.traffic, num_channels=0))
        task = self._loop.create_task(lines.close(), name="closing replica sync")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _hear(self, scope: EndpointScope, envelope: Envelope) -> None:
        self._sync.receive(scope, envelope, self._loop.time())
        if not self._is_hearing:
            self._is_hearing = True
            self._loop.call_soon(self._finish_hearing)

    def _finish_hearing(self) -> None:
        self._is_hearing = False
        self._on_heard()
        if any(self._sync.has_outgoing(scope) for scope in self._lines):
            self.flush_soon()

    def _gone(self, scope: EndpointScope, publisher_id: int) -> None:
        self._sync.publisher_left(scope, publisher_id)

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self._sync.tick(self._loop.time())
        self._flush()
        self._on_heard()

    def _flush(self) -> None:
        self._flush_timer = None
        for scope, lines in self._lines.items():
            for topic, payload in self._sync.take_outgoing(scope):
                lines.publish(topic, payload)
            if self._sync.has_outgoing(scope):
                self.flush_soon()


class _Lines:
    """Publishers and subscribers of one scope. `opening` goes on until `close`."""

    def __init__(
        self,
        discovery: Discovery,
        scope: EndpointScope,
        transport: str,
        nats: NatsConnection | None,
        on_envelope: Callable[[EndpointScope, Envelope], None],
        on_gone: Callable[[EndpointScope, int], None],
    ) -> None:
        self._publishers = {topic: EventPublisher(discovery, scope, topic, transport, nats=nats) for topic in TOPICS}
        own_ids = {publisher.publisher_id for publisher in self._publishers.values()}
        self._inlets = [
            _Inlet(topic, lambda envelope: on_envelope(scope, envelope), nats, own_ids, lambda i: on_gone(scope, i))
            for topic in TOPICS
        ]
        self._watch = ChannelWatch(discovery, self._inlets, lambda other: other == scope)
        self.opening = asyncio.get_running_loop().create_task(self._run(), name="replica sync")

    @property
    def publisher_id(self) -> int:
        return self._publishers[ACTIVE_SEQUENCES_TOPIC].publisher_id

    @property
    def traffic(self) -> Traffic:
        traffic = Traffic.of(self._inlets, self._watch)
        traffic.messages["dropped"] = sum(publisher.num_dropped for publisher in self._publishers.values())
        return traffic

    def publish(self, topic: str, payload: bytes) -> None:
        self._publishers[topic].publish(payload)

    async def close(self) -> None:
        self.opening.cancel()
        await asyncio.wait([self.opening])
        for inlet in self._inlets:
            inlet.close()
        for publisher in self._publishers.values():
            await publisher.close()

    async def _run(self) -> None:
        for publisher in self._publishers.values():
            await publisher.open()
        await self._watch.open()
        await self._watch.follow()


class _Inlet(EventSubscriber):
    """Leaves our own channels out, and tells when another's is gone."""

    def __init__(
        self,
        topic: str,
        on_envelope: Callable[[Envelope], None],
        nats: NatsConnection | None,
        own_ids: set[int],
        on_gone: Callable[[int], None],
    ) -> None:
        super().__init__(topic, on_envelope, nats=nats)
        self._own_ids = own_ids
        self._on_gone = on_gone

    def connect(self, channel: EventChannel) -> None:
        if channel.instance_id not in self._own_ids:
            super().connect(channel)

    def disconnect(self, channel: EventChannel) -> None:
        if channel.instance_id not in self._own_ids:
            super().disconnect(channel)
            self._on_gone(channel.instance_id)
