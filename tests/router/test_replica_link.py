"""Routers that find each other through discovery and talk over real sockets and a real NATS server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from dynamo.router.replica_host import RemoteKey
from dynamo.router.replica_link import ReplicaLink
from dynamo.router.replicas import ReplicaSync
from dynamo.shared.discovery import EVENT_CHANNELS
from dynamo.shared.discovery.mem import MemDiscovery, MemStore
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.messages import Thresholds
from dynamo.shared.nats import NatsConnection
from dynamo.shared.nats_config import NatsConfig
from dynamo.shared.replica_events import AffinityBinding, RunningRequest
from tests.router.replica_network import SCOPE, TOPICS, Host
from tests.support.nats import NatsServer
from tests.support.waiting import INTERVAL_S, until

WORKER = WorkerRank(1)
FIRST_ROUTER = 100  # no worker has the id of a router


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


class Router:
    """A replica as its process has it, without the rest of the router."""

    def __init__(self, router_id: int, store: MemStore, transport: str, nats: NatsConnection) -> None:
        self.router_id = router_id
        self.host = Host()
        self.sync = ReplicaSync(router_id, self.host, has_batches=transport == "zmq")
        self.discovery = MemDiscovery(store)
        self.num_heard = 0
        self.link = ReplicaLink(self.sync, self.discovery, transport, self._on_heard, nats=nats)

    def _on_heard(self) -> None:
        self.num_heard += 1

    def add(self, request_id: str, scope: EndpointScope = SCOPE) -> None:
        self.sync.added(scope, RunningRequest(request_id, WORKER, b"12345678", 64))
        self.link.flush_soon()

    def free(self, request_id: str) -> None:
        self.sync.freed(SCOPE, request_id)
        self.link.flush_soon()

    def sees(self, router_id: int, *request_ids: str) -> bool:
        seen = {key.request_id for key in self.host.remote if key.router_id == router_id}
        return seen == set(request_ids)


class Plane:
    def __init__(self, transport: str, server: NatsServer) -> None:
        self.transport = transport
        self.store = MemStore()
        self._server = server
        self._num_routers = 0

    async def num_channels(self) -> int:
        return len(await anext(aiter(MemDiscovery(self.store).watch(EVENT_CHANNELS))))

    @asynccontextmanager
    async def router(self, *scopes: EndpointScope) -> AsyncIterator[Router]:
        self._num_routers += 1
        nats = NatsConnection(NatsConfig(server=self._server.url))
        router = Router(FIRST_ROUTER - 1 + self._num_routers, self.store, self.transport, nats)
        await router.discovery.open()
        serving = asyncio.create_task(router.link.serve())
        router.link.follow(scopes or [SCOPE])
        try:
            yield router
            assert not serving.done()
        finally:
            serving.cancel()
            await router.link.close()
            await router.discovery.close()
            await nats.close()


@pytest.fixture(params=["zmq", "nats"])
def plane(request: pytest.FixtureRequest, server: NatsServer) -> Plane:
    return Plane(request.param, server)


async def test_replicas_see_each_others_requests_come_and_go(plane: Plane) -> None:
    async with plane.router() as one, plane.router() as other:
        one.add("a")
        other.add("b")
        await until(lambda: other.sees(FIRST_ROUTER, "a") and one.sees(FIRST_ROUTER + 1, "b"), "both requests at both")
        assert other.host.remote[RemoteKey(FIRST_ROUTER, "a")] == RunningRequest("a", WORKER, b"12345678", 64)
        assert one.num_heard
        one.sync.prefill_completed(SCOPE, "a")
        one.link.flush_soon()
        await until(lambda: other.host.remote[RemoteKey(FIRST_ROUTER, "a")].num_prefill_tokens == 0)
        one.free("a")
        other.free("b")
        await until(lambda: not other.host.remote and not one.host.remote, "nothing to be left")


async def test_one_that_joins_hears_of_everything(plane: Plane) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(plane.router())
        for number in range(1000):
            one.add(f"r{number}")
        one.sync.thresholds_set(Thresholds("m", active_prefill_tokens_threshold=7))
        one.host.bound["s"] = AffinityBinding("s", 1, 0, 5, 1)
        late = await stack.enter_async_context(plane.router())
        await until(lambda: late.sees(FIRST_ROUTER, *(f"r{number}" for number in range(1000))), "a snapshot")
        await until(lambda: late.host.bound == one.host.bound, "bindings")
        assert late.host.thresholds == {"m": Thresholds("m", active_prefill_tokens_threshold=7)}


async def test_one_that_leaves_takes_its_load_along(plane: Plane) -> None:
    async with plane.router() as one:
        async with plane.router() as other:
            other.add("b")
            await until(lambda: one.sees(FIRST_ROUTER + 1, "b"))
        await until(lambda: not one.host.remote and not one.sync.num_peers, "the other to be forgotten")


async def test_scopes_come_and_go(plane: Plane) -> None:
    elsewhere = EndpointScope("demo", "other", "generate")
    async with plane.router(SCOPE, elsewhere) as one, plane.router() as other:
        one.add("here")
        one.add("there", elsewhere)
        await until(lambda: other.sees(FIRST_ROUTER, "here"))
        other.link.follow([elsewhere])
        await until(lambda: other.sees(FIRST_ROUTER, "there"), "what runs in the other scope")
        other.link.follow([])
        assert not other.host.remote
        while await plane.num_channels() != 2 * len(TOPICS):
            await asyncio.sleep(INTERVAL_S)


async def test_a_broker_that_goes_and_comes_back() -> None:
    with NatsServer() as server:
        plane = Plane("nats", server)
        async with plane.router() as one, plane.router() as other:
            one.add("before")
            await until(lambda: other.sees(FIRST_ROUTER, "before"))
            await asyncio.to_thread(server.kill)
            one.free("before")
            one.add("meanwhile")
            other.add("too")
            await asyncio.to_thread(server.start)
            await until(lambda: other.sees(FIRST_ROUTER, "meanwhile") and one.sees(FIRST_ROUTER + 1, "too"))


async def test_a_scope_that_cannot_be_announced_ends_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_EVENT_PLANE_HOST", "192.0.2.1")
    discovery = MemDiscovery(MemStore())
    await discovery.open()
    link = ReplicaLink(ReplicaSync(1, Host()), discovery, "zmq", lambda: None)
    link.follow([SCOPE])
    with pytest.raises(OSError, match="DYN_EVENT_PLANE_HOST"):
        await link.serve()
    await link.close()
