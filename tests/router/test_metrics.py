"""What a router tells of itself: a process as it is scraped, and single parts as they are counted."""

from __future__ import annotations

import random
import re
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from dynamo.router.class_queue import PolicyClass
from dynamo.router.config import RouterConfig
from dynamo.router.core import Router
from dynamo.router.intake import Intake
from dynamo.router.metric_parts import Parts
from dynamo.router.metrics import RouterMetrics
from dynamo.router.rules import Rules
from dynamo.shared.discovery import CARDS, INSTANCES, Deleted, Put
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.hashing import sequence_hashes
from dynamo.shared.messages import AcceptorMessage, Free, Hello, Place, PrefillCompleted
from dynamo.shared.metrics import MAX_LABEL_SETS, Registry, render
from dynamo.shared.nats import NatsConnection
from tests.router.event_world import open_worker
from tests.router.registrations import card_value, instance_value
from tests.router.test_process import Acceptor, RouterProcess
from tests.support.fleet import Metrics
from tests.support.gateway import Gateway
from tests.support.nats import NatsServer
from tests.support.standalone_router import StandaloneRouter, store_in
from tests.support.waiting import PATIENCE_S, until

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
ENDPOINT = "demo/backend/generate"
COMPONENT = "dynamo_component_router"
STARTED = f"{COMPONENT}_requests_started_total"
OF_COMPONENT = {"dynamo_namespace": "demo", "dynamo_component": "backend"}
BLOCK_SIZE = 4
NUM_TOKENS = 10  # of each prompt, in three blocks
PENDING = ("requests", "isl_tokens", "cached_tokens")


def packed(*tokens_hashes: int) -> bytes:
    """The sequence hashes of a prompt of these blocks."""
    return b"".join(each.to_bytes(8, "little") for each in sequence_hashes(list(tokens_hashes)))


def families_of(text: bytes) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", text.decode(), re.MULTILINE))


def listed(*titles: str) -> set[str]:
    sections = DOCS.read_text().split("\n## ")[1:]
    return {
        name
        for section in sections
        if section.partition("\n")[0] in titles
        for name in re.findall(r"^\| `(\S+)` \|", section, re.MULTILINE)
    }


# ---- a process


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandaloneRouter]:
    store = store_in(tmp_path)
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    with StandaloneRouter(store, "--router-mode=kv", "--metrics-prefix=acme") as router:
        yield router


@pytest.fixture
async def discovery(router: StandaloneRouter) -> AsyncIterator[FileDiscovery]:
    discovery = FileDiscovery()
    await discovery.open()
    yield discovery
    await discovery.close()


async def register(discovery: FileDiscovery, worker_id: int) -> None:
    key = f"{ENDPOINT}/{worker_id:x}"
    await discovery.publish(INSTANCES, key, instance_value(worker_id, ENDPOINT))
    await discovery.publish(CARDS, key, card_value(worker_id, ENDPOINT, {"model": "m"}))


async def until_indexed(router: StandaloneRouter, num_blocks: int) -> None:
    await until(lambda: router.metrics().total("dynamo_router_index_blocks") == num_blocks, "what the worker holds")


@pytest.fixture
async def acceptor(router: StandaloneRouter) -> AsyncIterator[Acceptor]:
    acceptor = Acceptor(router.address, "acceptor")
    yield acceptor
    acceptor.channel.close()


async def test_what_a_worker_holds_and_gets_is_told(
    router: StandaloneRouter, discovery: FileDiscovery, acceptor: Acceptor
) -> None:
    async with open_worker("zmq") as worker:
        await register(discovery, worker.worker_id)
        worker.store(1)
        worker.store(2)
        await until_indexed(router, 2)
        await acceptor.welcome()
        await acceptor.place(1, block_hashes=packed(1, 5))
        await until(lambda: router.metrics().total("dynamo_router_placements_total") == 1, "the placement")
        told = router.metrics()
        rank = {"worker_id": str(worker.worker_id), "dp_rank": "0", "worker_type": "decode"}
        assert told.total("acme_worker_active_decode_blocks", **rank) == 2
        assert told.total("acme_worker_active_prefill_tokens", **rank) == NUM_TOKENS - BLOCK_SIZE
        assert told.total(f"{COMPONENT}_worker_registered", router_worker_id=str(worker.worker_id)) == 1
        assert told.total("dynamo_component_kv_cache_events_applied", event_type="stored", status="ok") == 2
        assert told.total("dynamo_router_kv_event_sources") == 1
        assert told.total("dynamo_router_event_channels", feed="kv_events") == 1
        assert hit_rates(told) == {"0.2": 0, "0.4": 1}
        for which in ("selected", "best_eligible"):
            name = f"{COMPONENT}_kv_{which}_cached_prefix_tokens_total"
            assert told.total(name, model="m", phase="aggregated", **OF_COMPONENT) == BLOCK_SIZE
        assert told.by_label("dynamo_router_placement_reasons_total", "reason") == {"cost": 1}
        assert requests(told) == {"started": 1, "ended": 0}
        acceptor.free(1)
        await until(lambda: requests(router.metrics()) == {"started": 1, "ended": 1}, "the end of the request")


