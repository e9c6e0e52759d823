"""Unmodified workers of Dynamo 1.6.1 behind our router in mode kv: it knows what they hold, whatever gets lost."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.interop.anchor import Mocker, Store, file_store
from tests.interop.conftest import open_store
from tests.support.kv_gateway import KvGateway, Rank, Refusal, Routed, prompt_of
from tests.support.nats import NatsServer
from tests.support.processes import paused
from tests.support.prompt_tree import ask_and_wait, prompt_of_tree
from tests.support.tcp_line import TcpLine
from tests.support.waiting import wait_until

MODEL = Mocker.model
BLOCK_SIZE = 16
LONG = 8000  # tokens
TAIL = 5  # tokens that fill no block
SMALL = 80  # blocks of a cache
NUM_CHURN = 300  # requests


@dataclass(frozen=True)
class Workers:
    """Real ones, and where they are found."""

    store: Store
    mockers: list[Mocker]
    num_ranks: int

    @contextmanager
    def gateway(self, *flags: str) -> Iterator[KvGateway]:
        """Ready, with all ranks known; its log is clean at the end."""
        with KvGateway(self.store.flag, *flags, model=MODEL, environment=self.store.environment) as gateway:
            gateway.wait_until_it_has(self.num_ranks)
            yield gateway
            assert gateway.complaints == []


@contextmanager
def started(store: Store, *flags: str, num_workers: int = 2, num_ranks: int = 1) -> Iterator[Workers]:
    with ExitStack() as stack:
        arguments = ("--speedup-ratio=0", f"--data-parallel-size={num_ranks}", *flags)
        mockers = [stack.enter_context(Mocker(store, *arguments)) for _ in range(num_workers)]
        yield Workers(store, mockers, num_workers * num_ranks)


@pytest.fixture(scope="module", params=["zmq-file", "nats-file", "zmq-etcd", "nats-etcd"])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    event_plane, backend = request.param.split("-")
    with (
        NatsServer() as nats,
        open_store(backend, tmp_path_factory.mktemp("store")) as store,
        started(with_events(store, event_plane, nats), num_ranks=2) as workers,
    ):
        yield workers


def with_events(store: Store, event_plane: str, nats: NatsServer) -> Store:
    return Store(store.backend, {**store.variables, "DYN_EVENT_PLANE": event_plane, "NATS_SERVER": nats.url})


@pytest.fixture(scope="module")
def gateway(workers: Workers) -> Iterator[KvGateway]:
    with workers.gateway() as gateway:
        yield gateway


_seeds = count()


def new_prompt(num_tokens: int = LONG + TAIL) -> list[int]:
    """That nobody has seen."""
    return prompt_of(next(_seeds), num_tokens)


def compute(gateway: KvGateway, at: Rank, num_tokens: int = LONG + TAIL) -> list[int]:
    """A new prompt, computed there, and known to be."""
    prompt = new_prompt(num_tokens)
    assert gateway.route(prompt, at=at).rank == at
    gateway.wait_until_held(prompt, at, num_tokens // BLOCK_SIZE)
    return prompt


def compute_everywhere(gateway: KvGateway) -> dict[Rank, list[int]]:
    """Another prompt at each rank."""
    return {rank: compute(gateway, rank) for rank in gateway.ranks()}


def wait_until_all_held(gateway: KvGateway, prompts: dict[Rank, list[int]]) -> None:
    for rank, prompt in prompts.items():
        gateway.wait_until_held(prompt, rank, len(prompt) // BLOCK_SIZE)


def assert_all_match(gateway: KvGateway, prompts: dict[Rank, list[int]]) -> None:
    for rank, prompt in prompts.items():
        assert gateway.route(prompt) == Routed(rank, "cost", LONG, LONG)


def test_the_second_identical_prompt_goes_to_the_rank_that_has_it(gateway: KvGateway) -> None:
    assert_all_match(gateway, compute_everywhere(gateway))


def test_the_last_block_of_a_prompt_is_computed_again(gateway: KvGateway) -> None:
    """Its logits are needed. The worker says so; the router counts what is held."""
    rank = gateway.ranks()[0]
    prompt = compute(gateway, rank, LONG)
    assert gateway.route(prompt) == Routed(rank, "cost", LONG, LONG - BLOCK_SIZE)


# ---- what was missed


def test_a_router_that_starts_late_asks_for_what_is_there(workers: Workers, gateway: KvGateway) -> None:
    prompts = compute_everywhere(gateway)
    with workers.gateway() as late:
        wait_until_all_held(late, prompts)
        assert_all_match(late, prompts)


def test_a_killed_router_comes_back_with_all_it_knew(workers: Workers) -> None:
    with workers.gateway() as gateway:
        prompts = compute_everywhere(gateway)
        wait_until(gateway.kill_router(), "another router")
        wait_until_all_held(gateway, prompts)
        assert_all_match(gateway, prompts)


def wait_for_another(file: Path) -> None:
    def inode() -> int:
        return file.stat().st_ino if file.exists() else 0

    last = inode()
    wait_until(lambda: inode() != last, f"another {file.name}")


def test_a_snapshot_makes_a_router_warm_without_asking_anybody(tmp_path: Path) -> None:
    """The workers are stopped while it starts, so nobody else can have told it."""
    snapshot = tmp_path / "snapshot"
    flags = (f"--router-snapshot={snapshot}", "--router-snapshot-interval-secs=1")
    with started(file_store(tmp_path / "store")) as workers, workers.gateway(*flags) as gateway, ExitStack() as stack:
        prompts = compute_everywhere(gateway)
        before = {rank: gateway.held_blocks(prompt) for rank, prompt in prompts.items()}
        for _ in range(2):  # the first may have begun before
            wait_for_another(snapshot)
        for mocker in workers.mockers:
            stack.enter_context(paused(mocker.pid))
        wait_until(gateway.kill_router(), "another router")
        assert {rank: gateway.held_blocks(prompt) for rank, prompt in prompts.items()} == before
        stack.close()
        assert_all_match(gateway, prompts)


def test_a_broker_tells_what_happened_while_no_router_was_there(tmp_path: Path) -> None:
    """The workers are stopped when the router comes back, so only the broker and a snapshot can have told it."""
    durable = (
        "--router-durable-kv-events",
        f"--router-snapshot={tmp_path / 'snapshot'}",
        "--router-snapshot-interval-secs=1",
    )
    with (
        NatsServer() as nats,
        started(with_events(file_store(tmp_path / "store"), "nats", nats)) as workers,
        workers.gateway() as other,
        workers.gateway(*durable) as gateway,
        ExitStack() as stack,
    ):
        prompts = compute_everywhere(gateway)
        for _ in range(2):  # the first may have begun before
            wait_for_another(tmp_path / "snapshot")
        with paused(gateway.pid):  # or it would start another router at once
            is_back = gateway.kill_router()
            missed = compute_everywhere(other)
            for mocker in workers.mockers:
                stack.enter_context(paused(mocker.pid))
        wait_until(is_back, "another router")
        wait_until_all_held(gateway, prompts)
        wait_until_all_held(gateway, missed)
        stack.close()
        assert_all_match(gateway, missed)


def test_events_lost_on_a_broken_line_are_asked_for(tmp_path: Path) -> None:
    """The next event to come shows that some are missing."""
    store = file_store(tmp_path)
    with started(store, num_workers=1) as workers, event_line(tmp_path) as line, workers.gateway() as gateway:
        [rank] = gateway.ranks()
        known = compute(gateway, rank)
        line.cut()
        missed = [new_prompt() for _ in range(3)]
        for prompt in missed:
            assert gateway.route(prompt).cached == 0
        line.mend()

        def is_heard() -> bool:
            """A subscription takes effect some time after its connection."""
            return gateway.route(new_prompt(3 * BLOCK_SIZE)).rank == rank and held_by(gateway, rank, missed[0])

        assert not any(held_by(gateway, rank, prompt) for prompt in missed)
        wait_until(is_heard, "what was missed")
        assert_all_match(gateway, {rank: known})
        for prompt in missed:
            assert_all_match(gateway, {rank: prompt})


def held_by(gateway: KvGateway, rank: Rank, prompt: list[int]) -> bool:
    return gateway.held_blocks(prompt)[rank] == len(prompt) // BLOCK_SIZE


@contextmanager
def event_line(store: Path) -> Iterator[TcpLine]:
    """Announce this line in the place of the KV events' socket of the only worker."""
    wait_until(lambda: len(kv_channels(store)) == 1, "the channel of KV events")
    [file] = kv_channels(store)
    channel = json.loads(file.read_text())
    endpoint = urlsplit(channel["transport"]["config"]["endpoint"])
    assert endpoint.port is not None
    with TcpLine(("127.0.0.1", endpoint.port)) as line:
        channel["transport"]["config"]["endpoint"] = f"tcp://127.0.0.1:{line.port}"
        file.write_text(json.dumps(channel))
        yield line


