from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec
import pytest
import zmq

from dynamo.shared.discovery import EVENT_CHANNELS, Put
from dynamo.shared.discovery.mem import MemDiscovery, MemStore
from dynamo.shared.event_plane import EndpointScope, Envelope, EventChannel, Scope, Transport, encode_envelope
from dynamo.shared.event_plane.channel_watch import ChannelWatch
from dynamo.shared.event_plane.publisher import EventPublisher
from dynamo.shared.event_plane.subscriber import EventSubscriber
from dynamo.shared.event_plane.zmq import frames_of
from dynamo.shared.nats import MAX_OUTBOX_BYTES, NatsConnection
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

    def __init__(
        self,
        transport: str,
        nats: NatsConnection,
        is_relevant: Callable[[EndpointScope], bool] = lambda _scope: True,
    ) -> None:
        self.transport = transport
        self.nats = nats
        self.store = MemStore()
        self.discovery = MemDiscovery(self.store)
        self.received: list[Envelope] = []
        self.subscriber = EventSubscriber(TOPIC, self.received.append, nats=nats)
        self.watch = ChannelWatch(self.discovery, [self.subscriber], is_relevant)

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
async def open_plane(
    transport: str, server: NatsServer, is_relevant: Callable[[EndpointScope], bool] = lambda _scope: True
) -> AsyncIterator[Plane]:
    async with connection(server) as nats:
        plane = Plane(transport, nats, is_relevant)
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


async def test_ipv6_is_spoken(server: NatsServer) -> None:
    async with open_plane("zmq", server) as plane:
        of_v6 = EventPublisher(plane.discovery, SCOPE, TOPIC, host="::1")
        await of_v6.open()
        await plane.reaches(of_v6, b"over IPv6")
        await plane.reaches(await plane.publisher(), b"over IPv4")
        await of_v6.close()


async def test_publishers_come_and_go(plane: Plane) -> None:
    first, second = await plane.publisher(), await plane.publisher()
    await plane.reaches(first, b"of the first")
    await plane.reaches(second, b"of the second")
    await first.close()
    await until(lambda: plane.watch.num_channels == 1)
    await plane.reaches(second, b"still there")
    await second.close()
    await until(lambda: plane.subscriber.num_routes == 0)


async def test_only_relevant_endpoints_and_the_topic_itself_are_heard(server: NatsServer) -> None:
    async with open_plane("zmq", server, lambda scope: scope.namespace == "demo") as plane:
        wanted = await plane.publisher()
        of_longer_topic = await plane.publisher(topic=f"{TOPIC}-too")
        of_others = await plane.publisher(EndpointScope("other", "backend", "generate"))
        await plane.reaches(wanted, b"first")
        of_longer_topic.publish(b"another topic")
        of_others.publish(b"another namespace")
        await plane.reaches(wanted, b"last")
        assert set(plane.payloads) == {b"first", b"last"}
        assert plane.watch.num_channels == 1


async def test_a_channel_is_announced_as_dynamo_announces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_EVENT_PLANE_HOST", "127.0.0.1")
    discovery = MemDiscovery(MemStore())
    publisher = EventPublisher(discovery, EndpointScope("a b", "back.end", "generate"), TOPIC)
    await publisher.open()
    ((put,),) = [changes async for changes in first_of(discovery)]
    key_scope = "namespace/a%20b/component/back%2Eend/endpoint/generate"
    assert put.key == f"{key_scope}/topic/kv-events/{publisher.publisher_id:x}"
    announced = msgspec.json.decode(put.value)
    endpoint = announced["transport"]["config"].pop("endpoint")
    assert announced == {
        "type": "EventChannel",
        "scope": {"kind": "endpoint", "endpoint": {"namespace": "a b", "component": "back.end", "name": "generate"}},
        "topic": "kv-events",
        "instance_id": publisher.publisher_id,
        "transport": {"kind": "Zmq", "config": {}},
    }
    assert endpoint.startswith("tcp://127.0.0.1:")
    assert 0 < publisher.publisher_id < 2**53
    await publisher.close()


async def first_of(discovery: MemDiscovery) -> AsyncIterator[list[Put]]:
    async for changes in discovery.watch(EVENT_CHANNELS):
        yield [change for change in changes if isinstance(change, Put)]
        return


async def test_an_address_of_another_host_cannot_be_published_at() -> None:
    publisher = EventPublisher(MemDiscovery(MemStore()), SCOPE, TOPIC, host="192.0.2.1")
    with pytest.raises(OSError, match=r"192\.0\.2\.1.*DYN_EVENT_PLANE_HOST"):
        await publisher.open()
    await publisher.close()


async def test_names_that_make_no_subject_are_refused(server: NatsServer) -> None:
    for name in ("a b", "a..b", "*", ">"):
        async with connection(server) as nats:
            publisher = EventPublisher(
                MemDiscovery(MemStore()), EndpointScope("demo", name, "generate"), TOPIC, "nats", nats=nats
            )
            with pytest.raises(OSError, match="no NATS subject"):
                await publisher.open()
            await publisher.close()


def test_a_plane_that_is_not_spoken_here_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kafka.*zmq, nats"):
        EventPublisher(MemDiscovery(MemStore()), SCOPE, TOPIC, "kafka")


