"""A real frontend of Dynamo 1.6.1 and ours in one replica-sync group, over both event planes."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from dynamo.router.replica_link import ReplicaLink
from dynamo.router.replicas import ReplicaSync
from dynamo.shared.discovery import INSTANCES, Put
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.hashing import block_hashes, pack_tokens, sequence_hashes
from dynamo.shared.kv_events import WorkerRank
from dynamo.shared.nats import NatsConnection
from dynamo.shared.nats_config import NatsConfig
from dynamo.shared.replica_events import AffinityBinding, RunningRequest
from tests.interop.anchor import AnchorFrontend, Mocker, Store, file_store
from tests.router.replica_network import Host
from tests.support.kv_gateway import KvGateway, Rank, prompt_of
from tests.support.nats import NatsServer
from tests.support.waiting import until, wait_until

SCOPE = EndpointScope("dynamo", "backend", "generate")
MODEL = Mocker.model
BLOCK_SIZE = 16
OURS = 4242  # router id
LONG = 4000  # tokens that nobody waits for
PROMPT = list(range(1000, 1000 + 3 * BLOCK_SIZE + 5))


@dataclass
class Fleet:
    """Two real workers and a real frontend."""

    store: Store
    directory: Path
    event_plane: str
    nats: NatsServer
    frontend: AnchorFrontend

    def active(self, what: str) -> dict[int, int]:
        """What the frontend says of the load of its workers, by worker id."""
        with urllib.request.urlopen(f"{self.frontend.base_url}/metrics", timeout=10) as answer:
            lines = re.findall(rf"^dynamo_frontend_worker_active_{what}\{{(.*)\}} (\d+)", answer.read().decode(), re.M)
        return {int(re.findall(r'worker_id="(\d+)"', labels)[0]): int(value) for labels, value in lines}

    def complete(self, prompt: list[int], headers: dict[str, str] | None = None) -> int:
        """The worker that the frontend has chosen for the prompt."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 1, "nvext": {"extra_fields": ["worker_id"]}}
        request = urllib.request.Request(
            f"{self.frontend.base_url}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json", **(headers or {})},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            chosen: dict[str, Any] = json.load(answer)["nvext"]["worker_id"]
        return int(chosen["decode_worker_id"])


@pytest.fixture(scope="module", params=["zmq", "nats"])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("store")
    with ExitStack() as stack:
        nats = stack.enter_context(NatsServer())
        variables = {**file_store(directory).variables, "DYN_EVENT_PLANE": request.param, "NATS_SERVER": nats.url}
        store = Store("file", variables)
        for _ in range(2):
            stack.enter_context(Mocker(store, "--speedup-ratio=1"))
        frontend = AnchorFrontend(
            store, "--router-mode=kv", "--router-replica-sync", "--router-session-affinity-ttl-secs=60"
        )
        stack.enter_context(frontend)
        wait_until(lambda: frontend.models() == {MODEL}, "the model")
        yield Fleet(store, directory, request.param, nats, frontend)


class OurRouter:
    """As much of a router of ours as replica sync needs."""

    def __init__(self, fleet: Fleet, discovery: FileDiscovery, nats: NatsConnection) -> None:
        self.host = Host()
        self.sync = ReplicaSync(OURS, self.host, has_batches=fleet.event_plane == "zmq")
        self.link = ReplicaLink(self.sync, discovery, fleet.event_plane, lambda: None, nats=nats)

    @property
    def workers(self) -> list[int]:
        return [rank.worker_id for rank in self.host.ranks]

    def add(self, request_id: str, worker_id: int, token_ids: list[int]) -> None:
        hashes = sequence_hashes(block_hashes(pack_tokens(token_ids), BLOCK_SIZE))
        packed = b"".join(value.to_bytes(8, "little") for value in hashes)
        self.sync.added(SCOPE, RunningRequest(request_id, WorkerRank(worker_id), packed, len(token_ids)))
        self.link.flush_soon()

    def free(self, request_id: str) -> None:
        self.sync.freed(SCOPE, request_id)
        self.link.flush_soon()


@asynccontextmanager
async def our_router(fleet: Fleet) -> AsyncIterator[OurRouter]:
    """Returned when both sides hear each other."""
    discovery = FileDiscovery(fleet.directory)
    await discovery.open()
    nats = NatsConnection(NatsConfig(server=fleet.nats.url))
    router = OurRouter(fleet, discovery, nats)
    try:
        router.host.ranks = await ranks(discovery)
        router.link.follow([SCOPE])
        await until_connected(fleet, router)
        yield router
    finally:
        await router.link.close()
        await discovery.close()
        await nats.close()


async def ranks(discovery: FileDiscovery) -> set[WorkerRank]:
    async for changes in discovery.watch(INSTANCES):
        instances = [json.loads(change.value) for change in changes if isinstance(change, Put)]
        found = {WorkerRank(each["instance_id"]) for each in instances if each["endpoint"] == SCOPE.name}
        if len(found) == 2:
            return found
    raise AssertionError("discovery has ended")


async def until_connected(fleet: Fleet, router: OurRouter) -> None:
    """A subscription takes effect some time after its channel was announced: repeat what is to be heard."""
    worker_id = router.workers[0]

    def is_heard() -> bool:
        router.free("probe")
        router.add("probe", worker_id, PROMPT)
        return fleet.active("decode_blocks").get(worker_id, 0) > 0

    await asyncio.to_thread(wait_until, is_heard, "the real frontend to hear us")
    router.free("probe")
    await load_becomes(fleet, worker_id, 0, 0)


