"""Mode kv under load while everything dies that can: no client notices, what was known is known again, and in the end
nothing is taken to be running.

200 clients ask two mock workers for streams, with prompts of 16 families and half of them in sessions.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from tests.support.completions import Completion, all_begun, all_ended
from tests.support.etcd import EtcdServer
from tests.support.kv_gateway import KvGateway, Rank, prompt_of
from tests.support.mock_worker import MockWorker
from tests.support.nats import NatsServer
from tests.support.steady_load import NUM_FAMILIES, SteadyLoad, begin, family
from tests.support.waiting import until

NUM_CLIENTS = 200
NUM_TOKENS = 24  # of an answer, a tenth of a second each
ENDLESS = 100_000
BLOCK_SIZE = 16
WORKER = ("--block-size=16", "--num-blocks=16384", "--decode-speedup-ratio=0.05")
LONG_PROMPT = 50 * BLOCK_SIZE
SESSION_TTL_S = 3
BLOCKS = "dynamo_router_active_blocks"


class Stage:
    """Two workers and a gateway, unless told otherwise; what is started is stopped with `running`."""

    def __init__(self, running: ExitStack, store: Mapping[str, str], *flags: str, num_gateways: int = 1) -> None:
        self._running = running
        self._environment = {**store, "DYN_TCP_RPC_HOST": "127.0.0.1", "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1"}
        self._flags = (
            f"--discovery-backend={store['DYN_DISCOVERY_BACKEND']}",
            f"--router-session-affinity-ttl-secs={SESSION_TTL_S}",
            *flags,
        )
        self.workers: list[MockWorker] = []
        for _ in range(2):
            self.add_worker()
        self.gateways = [self._start_gateway() for _ in range(num_gateways)]
        for gateway in self.gateways:
            gateway.wait_until_it_has(len(self.workers))

    def add_worker(self) -> MockWorker:
        worker = self._running.enter_context(MockWorker(*WORKER, environment=self._environment))
        self.workers.append(worker)
        return worker

    def _start_gateway(self) -> KvGateway:
        return self._running.enter_context(
            KvGateway(*self._flags, model=MockWorker.model, environment=self._environment)
        )

    @property
    def gateway(self) -> KvGateway:
        return self.gateways[0]

    def load(self) -> SteadyLoad:
        return SteadyLoad(self.gateways, NUM_CLIENTS, NUM_TOKENS)

    async def assert_clean(self) -> None:
        """Nothing is taken to run any more, and nobody had anything to complain of."""
        for gateway in self.gateways:
            await gateway.until_idle()
            await until(partial(has_no_session, gateway), "the end of all sessions")
            assert gateway.complaints == []
        assert [line for worker in self.workers for line in worker.log.splitlines() if "Traceback" in line] == []


@contextmanager
def stage(store: Mapping[str, str], *flags: str, num_gateways: int = 1) -> Iterator[Stage]:
    with ExitStack() as running:
        yield Stage(running, store, *flags, num_gateways=num_gateways)


def has_no_session(gateway: KvGateway) -> bool:
    return gateway.total("dynamo_router_sessions") == 0


def file_store(directory: Path) -> dict[str, str]:
    return {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": os.fspath(directory / "store")}


def known_families(gateway: KvGateway) -> dict[int, dict[Rank, int]]:
    """Blocks of each that the router takes the ranks to hold."""
    return {number: gateway.held_blocks(family(number)) for number in range(NUM_FAMILIES)}


@asynccontextmanager
async def held_streams(gateway: KvGateway) -> AsyncIterator[list[Completion]]:
    """All in the middle of an answer that ends when their clients leave."""
    streams = [await begin(gateway, number, ENDLESS) for number in range(NUM_CLIENTS)]
    try:
        await all_begun(streams)
        yield streams
    finally:
        for stream in streams:
            stream.abort()
        await all_ended(streams)


async def settled_load(gateway: KvGateway, num_requests: int) -> dict[str, int]:
    """With so many requests, all prompts computed."""

    def is_settled() -> bool:
        load = gateway.load
        return load["dynamo_router_active_requests"] == num_requests and not load["dynamo_router_active_prefill_tokens"]

    await until(is_settled, f"the load of {num_requests} requests")
    return gateway.load


# ---- the router


async def test_a_killed_router_comes_back_with_its_index_and_all_load(tmp_path: Path) -> None:
    with stage(file_store(tmp_path)) as on:
        async with held_streams(on.gateway) as streams:
            load, families = await settled_load(on.gateway, NUM_CLIENTS), known_families(on.gateway)
            assert all(any(blocks.values()) for blocks in families.values())
            await until(on.gateway.kill_router(), "another router")
            await until(lambda: known_families(on.gateway) == families, "the index of its predecessor")
            await until(lambda: on.gateway.load == load, "the load of its predecessor")
            assert not any(stream.ended.is_set() for stream in streams)
        await on.assert_clean()


async def test_no_client_notices_that_routers_are_killed(tmp_path: Path) -> None:
    with stage(file_store(tmp_path)) as on:
        async with on.load() as load:
            for _ in range(3):
                await load.further(NUM_CLIENTS)
                await until(on.gateway.kill_router(), "another router")
            await load.further(NUM_CLIENTS)
        assert load.broken == []
        await on.assert_clean()


# ---- the planes


async def test_no_client_notices_that_the_nats_server_is_killed(tmp_path: Path) -> None:
    """Workers go on computing meanwhile: the router learns of it afterwards."""
    with NatsServer() as nats:
        store = {**file_store(tmp_path), "DYN_EVENT_PLANE": "nats", "NATS_SERVER": nats.url}
        with stage(store, "--router-replica-sync") as on:
            async with on.load() as load:
                await load.further(NUM_CLIENTS)
                nats.kill()
                missed = {rank: prompt_of(seed, LONG_PROMPT) for seed, rank in enumerate(on.gateway.ranks())}
                for rank, prompt in missed.items():
                    await asyncio.to_thread(on.gateway.route, prompt, at=rank)
                await load.further(NUM_CLIENTS)
                nats.start()
                await until(lambda: all(holds(on.gateway, *each) for each in missed.items()), "what was missed")
                await load.further(NUM_CLIENTS)
            assert load.broken == []
            await on.assert_clean()


def holds(gateway: KvGateway, rank: Rank, prompt: list[int]) -> bool:
    return gateway.held_blocks(prompt)[rank] == len(prompt) // BLOCK_SIZE


async def test_no_client_notices_that_etcd_is_killed() -> None:
    """A worker that comes afterwards is found, and what it holds."""
    with EtcdServer() as etcd, stage({"DYN_DISCOVERY_BACKEND": "etcd", "ETCD_ENDPOINTS": etcd.url}) as on:
        async with on.load() as load:
            await load.further(NUM_CLIENTS)
            etcd.kill()
            await load.further(2 * NUM_CLIENTS)
            await asyncio.to_thread(etcd.start)
            newcomer = await asyncio.to_thread(on.add_worker)
            await until(lambda: num_known_at(on.gateway, newcomer), "prompts at the new worker")
            await load.further(NUM_CLIENTS)
        assert load.broken == []
        await on.assert_clean()


def num_known_at(gateway: KvGateway, worker: MockWorker) -> int:
    return sum(blocks.get(Rank(worker.instance_id), 0) for blocks in known_families(gateway).values())


# ---- a worker


async def test_no_client_notices_that_a_worker_is_killed(tmp_path: Path) -> None:
    with stage(file_store(tmp_path)) as on:
        on.add_worker()
        on.gateway.wait_until_it_has(3)
        async with on.load() as load:
            await load.further(NUM_CLIENTS)
            victim = on.workers[0]
            assert num_known_at(on.gateway, victim)
            victim.kill()
            await until(lambda: Rank(victim.instance_id) not in on.gateway.ranks(), "the end of its registration")
            await load.further(NUM_CLIENTS)
        assert load.broken == []
        await until(lambda: on.gateway.total("dynamo_frontend_model_migration_total") > 0, "migrations in the metrics")
        await on.assert_clean()


# ---- a frontend, or a part of it


async def test_the_load_of_a_killed_replica_ends(tmp_path: Path) -> None:
    with stage(file_store(tmp_path), "--router-replica-sync", num_gateways=2) as on:
        killed, survivor = on.gateways
        async with held_streams(survivor) as kept:
            own = await settled_load(survivor, NUM_CLIENTS)
            async with held_streams(killed) as lost:
                await settled_load(killed, NUM_CLIENTS)
                await until(
                    lambda: own[BLOCKS] < survivor.load[BLOCKS] == killed.load[BLOCKS], "the load of both at both"
                )
                kill_all(killed)
                await all_ended(lost)
            await until(lambda: survivor.load == own, "the end of the load of the killed one")
            assert not any(stream.ended.is_set() for stream in kept)
        on.gateways = [survivor]
        await on.assert_clean()


def kill_all(gateway: KvGateway) -> None:
    """At once: a router whose supervisor has died would say goodbye."""
    gateway.signal(signal.SIGSTOP)
    for child in (gateway.pid_of("router"), *gateway.acceptors()):
        os.kill(child, signal.SIGKILL)
    gateway.kill()


async def test_a_killed_acceptor_takes_only_its_own_load_along(tmp_path: Path) -> None:
    with stage(file_store(tmp_path)) as on:
        async with held_streams(on.gateway) as streams:
            before = await settled_load(on.gateway, NUM_CLIENTS)
            victim, survivor = on.gateway.acceptors()
            lost, kept = on.gateway.held_by(victim, streams), on.gateway.held_by(survivor, streams)
            os.kill(victim, signal.SIGKILL)
            await all_ended(lost)
            after = await settled_load(on.gateway, len(kept))
            assert 0 < after[BLOCKS] < before[BLOCKS]
            assert not any(stream.ended.is_set() for stream in kept)
        await on.assert_clean()
