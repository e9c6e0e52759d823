from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo.shared.discovery import EVENT_SOURCES
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.kv_events import LoadReport
from tests.router.event_world import RouterSide, load_feed, load_publisher, open_router, open_worker
from tests.support.nats import NatsServer
from tests.support.waiting import until

BOTH_PLANES = pytest.mark.parametrize("event_plane", ["zmq", "nats"])


@pytest.fixture(scope="module")
def nats_of_module() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture(autouse=True)
def nats(nats_of_module: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    monkeypatch.setenv("NATS_SERVER", nats_of_module.url)
    return nats_of_module


@BOTH_PLANES
async def test_the_router_learns_what_workers_hold_and_follows_them(event_plane: str) -> None:
    router = RouterSide()
    async with open_worker(event_plane) as first:
        first.store(1, 2, 3)
        async with open_router(router) as feed, open_worker(event_plane) as second:
            await router.agrees_with(first)
            first.remove(3)
            second.store(3, 4)
            await router.agrees_with(first, second)
            second.clear()
            second.store(5)
            await router.agrees_with(first, second)
            assert feed.num_malformed == 0


@BOTH_PLANES
async def test_a_worker_that_leaves_holds_nothing(event_plane: str) -> None:
    router = RouterSide()
    async with open_router(router) as feed:
        async with open_worker(event_plane) as worker:
            worker.store(1)
            await router.agrees_with(worker)
        await until(lambda: not router.held(worker))
        await until(lambda: feed.channels.num_channels == 0)


async def test_sources_that_cannot_be_read_do_not_disturb_others(tmp_path: Path) -> None:
    router = RouterSide()
    async with open_router(router) as feed, open_worker("zmq") as worker:
        discovery = FileDiscovery(tmp_path)
        for number, value in enumerate((b"{", b'{"type":"EventSource","more":' + b'{"a":' * 50_000)):
            await discovery.publish(EVENT_SOURCES, f"bad/{number}", value)
        await until(lambda: feed.num_malformed == 2)
        worker.store(1)
        await router.agrees_with(worker)
        await discovery.close()


@BOTH_PLANES
async def test_load_reports_arrive(event_plane: str) -> None:
    reports: list[LoadReport] = []
    async with load_feed(reports), open_worker(event_plane) as worker, load_publisher(worker) as load:

        def has_arrived() -> bool:
            load.publish(0, active_decode_blocks=len(reports) + 1, kv_used_blocks=9)
            return bool(reports)

        await until(has_arrived, "a load report")
        assert reports[-1] == LoadReport(worker.worker_id, 0, active_decode_blocks=1, kv_used_blocks=9)


@BOTH_PLANES
async def test_what_was_missed_is_asked_for(event_plane: str) -> None:
    router = RouterSide()
    async with open_router(router) as feed, open_worker(event_plane) as worker:
        worker.store(1)
        await router.agrees_with(worker)
        for channel in feed.channels.connected():
            feed.events.disconnect(channel)
        worker.store(2)
        await asyncio.sleep(0.1)
        for channel in feed.channels.connected():
            feed.events.connect(channel)
        worker.store(3)
        await router.agrees_with(worker)
        assert feed.sources.counts.replays >= 1, "by a gap, or by a check that comes before it"


async def test_a_large_history_is_applied_in_pieces() -> None:
    router = RouterSide()
    async with open_worker("zmq") as worker:
        for start in range(0, 100_000, 1000):
            worker.store(*range(start, start + 1000))
        async with open_router(router) as feed:
            await router.agrees_with(worker)
            assert feed.sources.counts.dumps >= 1


async def test_nats_killed_and_back_under_load_loses_nothing(nats: NatsServer) -> None:
    router = RouterSide()
    async with open_router(router), open_worker("nats") as worker:
        worker.store(0)
        await router.agrees_with(worker)
        for name in range(1, 300):
            if name == 100:
                nats.kill()
            if name == 200:
                await asyncio.to_thread(nats.start)
            worker.store(name)
            await asyncio.sleep(0.002)
        worker.remove(7)
        await router.agrees_with(worker)