async def load_becomes(fleet: Fleet, worker_id: int, num_blocks: int, num_tokens: int) -> None:
    """What the real frontend says of a worker."""

    def is_so() -> bool:
        blocks, tokens = fleet.active("decode_blocks"), fleet.active("prefill_tokens")
        return (blocks.get(worker_id, 0), tokens.get(worker_id, 0)) == (num_blocks, num_tokens)

    await asyncio.to_thread(wait_until, is_so, f"{num_blocks} blocks and {num_tokens} tokens on {worker_id}")


async def test_the_load_of_the_real_one_is_seen_here(fleet: Fleet) -> None:
    async with (
        our_router(fleet) as ours,
        AsyncOpenAI(base_url=f"{fleet.frontend.base_url}/v1", api_key="unused", max_retries=0) as client,
    ):
        stream: openai.AsyncStream[Any] = await client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=LONG, stream=True
        )
        await anext(aiter(stream))
        await until(lambda: len(ours.host.remote) == 1, "the request of the real frontend")
        [(key, request)] = ours.host.remote.items()
        assert key.router_id != OURS
        assert request.worker in ours.host.ranks
        assert len(request.block_hashes) == 8 * (len(PROMPT) // BLOCK_SIZE)
        await until(lambda: ours.host.remote[key].num_prefill_tokens == 0, "its first token")
        await stream.close()
        await until(lambda: not ours.host.remote, "its end")
        assert ours.sync.counts.malformed == 0
        assert ours.sync.counts.late == 0


async def test_our_load_is_seen_by_the_real_one(fleet: Fleet) -> None:
    async with our_router(fleet) as ours:
        loaded, idle = ours.workers
        ours.add("a", loaded, list(range(5000, 5000 + 100 * BLOCK_SIZE)))
        ours.add("b", loaded, list(range(5000, 5000 + 60 * BLOCK_SIZE)))  # its blocks are the other's

        await load_becomes(fleet, loaded, 100, 160 * BLOCK_SIZE)
        chosen = {await asyncio.to_thread(fleet.complete, [7000 + i] * 20) for i in range(10)}
        assert chosen == {idle}
        ours.sync.prefill_completed(SCOPE, "a")  # which its metrics show only with the next event
        ours.free("b")
        await load_becomes(fleet, loaded, 100, 0)
        ours.free("a")
        await load_becomes(fleet, loaded, 0, 0)


async def test_sessions_are_bound_at_both(fleet: Fleet) -> None:
    async with our_router(fleet) as ours:
        bound_there = await asyncio.to_thread(fleet.complete, [8000] * 40, {"x-dynamo-session-id": "theirs"})
        await until(lambda: "theirs" in ours.host.bound, "the binding")
        assert ours.host.bound["theirs"].worker_id == bound_there
        for number, worker_id in enumerate(ours.workers):
            session_id = f"ours-{number}"
            ours.sync.bound(SCOPE, AffinityBinding(session_id, worker_id, 0, time.time_ns(), OURS))
        ours.link.flush_soon()
        ours.add("ballast", ours.workers[0], list(range(9000, 9000 + 100 * BLOCK_SIZE)))
        await load_becomes(fleet, ours.workers[0], 100, 100 * BLOCK_SIZE)
        for number, worker_id in enumerate(ours.workers):
            headers = {"x-dynamo-session-id": f"ours-{number}"}
            assert await asyncio.to_thread(fleet.complete, [8500] * 40, headers) == worker_id
        ours.free("ballast")
        await load_becomes(fleet, ours.workers[0], 0, 0)


# ---- a whole gateway


@contextmanager
def held(base_url: str, prompt: list[int], worker_id: int | None = None) -> Iterator[None]:
    """A request that runs as long as the block."""
    pin = {} if worker_id is None else {"nvext": {"backend_instance_id": worker_id}}
    with OpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=0) as client:
        stream = client.completions.create(model=MODEL, prompt=prompt, max_tokens=LONG, stream=True, extra_body=pin)
        with stream:
            next(iter(stream))
            yield


def test_a_gateway_and_a_real_frontend_see_each_others_load(fleet: Fleet) -> None:
    with KvGateway(
        fleet.store.flag, "--router-replica-sync", model=MODEL, environment=fleet.store.environment
    ) as gateway:
        gateway.wait_until_it_has(2)
        with held(fleet.frontend.base_url, prompt_of(1, 100 * BLOCK_SIZE)):
            wait_until(lambda: sorted(loads(gateway).values()) == [0, 100], "the real one's request at ours")
            [idle] = [rank for rank, num_blocks in loads(gateway).items() if not num_blocks]
            assert {gateway.route(prompt_of(2 + i, 20)).rank for i in range(5)} == {idle}
        wait_until(lambda: not any(loads(gateway).values()), "its end at ours")
        loaded, idle = gateway.ranks()
        with held(gateway.base_url, prompt_of(20, 100 * BLOCK_SIZE), loaded.worker_id):
            wait_until(
                lambda: fleet.active("decode_blocks").get(loaded.worker_id) == 100, "our request at the real one"
            )
            assert {fleet.complete(prompt_of(30 + i, 20)) for i in range(5)} == {idle.worker_id}
        wait_until(lambda: not fleet.active("decode_blocks")[loaded.worker_id], "its end at the real one")
        assert gateway.complaints == []


def loads(gateway: KvGateway) -> dict[Rank, int]:
    """Active blocks by rank, as the gateway compares them."""
    return {rank: int(one["load"]["decode_blocks"]) for rank, one in gateway.candidates([1, 2, 3]).items()}