def hit_rates(told: Metrics) -> dict[str, int]:
    return {le: told.total(f"{COMPONENT}_kv_hit_rate_bucket", le=le, **OF_COMPONENT) for le in ("0.2", "0.4")}


def requests(told: Metrics) -> dict[str, int]:
    return {
        "started": told.total(STARTED, **OF_COMPONENT),
        "ended": told.total(f"{COMPONENT}_requests_total", **OF_COMPONENT),
    }


async def test_a_worker_that_is_gone_takes_its_gauges_along_and_still_finishes(
    router: StandaloneRouter, discovery: FileDiscovery, acceptor: Acceptor
) -> None:
    await register(discovery, 7)
    await acceptor.welcome()
    await until(lambda: router.metrics().total("dynamo_router_workers") == 1, "the worker")
    assert await acceptor.place(1, block_hashes=packed(1, 2)) == 7
    for bucket in (INSTANCES, CARDS):
        await discovery.withdraw(bucket, f"{ENDPOINT}/7")
    await until(lambda: router.metrics().total("dynamo_router_workers") == 0, "its end")
    for family in ("acme_worker_active_decode_blocks", f"{COMPONENT}_worker_registered", "dynamo_router_active_blocks"):
        assert router.metrics().by_label(family, "dp_rank") == {}
    assert requests(router.metrics()) == {"started": 1, "ended": 0}
    acceptor.free(1)
    await until(lambda: requests(router.metrics()) == {"started": 1, "ended": 1}, "the end of the request")


def test_a_router_alone_has_the_families_that_are_listed(router: StandaloneRouter) -> None:
    renamed = {re.sub("^dynamo_frontend_", "acme_", name) for name in listed("Router")}
    assert families_of(router.metrics().text) == renamed


def test_a_gateway_has_the_families_that_are_listed() -> None:
    with (
        Gateway("--router-mode=kv") as gateway,
        urllib.request.urlopen(f"{gateway.base_url}/metrics", timeout=PATIENCE_S) as answer,
    ):
        assert families_of(answer.read()) == listed("Acceptors", "Router")


async def test_a_replacement_goes_on_with_the_labels_of_its_predecessor(tmp_path: Path) -> None:
    router = RouterProcess(tmp_path)
    discovery = FileDiscovery(router.store)
    await discovery.open()
    await register(discovery, 7)
    try:
        for life in (1, 2):
            await place_one(router, life)
    finally:
        router.kill()
        await discovery.close()
    [(_router_id, started)] = Metrics(render(router.metrics)).by_label(STARTED, "router_id").items()
    assert started == 2


async def place_one(router: RouterProcess, life: int) -> None:
    """In a life that ends when it is counted."""
    router.start(options={"router_mode": "kv", "replica": "one"})
    acceptor = Acceptor(router.address, f"acceptor-{life}")
    await acceptor.welcome()
    await acceptor.place(life, block_hashes=packed(1, 2))
    await until(lambda: Metrics(render(router.metrics)).total(STARTED) == life, "the placement")
    acceptor.channel.close()
    router.kill()


EVERYTHING = (
    "--endpoint=demo.backend.generate",
    "--event-plane=nats",
    "--router-replica-sync",
    "--router-durable-kv-events",
    "--router-snapshot={directory}/snapshot",
    "--router-snapshot-interval-secs=1",
    "--router-predicted-ttl-secs=60",
    "--router-decision-log={directory}/decisions",
    "--router-session-affinity-ttl-secs=60",
    "--active-decode-blocks-threshold=0.9",
)
TOLD_IF_USED = (
    "nats_connected",
    "nats_connects_total",
    "replica_peers",
    'replica_sync_total{event="snapshots_sent"}',
    "kv_stream_read",
    'snapshots_total{outcome="saved"}',
    "snapshot_saved_timestamp_seconds",
    "predicted_blocks",
    "sessions",
)


async def test_every_part_of_a_router_tells_its_numbers(tmp_path: Path) -> None:
    with NatsServer() as nats:
        store = store_in(tmp_path) | {"NATS_SERVER": nats.url}
        discovery = FileDiscovery(Path(store["DYN_FILE_KV"]))
        await discovery.open()
        await register(discovery, 7)
        with StandaloneRouter(store, *(flag.format(directory=tmp_path) for flag in EVERYTHING)) as router:
            await until(lambda: not missing(router.metrics()), "numbers of every part")
            feeds = router.metrics().by_label("dynamo_router_event_channels", "feed")
            assert feeds.keys() == {"kv_events", "load", "replicas"}
        await discovery.close()