# ---- what others may send


class RawPublisher:
    """A PUB socket that sends any frames."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        socket.bind("tcp://127.0.0.1:*")
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.channel = EventChannel(Scope(endpoint=SCOPE), TOPIC, 7, Transport("Zmq", {"endpoint": endpoint}))

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def send_event(self, sequence: int, payload: bytes = b"") -> None:
        self.send(*frames_of(TOPIC.encode(), 7, sequence, encode_envelope(Envelope(7, sequence, 0, TOPIC, payload))))


@contextmanager
def raw_publisher() -> Iterator[RawPublisher]:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        yield RawPublisher(socket)


@asynccontextmanager
async def heard_raw_publisher(plane: Plane) -> AsyncIterator[RawPublisher]:
    """Whose first event, of number 0, has arrived."""
    with raw_publisher() as publisher:
        await plane.discovery.publish(EVENT_CHANNELS, "raw", msgspec.json.encode(publisher.channel))

        def has_arrived() -> bool:
            publisher.send_event(0)
            return bool(plane.received)

        await until(has_arrived)
        yield publisher


async def test_what_is_no_event_is_counted_and_dropped(server: NatsServer) -> None:
    envelope = encode_envelope(Envelope(7, 1, 0, TOPIC, b""))
    topic, ids = TOPIC.encode(), (struct.pack(">Q", 7), struct.pack(">Q", 1))
    async with open_plane("zmq", server) as plane, heard_raw_publisher(plane) as publisher:
        publisher.send(topic)
        publisher.send(topic, *ids, envelope)
        publisher.send(topic, *ids, struct.pack(">BI", 2, len(envelope)) + envelope)
        publisher.send(topic, *ids, struct.pack(">BI", 1, len(envelope) + 1) + envelope)
        publisher.send(topic, *ids, struct.pack(">BI", 1, 3) + b"abc")
        publisher.send(topic, *ids, b"")
        publisher.send_event(1, b"sound")
        await until(lambda: plane.payloads[-1] == b"sound")
        assert plane.subscriber.num_malformed == 6


async def test_numbers_that_are_left_out_are_counted(server: NatsServer) -> None:
    async with open_plane("zmq", server) as plane, heard_raw_publisher(plane) as publisher:
        for sequence in (1, 5, 6, 9):
            publisher.send_event(sequence, b"%d" % sequence)
        await until(lambda: plane.payloads[-1] == b"9")
        assert plane.subscriber.num_missed == 5


async def test_channels_that_cannot_be_used_do_not_disturb_others(server: NatsServer) -> None:
    def channel(kind: str, **config: str) -> bytes:
        return msgspec.json.encode(EventChannel(Scope(endpoint=SCOPE), TOPIC, 1, Transport(kind, config)))

    bad = [
        b"{",
        b'{"type":"Model"}',
        b'{"transport":{"kind":"Zmq","config":' + b'{"a":' * 50_000,
        channel("Zmq"),
        channel("Zmq", endpoint="tcp://nowhere"),
        channel("Nats", subject_prefix="everything.>"),
        channel("Kafka"),
    ]
    async with open_plane("zmq", server) as plane:
        for number, value in enumerate(bad):
            await plane.discovery.publish(EVENT_CHANNELS, f"bad/{number}", value)
        await plane.reaches(await plane.publisher(), b"sound")
        assert (plane.watch.num_unusable, plane.watch.num_channels) == (len(bad), 1)


# ---- NATS comes and goes


async def test_what_is_published_before_nats_is_there_arrives_once_it_is() -> None:
    server = NatsServer()
    async with open_plane("nats", server) as plane:
        publisher = await plane.publisher()
        publisher.publish(b"early")
        await until(lambda: plane.subscriber.num_routes == 1)
        await asyncio.to_thread(server.start)
        await plane.reaches(publisher, b"late")
        assert plane.subscriber.num_received >= 1
    server.close()


async def test_nats_killed_and_back_is_heard_again() -> None:
    with NatsServer() as server:
        async with open_plane("nats", server) as plane:
            publisher = await plane.publisher()
            await plane.reaches(publisher, b"before")
            server.kill()
            await until(lambda: not plane.nats.is_connected)
            publisher.publish(b"meanwhile")
            await asyncio.to_thread(server.start)
            await until(lambda: b"meanwhile" in plane.payloads)
            await plane.reaches(publisher, b"after")
            assert plane.nats.num_connects == 2


async def test_a_refusal_of_nats_is_not_final() -> None:
    with NatsServer("--auth=secret") as server:
        async with open_plane("nats", server) as plane:
            publisher = await plane.publisher()
            publisher.publish(b"kept")
            await asyncio.sleep(0.5)
            assert not plane.nats.is_connected
            server.flags = ()
            await asyncio.to_thread(server.restart)
            await plane.reaches(publisher, b"at last")


async def test_what_there_is_no_room_for_is_dropped_and_counted() -> None:
    server = NatsServer()
    async with open_plane("nats", server) as plane:
        publisher = await plane.publisher()
        payload = bytes(1 << 20)
        for _ in range(MAX_OUTBOX_BYTES // len(payload) + 2):
            publisher.publish(payload)
        assert publisher.num_dropped == 3
    server.close()
