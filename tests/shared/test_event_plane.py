from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from dynamo.shared.discovery.mem import MemDiscovery, MemStore
from dynamo.shared.event_plane import EndpointScope, Envelope
from dynamo.shared.event_plane.channel_watch import ChannelWatch
from dynamo.shared.event_plane.publisher import EventPublisher
from dynamo.shared.event_plane.subscriber import EventSubscriber
from dynamo.shared.nats import NatsConnection
from dynamo.shared.nats_config import NatsConfig
from tests.support.nats import NatsServer
from tests.support.waiting import until

SCOPE = EndpointScope("demo", "backend", "generate")
TOPIC = "kv-events"


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@asynccontextmanager
async def connection(server: NatsServer) -> AsyncIterator[NatsConnection]:
    nats = NatsConnection(NatsConfig(server=server.url))
    try:
        yield nats
    finally:
        await nats.close()


class Plane:
    """A store with publishers in it and one subscriber that follows it."""

    def __init__(self, transport: str, nats: NatsConnection) -> None:
        self.transport = transport
        self.nats = nats
        self.store = MemStore()
        self.discovery = MemDiscovery(self.store)
        self.received: list[Envelope] = []
        self.subscriber = EventSubscriber(TOPIC, self.received.append, nats=nats)
        self.watch = ChannelWatch(self.discovery, [self.subscriber])

    async def publisher(self, scope: EndpointScope = SCOPE, topic: str = TOPIC) -> EventPublisher:
        publisher = EventPublisher(self.discovery, scope, topic, self.transport, nats=self.nats)
        await publisher.open()
        return publisher

    async def reaches(self, publisher: EventPublisher, payload: bytes) -> None:
        """Publish until it arrives: a subscription takes effect when the other end has heard of it."""

        def has_arrived() -> bool:
            publisher.publish(payload)
            return any(envelope.payload == payload for envelope in self.received)

        await until(has_arrived, f"{payload!r} to arrive")

    @property
    def payloads(self) -> list[bytes]:
        return [envelope.payload for envelope in self.received]


@asynccontextmanager
async def open_plane(transport: str, server: NatsServer) -> AsyncIterator[Plane]:
    async with connection(server) as nats:
        plane = Plane(transport, nats)
        await plane.discovery.open()
        await plane.watch.open()
        following = asyncio.create_task(plane.watch.follow())
        try:
            yield plane
        finally:
            following.cancel()
            plane.subscriber.close()
            await plane.discovery.close()


@pytest.fixture(params=["zmq", "nats"])
async def plane(request: pytest.FixtureRequest, server: NatsServer) -> AsyncIterator[Plane]:
    async with open_plane(request.param, server) as plane:
        yield plane


async def test_what_is_published_arrives_in_order_with_its_numbers(plane: Plane) -> None:
    publisher = await plane.publisher()
    await plane.reaches(publisher, b"first")
    start = publisher.num_published
    for number in range(1000):
        publisher.publish(b"%d" % number)
    await until(lambda: plane.payloads[-1] == b"999")
    tail = plane.received[-1000:]
    assert [envelope.payload for envelope in tail] == [b"%d" % number for number in range(1000)]
    assert [envelope.sequence for envelope in tail] == list(range(start, start + 1000))
    assert {(envelope.publisher_id, envelope.topic) for envelope in tail} == {(publisher.publisher_id, TOPIC)}
    assert plane.subscriber.num_missed == 0
    await publisher.close()


async def test_publishers_come_and_go(plane: Plane) -> None:
    first, second = await plane.publisher(), await plane.publisher()
    await plane.reaches(first, b"of the first")
    await plane.reaches(second, b"of the second")
    await first.close()
    await until(lambda: plane.watch.num_channels == 1)
    await plane.reaches(second, b"still there")
    await second.close()
    await until(lambda: plane.subscriber.num_routes == 0)