def missing(told: Metrics) -> list[str]:
    text = told.text.decode()
    return [name for name in TOLD_IF_USED if f"\ndynamo_router_{name} " not in text]


# ---- what a core has counted


class Counted:
    """A core without a process around it, and what is told of it."""

    def __init__(self, core: Router, discovery: FileDiscovery, directory: Path) -> None:
        self.core = core
        self._directory = directory
        self._metrics = RouterMetrics(Registry(directory, "router"), "acme", "one")
        nats = NatsConnection()
        self._parts = Parts(core, Intake(RouterConfig(), core, discovery, nats), nats)
        self.hear(Hello("acceptor", 1, []))

    def add_workers(self, num_workers: int, **options: str) -> None:
        ids = range(1, 1 + num_workers)
        options = {"model": "m"} | options
        self.core.discover(INSTANCES, [Put(key_of(i), instance_value(i, ENDPOINT)) for i in ids])
        self.core.discover(CARDS, [Put(key_of(i), card_value(i, ENDPOINT, options)) for i in ids])

    def drop_worker(self, worker_id: int) -> None:
        for bucket in (INSTANCES, CARDS):
            self.core.discover(bucket, [Deleted(key_of(worker_id))])

    def hear(self, *messages: AcceptorMessage, now: float = 0.0) -> None:
        self.core.receive(b"peer", messages, now)

    def metrics(self) -> Metrics:
        self._metrics.save(self._parts)
        return Metrics(render(self._directory))


def key_of(worker_id: int) -> str:
    return f"{ENDPOINT}/{worker_id:x}"


Make = Callable[[Rules], Counted]


@pytest.fixture
async def count(tmp_path: Path) -> AsyncIterator[Make]:
    discovery = FileDiscovery(tmp_path / "store")
    await discovery.open()
    yield lambda rules: Counted(Router(rules, random.Random(1)), discovery, tmp_path)
    await discovery.close()


async def test_the_queue_is_told_by_model_and_class(count: Make) -> None:
    narrow = PolicyClass(prefill_busy_threshold=0, max_queued_requests=1)
    counted = count(Rules(router_mode="kv", policy_class=narrow))
    counted.add_workers(1)
    counted.hear(*(Place(i, "m", NUM_TOKENS, packed(i, i)) for i in range(3)))
    told = counted.metrics()
    labels = {"model": "m", "policy_class": "default", "worker_type": "decode"}
    queue = "acme_router_queue"
    pending = {what: told.total(f"{queue}_pending_{what}", **labels) for what in PENDING}
    assert pending == {"requests": 1, "isl_tokens": NUM_TOKENS, "cached_tokens": 0}
    refused = {"request_limit": 1, "raw_isl_token_limit": 0, "cached_token_limit": 0}
    assert told.by_label(f"{queue}_backpressure_total", "reason") == refused
    counted.hear(PrefillCompleted(0), now=2.0)
    told = counted.metrics()
    assert {what: told.total(f"{queue}_pending_{what}", **labels) for what in PENDING} == dict.fromkeys(PENDING, 0)
    waited = {le: told.total("dynamo_router_queue_wait_seconds_bucket", le=le) for le in ("1", "2.5")}
    assert waited == {"1": 0, "2.5": 1}


async def test_what_the_best_rank_has_is_told_beside_the_chosen_one(count: Make) -> None:
    counted = count(Rules(router_mode="kv", uses_kv_events=False, predicted_ttl_s=60))
    counted.add_workers(2)
    prompt = packed(1, 2)
    counted.hear(
        Place(1, "m", NUM_TOKENS, prompt, instance_id=1),
        Place(2, "m", 100 * NUM_TOKENS, instance_id=1),
        Place(3, "m", NUM_TOKENS, prompt),
    )
    told = counted.metrics()
    assert told.by_label("dynamo_router_placement_reasons_total", "reason") == {"pinned": 2, "cost": 1}
    blocks = {which: told.total(f"dynamo_router_{which}_blocks_total") for which in ("overlap", "best_overlap")}
    assert blocks == {"overlap": 0, "best_overlap": 2}


async def test_ranks_beyond_the_bound_are_added_up(count: Make) -> None:
    counted = count(Rules(router_mode="kv"))
    counted.add_workers(MAX_LABEL_SETS + 5)
    registered = counted.metrics().by_label(f"{COMPONENT}_worker_registered", "router_worker_id")
    assert len(registered) == MAX_LABEL_SETS + 1
    assert registered["other"] == 5


async def test_sets_that_are_gone_keep_what_they_counted(count: Make) -> None:
    """Also what they counted since the last look."""
    counted = count(Rules(router_mode="kv"))
    counted.add_workers(1)
    counted.hear(Place(1, "m", NUM_TOKENS, packed(1)))
    counted.drop_worker(1)
    counted.hear(Free(1))
    told = counted.metrics()
    assert requests(told)["started"] == 1
    assert told.by_label("dynamo_router_prompt_blocks_total", "model") == {"m": 3}
