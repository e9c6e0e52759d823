"""The router's own acceptor on a real core, between them what the server does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from dynamo.router.class_queue import PolicyClass
from dynamo.router.core import Router
from dynamo.router.local_acceptor import LOCAL_PEER, GivenUp, LocalAcceptor, NotPlaced
from dynamo.router.rules import Rules
from dynamo.shared.discovery import CARDS, INSTANCES, Put
from dynamo.shared.messages import AcceptorMessage, Place
from tests.router.registrations import card_value, instance_value
from tests.support.waiting import until

ENDPOINT = "ns/backend/generate"


class World:
    """One worker whose queue is closed while anything is left to prefill."""

    def __init__(self) -> None:
        queue = PolicyClass(prefill_busy_threshold_frac=0.0)
        self.core = Router(Rules(router_mode="kv", uses_kv_events=False, policy_class=queue), random.Random(0))
        self.core.discover(INSTANCES, [Put(f"{ENDPOINT}/1", instance_value(1, ENDPOINT))])
        self.core.discover(CARDS, [Put(f"{ENDPOINT}/1", card_value(1, ENDPOINT, {"model": "m"}))])
        self.now = 0.0
        self.local = LocalAcceptor(self._deliver)
        self.local.open()
        self.until = asyncio.get_running_loop().create_future()

    def _deliver(self, peer: bytes, messages: list[AcceptorMessage]) -> None:
        self.core.receive(peer, messages, self.now)
        self._answer()

    def _answer(self) -> None:
        for peer, messages in self.core.take_outgoing().items():
            assert peer == LOCAL_PEER
            self.local.hear(messages)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick(self.now)
        self._answer()
        self.local.hear(())

    def place(self, num_tokens: int = 8, **wishes: object) -> Place:
        return Place(self.local.next_request_id(), "m", num_tokens, **wishes)  # type: ignore[arg-type]

    @property
    def load(self) -> tuple[int, int]:
        """Requests that run, and tokens to prefill."""
        return len(self.core.fleet.sequences), self.core.fleet.sequences.prefill_tokens[0]


def holding(world: World, place: Place, *, go_on: asyncio.Event, on_placed: Callable[[], None]) -> asyncio.Task[None]:
    async def hold() -> None:
        async with world.local.placed(place, world.until):
            on_placed()
            await go_on.wait()

    return asyncio.get_running_loop().create_task(hold())


async def test_a_placement_lasts_as_long_as_its_block() -> None:
    world = World()
    place = world.place()
    async with world.local.placed(place, world.until) as placed:
        assert placed.instance_id == 1
        assert world.load == (1, 8)
        world.local.complete_prefill(place.request_id)
        assert world.load == (1, 0)
    assert world.load == (0, 0)


async def test_silence_is_no_death() -> None:
    world = World()
    async with world.local.placed(world.place(), world.until):
        for _ in range(30):
            world.pass_time(1.0)
        assert world.load == (1, 8)


async def test_a_core_that_took_it_for_dead_is_told_again() -> None:
    """As after the process was stopped for a while. Who waited waits again, and is served."""
    world = World()
    first, go_on, order = world.place(), asyncio.Event(), list[str]()
    second = world.place()
    running = holding(world, first, go_on=go_on, on_placed=lambda: order.append("first"))
    await until(lambda: order == ["first"])
    waiting = holding(world, second, go_on=go_on, on_placed=lambda: order.append("second"))
    await until(lambda: world.core.queue.depths()["default"].requests == 1)
    assert (order, world.load) == (["first"], (1, 8))

    world.pass_time(100.0)
    assert world.load == (1, 8)
    assert world.core.queue.depths()["default"].requests == 1
    world.local.complete_prefill(first.request_id)
    go_on.set()
    await asyncio.gather(running, waiting)
    assert order == ["first", "second"]
    assert world.load == (0, 0)


async def test_who_gives_up_waiting_leaves_the_queue() -> None:
    world = World()
    async with world.local.placed(world.place(), world.until):
        gave_up = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(gave_up.set_result, None)
        with pytest.raises(GivenUp):
            async with world.local.placed(world.place(), gave_up):
                raise AssertionError("it was placed on a busy worker")
        assert world.core.queue.depths()["default"].requests == 0
        assert world.load == (1, 8)


async def test_a_refusal_says_why() -> None:
    world = World()
    with pytest.raises(NotPlaced, match="no worker with the instance id 9") as raised:
        async with world.local.placed(world.place(instance_id=9), world.until):
            raise AssertionError("it was placed")
    assert raised.value.code == "invalid_value"


@pytest.mark.parametrize("model", ["m", "unknown"])
async def test_an_endpoint_decides_whatever_the_model(model: str) -> None:
    world = World()
    place = Place(world.local.next_request_id(), model, 8, endpoint=ENDPOINT)
    async with world.local.placed(place, world.until) as placed:
        assert placed.instance_id == 1


@pytest.mark.parametrize("endpoint", ["ns/backend/gen", "ns/other/generate"])
async def test_nobody_is_asked_at_another_endpoint(endpoint: str) -> None:
    world = World()
    with pytest.raises(NotPlaced) as raised:
        async with world.local.placed(world.place(endpoint=endpoint), world.until):
            raise AssertionError("it was placed")
    assert raised.value.code == "model_not_ready"


async def test_workers_that_only_prefill_are_asked_by_endpoint() -> None:
    world = World()
    endpoint = "ns/prefill/generate"
    world.core.discover(INSTANCES, [Put(f"{endpoint}/2", instance_value(2, endpoint))])
    card = card_value(2, endpoint, {"model": "m", "type": "prefill", "needs": "decode"})
    world.core.discover(CARDS, [Put(f"{endpoint}/2", card)])
    async with world.local.placed(world.place(endpoint=endpoint), world.until) as placed:
        assert placed.instance_id == 2