def kv_channels(store: Path) -> list[Path]:
    return [file for file in store.glob("v1/event_channels/*") if "kv%2Devents" in file.name]


def test_events_lost_with_the_nats_server_are_asked_for(tmp_path: Path) -> None:
    with (
        NatsServer() as nats,
        started(with_events(file_store(tmp_path), "nats", nats)) as workers,
        workers.gateway("--router-replica-sync", "--event-plane=nats") as gateway,
    ):
        known = compute_everywhere(gateway)
        nats.kill()
        missed = {rank: new_prompt() for rank in gateway.ranks()}
        for rank, prompt in missed.items():
            assert gateway.route(prompt, at=rank).rank == rank
        nats.start()
        wait_until_all_held(gateway, missed)
        assert_all_match(gateway, missed)
        assert_all_match(gateway, known)


# ---- what is forgotten


def test_claims_and_truth_agree_while_workers_evict(tmp_path: Path) -> None:
    """Two caches that hold a fraction of all prompts: what the router expects of a worker, the worker finds."""
    with started(file_store(tmp_path), f"--num-gpu-blocks-override={SMALL}") as workers, workers.gateway() as gateway:
        draw = random.Random(3)
        prompts = [prompt_of_tree(draw) for _ in range(NUM_CHURN)]
        routed = [ask_and_wait(gateway, prompt) for prompt in prompts]
        assert {one.predicted - one.cached for one in routed} == {0}
        assert len({one.rank for one in routed}) == 2
        num_tokens, num_cached = sum(map(len, prompts)), sum(one.cached for one in routed)
        assert num_cached > num_tokens // 4
        assert num_tokens - num_cached > 4 * SMALL * BLOCK_SIZE  # more was computed than both can hold
        assert 0 < gateway.total("dynamo_router_index_holdings") <= 2 * SMALL


