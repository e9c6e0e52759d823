"""Placement as an acceptor sees it, while its router is there, goes, hangs and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dynamo.frontend import router_client
from dynamo.frontend.router_client import PlacementWish, RouterClient
from dynamo.shared.errors import InvalidRequest, ModelNotFound, ModelNotReady, Overloaded
from dynamo.shared.messages import Free, Hello, Place, Refused, TableDelta, WorkerFailed
from tests.support.scripted_router import ScriptedRouter
from tests.support.waiting import until


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/router.sock"


@pytest.fixture
async def router(endpoint: str) -> AsyncIterator[ScriptedRouter]:
    made = ScriptedRouter(endpoint)
    yield made
    made.channel.close()


@pytest.fixture
async def client(endpoint: str, router: ScriptedRouter) -> AsyncIterator[RouterClient]:
    made = RouterClient(endpoint, "acceptor-0", lambda _left: None, inhibited_s=60)
    await asyncio.wait_for(made.first_table(), 5)
    yield made
    made.close()


async def test_a_placement_is_asked_for_and_freed(client: RouterClient, router: ScriptedRouter) -> None:
    async with client.place(PlacementWish("m", 40)) as placed:
        assert placed.instance_id == 1
        assert client.num_active == 1
    place = await router.hear(Place)
    free = await router.hear(Free)
    assert isinstance(place, Place)
    assert isinstance(free, Free)
    assert (place.model, place.num_tokens, free.request_id) == ("m", 40, place.request_id)
    assert client.num_active == 0


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("model_not_found", ModelNotFound),
        ("model_not_ready", ModelNotReady),
        ("overloaded", Overloaded),
        ("invalid_value", InvalidRequest),
    ],
)
async def test_a_refusal_is_the_error_it_names(
    client: RouterClient, router: ScriptedRouter, code: str, error: type[Exception]
) -> None:
    router.answer = lambda place: Refused(place.request_id, code, "because", 7)
    with pytest.raises(error):
        async with client.place(PlacementWish("m", 1)):
            pytest.fail("nothing was placed")
    assert client.num_active == 0


async def test_a_cancelled_request_is_freed_though_its_answer_is_under_way(
    client: RouterClient, router: ScriptedRouter
) -> None:
    router.answer = lambda _place: None
    task = asyncio.create_task(client.place(PlacementWish("m", 1)).__aenter__())
    await router.hear(Place)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await router.hear(Free)


async def test_a_dead_router_fails_nobody(client: RouterClient, router: ScriptedRouter) -> None:
    router.answer = lambda _place: None
    asked = asyncio.create_task(client.place(PlacementWish("m", 1)).__aenter__())
    await router.hear(Place)
    router.channel.close()
    assert (await asyncio.wait_for(asked, 5)).instance_id in {1, 2}
    async with client.place(PlacementWish("m", 1)) as placed:
        assert placed.worker_set == "set"
    assert client.num_local_placements == 2
    assert not client.is_connected


async def test_a_hung_router_fails_nobody(
    client: RouterClient, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_client, "PLACE_TIMEOUT_S", 0.1)
    router.answer = lambda _place: None
    async with asyncio.timeout(5), client.place(PlacementWish("m", 1)) as placed:
        assert placed.instance_id in {1, 2}
    assert (client.num_timeouts, client.num_local_placements) == (1, 1)


async def test_without_a_router_the_less_busy_worker_is_chosen(client: RouterClient, router: ScriptedRouter) -> None:
    router.channel.close()
    await until(lambda: not client.is_connected)
    chosen = [(await client.place(PlacementWish("m", 1)).__aenter__()).instance_id for _ in range(8)]
    assert sorted(chosen) == [1] * 4 + [2] * 4


async def test_without_a_router_a_failed_worker_is_left_alone(client: RouterClient, router: ScriptedRouter) -> None:
    client.report_failure(1, "gone")
    failed = await router.hear(WorkerFailed)
    assert isinstance(failed, WorkerFailed)
    assert failed.instance_id == 1
    router.channel.close()
    await until(lambda: not client.is_connected)
    chosen = {(await client.place(PlacementWish("m", 1)).__aenter__()).instance_id for _ in range(8)}
    assert chosen == {2}


async def test_without_a_router_unknown_models_are_still_unknown(client: RouterClient, router: ScriptedRouter) -> None:
    router.channel.close()
    await until(lambda: not client.is_connected)
    with pytest.raises(ModelNotFound):
        await client.place(PlacementWish("other", 1)).__aenter__()


async def test_a_returning_router_hears_what_is_held(
    client: RouterClient, router: ScriptedRouter, endpoint: str
) -> None:
    await client.place(PlacementWish("m", 40)).__aenter__()
    router.channel.close()
    await until(lambda: not client.is_connected)
    await client.place(PlacementWish("m", 7)).__aenter__()
    successor = ScriptedRouter(endpoint)
    hello = await successor.hear(Hello)
    assert isinstance(hello, Hello)
    assert sorted(active.num_tokens for active in hello.active) == [7, 40]
    await until(lambda: client.is_connected)
    successor.channel.close()


async def test_the_table_follows_and_a_gap_asks_for_all_of_it(client: RouterClient, router: ScriptedRouter) -> None:
    router.say(TableDelta(2, workers_down=[2]))
    await until(lambda: client.table.version == 2)
    assert set(client.table.workers) == {1}
    router.heard.clear()
    router.say(TableDelta(9, workers_down=[1]))
    await router.hear(Hello)
    await until(lambda: client.table.version == 1)
    assert set(client.table.workers) == {1, 2}
