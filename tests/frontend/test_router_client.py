"""Placement as an acceptor sees it, while its router is there, goes, hangs and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dynamo.frontend import router_client
from dynamo.frontend.placement import PlacementWish
from dynamo.frontend.router_client import NEVER, RouterClient
from dynamo.shared.errors import InternalError, InvalidRequest, ModelNotFound, ModelNotReady, Overloaded
from dynamo.shared.messages import (
    Free,
    Hello,
    OutputGrown,
    Place,
    Placed,
    PrefillCompleted,
    Queued,
    Refused,
    RoutingHints,
    Settings,
    TableDelta,
    WorkerFailed,
)
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
        ("queue_full", Overloaded),
        ("invalid_value", InvalidRequest),
        ("internal_error", InternalError),
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
    await client.place(PlacementWish("m", 7, hints=RoutingHints(session_id="s"))).__aenter__()
    successor = ScriptedRouter(endpoint)
    hello = await successor.hear(Hello)
    assert isinstance(hello, Hello)
    held = {active.num_tokens: active.hints for active in hello.active}
    assert held == {7: RoutingHints(session_id="s"), 40: None}
    await until(lambda: client.is_connected)
    successor.channel.close()


# ---- what a request says of itself


async def test_all_that_is_wished_is_said(client: RouterClient, router: ScriptedRouter) -> None:
    hints = RoutingHints(session_id="s", allowed_worker_ids=[1])
    wish = PlacementWish(
        "m", 40, "sum", b"8 bytes.", instance_id=1, dp_rank=2, excluded=[3], label="request-7", hints=hints
    )
    async with client.place(wish):
        pass
    place = await router.hear(Place)
    assert place == Place(1, "m", 40, b"8 bytes.", [3], 1, 2, "sum", "request-7", hints)


async def test_a_refused_pin_is_named(client: RouterClient, router: ScriptedRouter) -> None:
    router.answer = lambda place: Refused(place.request_id, "invalid_value", "no worker 7")
    with pytest.raises(InvalidRequest) as refused:
        await client.place(PlacementWish("m", 1, instance_id=7, pinned_by="x-worker-instance-id")).__aenter__()
    assert refused.value.param == "x-worker-instance-id"


async def test_without_a_router_pins_and_allowed_workers_count(client: RouterClient, router: ScriptedRouter) -> None:
    router.channel.close()
    await until(lambda: not client.is_connected)
    only_2 = RoutingHints(allowed_worker_ids=[2])
    for wish in (PlacementWish("m", 1, instance_id=2, dp_rank=3), PlacementWish("m", 1, hints=only_2)):
        for _ in range(4):
            async with client.place(wish) as placed:
                assert (placed.instance_id, placed.dp_rank) == (2, wish.dp_rank)
    assert client.num_local_placements == 8
    with pytest.raises(InvalidRequest, match="instance id 7") as refused:
        await client.place(PlacementWish("m", 1, instance_id=7)).__aenter__()
    assert refused.value.param == "nvext.backend_instance_id"
    with pytest.raises(ModelNotReady):
        await client.place(PlacementWish("m", 1, hints=RoutingHints(allowed_worker_ids=[7]))).__aenter__()


async def test_without_a_router_direct_requests_still_name_their_worker(
    client: RouterClient, router: ScriptedRouter
) -> None:
    client.router_mode = "direct"
    router.channel.close()
    await until(lambda: not client.is_connected)
    async with client.place(PlacementWish("m", 1, instance_id=2)) as placed:
        assert placed.instance_id == 2
    with pytest.raises(InvalidRequest, match="must name its worker"):
        await client.place(PlacementWish("m", 1)).__aenter__()


def test_elsewhere_is_where_a_request_may_go_and_has_not_been(client: RouterClient) -> None:
    assert client.can_place_elsewhere(PlacementWish("m", 1, excluded=[1]))
    assert not client.can_place_elsewhere(PlacementWish("m", 1, excluded=[1, 2]))
    assert not client.can_place_elsewhere(PlacementWish("m", 1, "another card"))
    assert not client.can_place_elsewhere(PlacementWish("m", 1, instance_id=1, excluded=[1]))
    allowed = RoutingHints(allowed_worker_ids=[1])
    assert not client.can_place_elsewhere(PlacementWish("m", 1, excluded=[1], hints=allowed))


# ---- waiting in the router's queue


async def queued(client: RouterClient, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch) -> asyncio.Task[Placed]:
    """A placement that waits there for longer than an answer may take."""
    monkeypatch.setattr(router_client, "PLACE_TIMEOUT_S", 0.0)
    router.answer = lambda place: Queued(place.request_id)
    task = asyncio.create_task(client.place(PlacementWish("m", 1)).__aenter__())
    await router.hear(Place)
    await asyncio.sleep(1.1 * router_client.HEARTBEAT_INTERVAL_S)
    assert not task.done()
    return task


async def test_a_queued_request_waits_for_its_place(
    client: RouterClient, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await queued(client, router, monkeypatch)
    router.say(Placed(1, 2, "set"))
    assert (await task).instance_id == 2
    assert (client.num_timeouts, client.num_local_placements) == (0, 0)


async def test_a_queued_request_may_be_refused(
    client: RouterClient, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await queued(client, router, monkeypatch)
    router.say(Refused(1, "queue_full", "waited too long", 7))
    with pytest.raises(Overloaded, match="waited too long") as refused:
        await task
    assert refused.value.retry_after_s == 7


async def test_a_queued_request_that_is_cancelled_is_taken_back(
    client: RouterClient, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await queued(client, router, monkeypatch)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await router.hear(Free) == Free(1)


async def test_a_router_that_has_forgotten_who_waits_is_asked_again(
    client: RouterClient, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await queued(client, router, monkeypatch)
    router.answer = lambda place: Placed(place.request_id, 2, "set")
    router.say(TableDelta(0))
    async with asyncio.timeout(5):
        assert (await task).instance_id == 2
    assert (client.num_timeouts, client.num_local_placements) == (0, 0)


async def test_a_queue_that_is_lost_with_its_router_fails_nobody(
    client: RouterClient, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await queued(client, router, monkeypatch)
    router.channel.close()
    assert (await task).instance_id in {1, 2}
    assert client.num_local_placements == 1


async def test_a_router_that_falls_silent_loses_its_queue(
    client: RouterClient, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await queued(client, router, monkeypatch)
    monkeypatch.setattr(router_client, "MAX_SILENCE_S", 0.0)
    assert (await task).instance_id in {1, 2}
    assert (client.num_timeouts, client.num_local_placements) == (1, 1)


# ---- what becomes of a placement


async def test_the_router_hears_of_progress_if_it_wants_to(client: RouterClient, router: ScriptedRouter) -> None:
    router.say(Settings(tracks_prefill=True, tracks_output_blocks=True))
    await until(lambda: client.settings.tracks_prefill)
    placement = client.place(PlacementWish("m", 40, block_size=16))  # three blocks
    async with placement:
        assert placement.reached(41) == 49
        assert placement.reached(50) == 65
        assert placement.reached(100) == 113
    await router.hear(Free)
    told = [message for message in router.heard if isinstance(message, PrefillCompleted | OutputGrown)]
    assert told == [PrefillCompleted(1), OutputGrown(1, 1), OutputGrown(1, 3)]


async def test_a_router_that_does_not_ask_hears_of_no_progress(client: RouterClient, router: ScriptedRouter) -> None:
    placement = client.place(PlacementWish("m", 40, block_size=16))
    async with placement:
        assert placement.reached(41) == NEVER
    await router.hear(Free)
    assert not [message for message in router.heard if isinstance(message, PrefillCompleted | OutputGrown)]


async def test_a_returning_router_hears_how_far_requests_are(
    client: RouterClient, router: ScriptedRouter, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_client, "MAX_HELLO_HASHES", 24)
    client.settings = Settings(tracks_output_blocks=True)
    router.answer = lambda place: Placed(place.request_id, 1, "set", 3)
    first = client.place(PlacementWish("m", 40, block_hashes=b"a" * 16, block_size=16))
    second = client.place(PlacementWish("m", 20, block_hashes=b"b" * 8, block_size=16))
    third = client.place(PlacementWish("m", 30, block_hashes=b"c" * 8, block_size=16))
    async with first, second, third:
        first.reached(70)
        router.channel.close()
        await until(lambda: not client.is_connected)
        successor = ScriptedRouter(endpoint)
        hello = await successor.hear(Hello)
        assert isinstance(hello, Hello)
        told = [(a.num_tokens, a.dp_rank, a.is_prefill_completed, a.num_output_blocks) for a in hello.active]
        assert told == [(40, 3, True, 2), (20, 3, False, 0), (30, 3, False, 0)]
        assert [a.block_hashes for a in hello.active] == [b"a" * 16, b"b" * 8, b""]
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
