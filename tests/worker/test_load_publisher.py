from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dynamo.shared.discovery import EVENT_CHANNELS
from dynamo.shared.discovery.mem import MemDiscovery
from dynamo.shared.kv_events import LoadReport
from dynamo.shared.runtime import DistributedRuntime, Endpoint
from dynamo.shared.serving_config import ServingConfig
from dynamo.worker import WorkerMetricsPublisher
from tests.support.waiting import until
from tests.worker.router_view import RouterView, open_view


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    runtime = DistributedRuntime(config=ServingConfig(discovery_backend="mem"))
    try:
        yield runtime.endpoint("demo.backend.generate")
    finally:
        await runtime.wait_closed()


@pytest.fixture
async def view() -> AsyncIterator[RouterView]:
    async with open_view() as view:
        yield view


async def met(view: RouterView, publisher: WorkerMetricsPublisher) -> None:
    """Until reports arrive; then forget them."""
    load = iter(range(10**6, 10**9))

    def has_arrived() -> bool:
        publisher.publish(99, kv_used_blocks=next(load))
        return bool(view.loads)

    await until(has_arrived, "a report")
    publisher.publish(99, kv_used_blocks=0)
    await until(lambda: view.loads[-1].kv_used_blocks == 0)
    view.loads.clear()


async def test_changes_are_reported(endpoint: Endpoint, view: RouterView) -> None:
    publisher = WorkerMetricsPublisher()
    await publisher.create_endpoint(endpoint)
    await met(view, publisher)
    publisher.publish(1, active_decode_blocks=3, kv_used_blocks=7)
    publisher.publish(kv_used_blocks=5)
    await until(lambda: len(view.loads) == 2)
    worker_id = endpoint.connection_id()
    assert view.loads == [LoadReport(worker_id, 1, 3, None, 7), LoadReport(worker_id, 0, None, None, 5)]
    publisher.publish(0, None, 5)
    publisher.publish(0, None, 6)
    await until(lambda: len(view.loads) == 3)
    assert view.loads[2].kv_used_blocks == 6


async def test_of_many_changes_the_newest_is_reported(endpoint: Endpoint, view: RouterView) -> None:
    publisher = WorkerMetricsPublisher()
    await publisher.create_endpoint(endpoint)
    await met(view, publisher)

    def engine() -> None:
        for used in range(1, 10_001):
            publisher.publish(0, used, used)

    await asyncio.to_thread(engine)
    await until(lambda: view.loads and view.loads[-1].kv_used_blocks == 10_000)
    assert len(view.loads) < 1000


async def test_what_was_published_early_is_reported_later(endpoint: Endpoint, view: RouterView) -> None:
    publisher = WorkerMetricsPublisher()
    publisher.publish(3, kv_used_blocks=8)
    await publisher.create_endpoint(endpoint)
    await met(view, publisher)
    assert publisher._told[3].kv_used_blocks == 8


async def test_everything_is_told_again_for_those_who_come_later(
    endpoint: Endpoint, view: RouterView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo.worker.load_publisher.HEARTBEAT_S", 0.05)
    publisher = WorkerMetricsPublisher()
    await publisher.create_endpoint(endpoint)
    publisher.publish(0, kv_used_blocks=5)
    await until(lambda: [report.kv_used_blocks for report in view.loads].count(5) > 3)


async def test_a_report_that_says_nothing(endpoint: Endpoint) -> None:
    with pytest.raises(ValueError, match="needs"):
        WorkerMetricsPublisher().publish(0)


async def test_the_runtime_takes_it_along(endpoint: Endpoint) -> None:
    publisher = WorkerMetricsPublisher()
    await publisher.create_endpoint(endpoint)
    await endpoint.runtime.wait_closed()
    publisher.publish(0, kv_used_blocks=5)
    async for changes in MemDiscovery().watch(EVENT_CHANNELS):
        assert changes == []
        return
