"""Durable KV events: the workers here answer no queries, so whatever the router knows is from the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from dynamo.router.jetstream_feed import DurableRules, DurableSubscriber
from dynamo.shared.event_plane import EndpointScope, EventChannel, Scope, Transport
from dynamo.shared.event_plane.subscriber import EventSubscriber
from dynamo.shared.kv_events import KV_EVENTS_TOPIC
from dynamo.shared.nats import NatsConnection
from dynamo.shared.nats_config import NatsConfig
from tests.router.event_world import RouterSide, open_router, open_worker
from tests.support.nats import NatsServer
from tests.support.waiting import until

RULES = DurableRules(replica="gateway-0")


@pytest.fixture
def nats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    with NatsServer() as server:
        monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
        monkeypatch.setenv("NATS_SERVER", server.url)
        yield server


async def test_a_second_router_learns_from_the_stream_what_the_first_has_seen(nats: NatsServer) -> None:
    first, second = RouterSide(), RouterSide()
    async with open_worker("nats", answers=False) as worker, open_router(first, durable=RULES):
        await until(lambda: is_reading(first))
        worker.store(1, 2, 3)
        worker.remove(2)
        await first.agrees_with(worker)
        async with open_router(second, durable=DurableRules(replica="gateway-1")) as feed:
            await second.agrees_with(worker)
            assert feed.sources.counts.recoveries == 0
            worker.store(4)
            await first.agrees_with(worker)
            await second.agrees_with(worker)


async def test_a_router_that_comes_back_continues_where_its_snapshot_was_made(nats: NatsServer) -> None:
    before, after = RouterSide(), RouterSide()
    async with open_worker("nats", answers=False) as worker:
        async with open_router(before, durable=RULES) as feed:
            await until(lambda: is_reading(before))
            worker.store(1, 2)
            await before.agrees_with(worker)
            assert feed.durable is not None
            cursor, positions = feed.sources.cursor_of(worker.worker_id, 0), dict(feed.durable.positions)
            assert cursor is not None
            after.index.held = {slot: set(held) for slot, held in before.index.held.items()}
            after.slots = dict(before.slots)
            worker.store(3)
            await before.agrees_with(worker)
        worker.remove(1)
        worker.store(4)
        durable = DurableRules(replica="gateway-0", positions=positions)
        async with open_router(after, durable=durable, cursors=(cursor,)) as feed:
            await after.agrees_with(worker)
            [applied] = feed.sources.applied.values()
            assert applied.stored + applied.removed == 3, "no more than what is new"
            assert feed.sources.counts.gaps == 0


async def test_what_the_stream_has_not_is_asked_of_the_worker(nats: NatsServer) -> None:
    router = RouterSide()
    async with open_worker("nats") as worker:
        worker.store(1, 2)
        async with open_router(router, durable=RULES) as feed:
            await router.agrees_with(worker)
            assert feed.sources.counts.dumps == 1
            worker.store(3)
            await router.agrees_with(worker)


async def test_nats_killed_and_back_continues_the_stream(nats: NatsServer) -> None:
    router = RouterSide()
    async with open_worker("nats", answers=False) as worker, open_router(router, durable=RULES):
        await until(lambda: is_reading(router))
        worker.store(1)
        await router.agrees_with(worker)
        nats.kill()
        await until(lambda: not worker.is_connected, "the worker to notice: what it sends until then is lost")
        worker.store(2)
        await asyncio.to_thread(nats.start)
        worker.store(3)
        await router.agrees_with(worker)


async def test_a_consumer_that_somebody_deletes_is_made_again(nats: NatsServer) -> None:
    router = RouterSide()
    async with open_worker("nats", answers=False) as worker, open_router(router, durable=RULES):
        await until(lambda: is_reading(router))
        worker.store(1)
        await router.agrees_with(worker)
        async with jetstream_of(nats) as jetstream:
            stream = await jetstream.find_stream_name_by_subject("namespace.demo.>")
            await jetstream.delete_consumer(stream, RULES.replica)
        worker.store(2)
        await router.agrees_with(worker)


async def test_a_stream_that_lost_what_we_need_leaves_a_gap_to_ask_for(nats: NatsServer) -> None:
    before, after = RouterSide(), RouterSide()
    async with open_worker("nats") as worker:
        async with open_router(before, durable=RULES) as feed:
            await before.agrees_with(worker)
            worker.store(1)
            await before.agrees_with(worker)
            await until(lambda: is_reading(before))
            assert feed.durable is not None
            cursor, positions = feed.sources.cursor_of(worker.worker_id, 0), dict(feed.durable.positions)
            assert cursor is not None
        after.index.held = {slot: set(held) for slot, held in before.index.held.items()}
        after.slots = dict(before.slots)
        worker.store(2)
        worker.remove(1)
        async with jetstream_of(nats) as jetstream:
            stream = await jetstream.find_stream_name_by_subject("namespace.demo.>")
            await jetstream.purge_stream(stream)
        durable = DurableRules(replica="gateway-0", positions=positions)
        async with open_router(after, durable=durable, cursors=(cursor,)):
            worker.store(3)
            await after.agrees_with(worker)


async def test_without_jetstream_workers_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = RouterSide()
    with NatsServer(has_jetstream=False) as server:
        monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
        monkeypatch.setenv("NATS_SERVER", server.url)
        async with open_worker("nats") as worker:
            worker.store(1)
            async with open_router(router, durable=RULES):
                await router.agrees_with(worker)


@asynccontextmanager
async def jetstream_of(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    connection = NatsConnection(NatsConfig(server=server.url))
    try:
        yield (await connection.client()).jetstream()
    finally:
        await connection.close()


async def test_workers_on_zmq_are_followed_as_ever(nats: NatsServer) -> None:
    router = RouterSide()
    async with open_router(router, durable=RULES), open_worker("zmq") as worker:
        worker.store(1)
        await router.agrees_with(worker)
        worker.store(2)
        await router.agrees_with(worker)


async def test_names_that_make_no_subject_are_refused() -> None:
    connection = NatsConnection()
    events = EventSubscriber(KV_EVENTS_TOPIC, lambda _envelopes: None, nats=connection)
    durable = DurableSubscriber(events, connection, RULES, lambda: None)
    for namespace, component in (("*", "backend"), ("demo", ">"), ("demo", "b d"), ("", "backend")):
        scope = Scope(endpoint=EndpointScope(namespace, component, "generate"))
        with pytest.raises(OSError, match="no NATS subject"):
            durable.connect(EventChannel(scope, KV_EVENTS_TOPIC, 1, Transport("Nats", {"subject_prefix": "p"})))
    await durable.close()
    await connection.close()


def is_reading(router: RouterSide) -> bool:
    return router.feed.durable is not None and router.feed.durable.is_reading