@pytest.mark.parametrize("event_plane", ["zmq", "nats"])
def test_claims_and_truth_agree_again_after_everything_died(tmp_path: Path, event_plane: str) -> None:
    """Routers and the NATS server, while several clients keep two small caches busy."""
    with (
        NatsServer() as nats,
        started(with_events(file_store(tmp_path), event_plane, nats), f"--num-gpu-blocks-override={SMALL}") as workers,
        workers.gateway() as gateway,
        ThreadPoolExecutor(8) as clients,
    ):
        draw = random.Random(5)
        busy = [clients.submit(gateway.route, prompt_of_tree(draw)) for _ in range(2 * NUM_CHURN)]
        for some in (busy[: NUM_CHURN // 3], busy[:NUM_CHURN]):
            futures.wait(some)
            is_back = gateway.kill_router()
            nats.kill()
            wait_until(is_back, "another router")
            nats.start()
        for each in busy:
            each.result()
        for _ in range(2):
            for rank in gateway.ranks():
                compute(gateway, rank, 30 * BLOCK_SIZE)
        for _ in range(NUM_CHURN // 3):
            routed = ask_and_wait(gateway, prompt_of_tree(draw))
            assert routed.predicted == routed.cached


# ---- what is asked for


@contextmanager
def busy(gateway: KvGateway, rank: Rank) -> Iterator[None]:
    """An answer of this rank goes on all the time: its 100 blocks count as load, there is nothing left to prefill."""
    body = {
        "prompt": new_prompt(100 * BLOCK_SIZE),
        "max_tokens": 1 << 20,
        "nvext": {"backend_instance_id": rank.worker_id, "dp_rank": rank.dp_rank},
    }
    with gateway.open_stream(body):
        wait_until(lambda: is_at_work(gateway, rank), f"the load at {rank}")
        yield


def is_at_work(gateway: KvGateway, rank: Rank) -> bool:
    load = gateway.candidates([1, 2, 3])[rank]["load"]
    return bool(load["decode_blocks"] >= 100 and load["prefill_tokens"] == 0)


NO_CREDIT = {"overlap_score_credit": 0.0}
FULL_CREDIT = {"overlap_score_credit": 1.0}


def test_a_request_may_weigh_the_cache_in_its_own_way(tmp_path: Path) -> None:
    with started(file_store(tmp_path)) as workers, workers.gateway() as gateway:
        holder, other = gateway.ranks()
        prompt = compute(gateway, holder)
        with busy(gateway, holder):
            assert gateway.route(prompt) == Routed(holder, "cost", LONG, LONG)
            assert gateway.route(prompt, weights=NO_CREDIT) == Routed(other, "cost", 0, 0)


def test_workers_say_how_their_cache_is_to_be_weighed(tmp_path: Path) -> None:
    """In their card: it goes over what the operator said, and under what the request says."""
    said = ("--router-mode=kv", "--router-kv-overlap-score-credit=0")
    with started(file_store(tmp_path), *said) as workers, workers.gateway() as gateway:
        holder, other = gateway.ranks()
        prompt = compute(gateway, holder)
        with busy(gateway, holder):
            assert gateway.route(prompt, weights=FULL_CREDIT) == Routed(holder, "cost", LONG, LONG)
            assert gateway.route(prompt) == Routed(other, "cost", 0, 0)


# ---- two frontends


@contextmanager
def two_gateways(directory: Path, *flags: str) -> Iterator[tuple[KvGateway, KvGateway]]:
    with started(file_store(directory)) as workers:
        replica = ("--router-replica-sync", *flags)
        with workers.gateway(*replica) as first, workers.gateway(*replica) as second:
            yield first, second


def test_a_session_stays_at_its_worker_whichever_frontend_it_asks(tmp_path: Path) -> None:
    with two_gateways(tmp_path, "--router-session-affinity-ttl-secs=60") as gateways:
        first, second = gateways
        session = {"x-dynamo-session-id": "a conversation"}
        home = first.route(new_prompt(), headers=session).rank
        wait_until(lambda: second.total("dynamo_router_sessions") == 1, "the session at the other frontend")
        with busy(first, home):
            wait_until(lambda: is_at_work(second, home), "its load at the other frontend")
            for gateway in gateways:
                routed = gateway.route(new_prompt(), headers=session)
                assert (routed.rank, routed.reason) == (home, "affinity")
                assert gateway.route(new_prompt()).rank != home


THRESHOLDS = "/v1/admin/busy_threshold"


def test_a_threshold_set_at_one_frontend_is_obeyed_by_both(tmp_path: Path) -> None:
    with two_gateways(tmp_path) as gateways, ExitStack() as load:
        first, second = gateways
        limit = {"active_decode_blocks_threshold": 0.004}  # of 16384 blocks: 65
        told = first.call("PUT", THRESHOLDS, limit)
        wait_until(lambda: thresholds_of(second) == told, "the threshold at the other frontend")
        for rank in first.ranks():
            load.enter_context(busy(first, rank))
        for gateway in gateways:
            wait_until(partial(is_refused, gateway), "a refusal")
        load.close()
        for gateway in gateways:
            wait_until(partial(is_served, gateway), "room")
        told = second.call("PUT", THRESHOLDS, {})
        wait_until(lambda: thresholds_of(first) == told, "the end of the threshold")


def thresholds_of(gateway: KvGateway) -> object:
    return next(iter(gateway.get(THRESHOLDS)["thresholds"]), None)


def is_refused(gateway: KvGateway) -> bool:
    try:
        gateway.route(new_prompt(BLOCK_SIZE))
    except Refusal as refusal:
        return refusal.status == 529
    return False


def is_served(gateway: KvGateway) -> bool:
    return not is_refused(gateway)
