"""Our publisher over real sockets, as routers see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dynamo.shared.discovery import EVENT_CHANNELS, EVENT_SOURCES, INSTANCES
from dynamo.shared.discovery.mem import MemDiscovery
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.hashing import block_hashes, hash_seed, pack_tokens
from dynamo.shared.kv_events import Change, KvEvent, RouterEvent, Stored, StoredBlock
from dynamo.shared.nats import NatsConnection
from dynamo.shared.nats_config import NatsConfig
from dynamo.shared.runtime import DistributedRuntime, Endpoint
from dynamo.shared.serving_config import ServingConfig
from dynamo.worker import KvEventPublisher, PublisherClosed
from tests.support.nats import NatsServer
from tests.support.waiting import until
from tests.worker.router_view import RouterView, held_after, open_view, removed_by, stored_by

TOKENS = list(range(8))
OWN = block_hashes(pack_tokens(TOKENS), 4)


@pytest.fixture(scope="module")
def nats_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@asynccontextmanager
async def running(event_plane: str = "zmq") -> AsyncIterator[Endpoint]:
    runtime = DistributedRuntime(config=ServingConfig(discovery_backend="mem", event_plane=event_plane))
    try:
        yield runtime.endpoint("demo.backend.generate")
    finally:
        await runtime.wait_closed()


def publisher_of(endpoint: Endpoint, **options: Any) -> KvEventPublisher:
    return KvEventPublisher(endpoint, kv_block_size=4, enable_local_indexer=True, **options)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with running() as endpoint:
        yield endpoint


@pytest.fixture
async def view() -> AsyncIterator[RouterView]:
    async with open_view() as view:
        yield view


def events_of(view: RouterView) -> list[KvEvent]:
    return [event.event for event in view.events]


def blocks(*hashes: int) -> list[StoredBlock]:
    return [StoredBlock(block_hash, block_hash * 10) for block_hash in hashes]


async def test_a_stored_block_and_its_removal(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.meets(publisher)
    publisher.publish_stored(TOKENS, [4, 4], [11, -1])
    publisher.publish_removed([-1])
    await until(lambda: len(view.events) == 2)
    stored, removed = events_of(view)
    expected = Stored([StoredBlock(11, OWN[0]), StoredBlock(2**64 - 1, OWN[1])])
    assert isinstance(stored.data, Change)
    assert (stored.data.stored, stored.dp_rank) == (expected, 0)
    assert removed_by(view.events[1]) == [2**64 - 1]
    assert removed.event_id == stored.event_id + 1
    assert {(event.worker_id, event.storage_tier, event.residency_domain) for event in view.events} == {
        (endpoint.connection_id(), "device", "worker")
    }


async def test_over_nats(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_SERVER", nats_server.url)
    nats = NatsConnection(NatsConfig(server=nats_server.url))
    async with open_view(nats) as view, running("nats") as endpoint:
        publisher = publisher_of(endpoint)
        await view.meets(publisher)
        publisher.publish_stored(TOKENS, [4, 4], [1, 2])
        await until(lambda: view.events)
        assert stored_by(view.events[0]) == [1, 2]
        dump = (await view.ask()).tree_dump
        assert dump is not None
        assert [stored_by(event) for event in dump.events] == [[1, 2]]
    await nats.close()


async def test_changes_of_one_tick_leave_together_and_belong_together(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.meets(publisher)
    publisher.stored(Stored(blocks(1, 2)))
    publisher.stored(Stored(blocks(3), 2))
    publisher.stored(Stored(blocks(4), 2))
    publisher.removed([4])
    publisher.removed([3])
    publisher.cleared()
    publisher.stored(Stored(blocks(5)))
    await until(lambda: view.events)
    assert view.num_messages == 1
    assert [event.data if event.data == "cleared" else "" for event in events_of(view)] == ["cleared", ""]
    publisher.stored(Stored(blocks(6), 5))
    publisher.stored(Stored(blocks(7), 6))
    publisher.stored(Stored(blocks(8), 6))
    publisher.removed([8])
    publisher.removed([7])
    await until(lambda: len(view.events) == 5)
    assert [stored_by(event) for event in view.events[2:]] == [[6, 7], [8], []]
    assert removed_by(view.events[4]) == [8, 7]
    assert view.num_messages == 2


async def test_a_batching_timeout_collects_for_longer(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint, batching_timeout_ms=300)
    await view.meets(publisher)
    publisher.stored(Stored(blocks(1)))
    await asyncio.sleep(0.01)
    publisher.stored(Stored(blocks(2), 1))
    await until(lambda: view.events)
    assert [stored_by(event) for event in view.events] == [[1, 2]]


async def test_many_blocks_leave_in_several_messages(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.meets(publisher)
    for first in range(0, 20_000, 100):
        publisher.stored(Stored(blocks(*range(first, first + 100)), first - 1 if first else None))
    await until(lambda: sum(len(stored_by(event)) for event in view.events) == 20_000)
    assert [block for event in view.events for block in stored_by(event)] == list(range(20_000))
    assert view.num_messages >= 4
    assert publisher.num_dropped == 0


async def test_a_block_stored_twice_is_gone_when_it_is_removed_twice(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.meets(publisher)
    for _ in range(2):
        publisher.publish_stored(TOKENS, [4, 4], [1, 2])
    publisher.publish_removed([2])
    publisher.publish_removed([2, 1])
    await view.until_removed(99, publisher)
    assert [removed_by(event) for event in view.events] == [[], [], [2, 99]]
    assert [event.event_id - events_of(view)[0].event_id for event in events_of(view)] == [0, 1, 2]


async def test_seeds_images_and_eagle_are_in_the_hashes(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.meets(publisher)
    publisher.publish_stored(TOKENS[:4], [4], [1], lora_name="ad", cache_salt="x")
    publisher.publish_stored([*TOKENS, 8], [4, 4], [2, 3], is_eagle=True)
    image = {"mm_objects": [{"mm_hash": 7, "offsets": [[0, 2]]}]}
    publisher.publish_stored(TOKENS[:4], [4], [4], block_mm_infos=[image])
    await until(lambda: len(view.events) == 3)
    found = [block for event in view.events for block in _blocks_of(event)]
    assert [block.tokens_hash for block in found] == [
        *block_hashes(pack_tokens(TOKENS[:4]), 4, hash_seed("ad", "x")),
        *block_hashes(pack_tokens([*TOKENS, 8]), 4, is_eagle=True),
        *block_hashes(pack_tokens(TOKENS[:4]), 4, mm_hashes=[[7]]),
    ]
    assert found[3].mm_extra_info == image


def _blocks_of(event: RouterEvent) -> list[StoredBlock]:
    assert isinstance(event.event.data, Change)
    assert event.event.data.stored
    return event.event.data.stored.blocks


async def test_placeholders_of_images_are_routed_by_their_hashes(endpoint: Endpoint, view: RouterView) -> None:
    """1.6.1 gave these for the same, with 900 and 901 for image and video."""
    publisher = publisher_of(endpoint, image_token_id=900, video_token_id=901)
    await view.meets(publisher)
    for name, token_ids, mm_hashes in (
        (1, [1, 900, 900, 2], [7]),
        (2, [900, 1, 900, 2], [7]),  # two runs, one object
        (3, [900, 900, 900, 2], [8, 7]),
    ):
        objects = [{"mm_hash": mm_hash} for mm_hash in mm_hashes]
        publisher.publish_stored(token_ids, [4], [name], block_mm_infos=[{"mm_objects": objects}])
    await until(lambda: len(view.events) == 3)
    assert [block.tokens_hash for event in view.events for block in _blocks_of(event)] == [
        8034794259272125583,
        2475227207908691888,
        5281624790550049632,
    ]


async def test_blocks_that_are_not_whole_are_left_out(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.meets(publisher)
    publisher.publish_stored(TOKENS[:7], [4, 3], [1, 2])
    publisher.publish_stored(TOKENS[:6], [4, 4], [3, 4])
    publisher.publish_stored(TOKENS, [8], [5])
    publisher.publish_stored(TOKENS, [4, 4], [6, 6])  # its own parent
    publisher.publish_stored([], [], [])
    publisher.publish_removed([])
    await view.until_removed(99, publisher)
    assert [stored_by(event) for event in view.events] == [[1], [3], []]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "bogus"},
        {"type": "stored", "token_ids": TOKENS, "num_block_tokens": [4, 4]},
        {"type": "stored", "token_ids": [-1] * 4, "num_block_tokens": [4], "block_hashes": [1]},
        {"type": "stored", "token_ids": [2**32] * 4, "num_block_tokens": [4], "block_hashes": [1]},
        {"type": "removed", "block_hashes": ["x"]},
    ],
)
async def test_a_batch_with_a_mistake_is_refused_as_a_whole(
    endpoint: Endpoint, view: RouterView, event: dict[str, Any]
) -> None:
    publisher = publisher_of(endpoint)
    await view.meets(publisher)
    with pytest.raises(ValueError, match=r"batch|token_ids"):
        publisher.publish_batch([{"type": "removed", "block_hashes": [5]}, event])
    await view.until_removed(99, publisher)
    assert [removed_by(event) for event in view.events] == [[99]]


async def test_events_of_another_thread(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.meets(publisher)

    def engine() -> None:
        for number in range(500):
            publisher.publish_stored([number] * 4, [4], [number])

    await asyncio.gather(*(asyncio.to_thread(engine) for _ in range(3)))
    await view.until_removed(1000, publisher)
    assert sum(len(stored_by(event)) for event in view.events) == 1500
    ids = [event.event_id for event in events_of(view)]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


async def test_the_source_names_its_rank_and_where_to_ask(endpoint: Endpoint, view: RouterView) -> None:
    publisher_of(endpoint, dp_rank=3)
    source = await view.source()
    scope = EndpointScope("demo", "backend", "generate")
    name = f"worker_kv_query_source_{source.publisher_id:x}"
    assert (source.scope.endpoint, source.topic, source.metadata.kv_state_endpoint) == (scope, "kv-events", scope)
    assert source.metadata.publisher_id == source.publisher_id
    assert (source.metadata.worker.worker_id, source.metadata.worker.dp_rank) == (endpoint.connection_id(), 3)
    target = source.metadata.recovery_target
    assert target is not None
    assert (target.namespace, target.component, target.endpoint) == ("demo", "backend", name)
    assert target.transport["tcp"].endswith(f"/{endpoint.connection_id():x}/demo/backend/{name}")
    keys = await entries(INSTANCES)
    assert keys == [f"demo/backend/{name}/{endpoint.connection_id():x}"]


async def test_without_an_indexer_nobody_can_be_asked(endpoint: Endpoint, view: RouterView) -> None:
    KvEventPublisher(endpoint, worker_id=42, kv_block_size=4, kv_state_endpoint="demo.other.state")
    source = await view.source()
    assert source.metadata.recovery_target is None
    assert source.metadata.worker.worker_id == 42
    assert source.scope.endpoint == EndpointScope("demo", "other", "state")
    assert await entries(INSTANCES) == []


async def entries(bucket: str) -> list[str]:
    discovery = MemDiscovery()
    async for changes in discovery.watch(bucket):
        return sorted(change.key for change in changes)
    raise AssertionError("the watch ended")


async def test_a_router_that_comes_late_is_told_everything(endpoint: Endpoint) -> None:
    publisher = publisher_of(endpoint)
    publisher.stored(Stored(blocks(1, 2, 3)))
    publisher.stored(Stored(blocks(4), 2))
    publisher.stored(Stored(blocks(1)), "host_pinned")
    publisher.removed([3])
    async with open_view() as view:
        dump = (await view.ask(start_event_id=None)).tree_dump
    assert dump is not None
    assert held_after(dump.events) == {
        "device": {1: (None, 10), 2: (1, 20), 4: (2, 40)},
        "host_pinned": {1: (None, 10)},
    }
    assert dump.last_event_id == 4


async def test_a_router_that_missed_some_is_told_those(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.source()
    for number in range(1, 6):
        publisher.stored(Stored(blocks(number)))
        publisher.removed([number + 100])
    await until(lambda: publisher.num_dropped == 0)
    answer = await view.ask(start_event_id=4, end_event_id=6)
    assert answer.events is not None
    assert [event.event.event_id for event in answer.events.events] == list(range(4, 11))
    assert answer.events.last_event_id == 10
    too_new = (await view.ask(start_event_id=11)).too_new
    assert too_new is not None
    assert (too_new.requested_start, too_new.requested_end, too_new.newest_available) == (11, 10, 10)
    invalid = (await view.ask(start_event_id=4, end_event_id=3)).invalid_range
    assert invalid is not None
    assert (invalid.start_id, invalid.end_id) == (4, 3)


async def test_what_is_too_long_ago_is_answered_with_everything(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.source()
    for number in range(1, 1101):  # each an event of its own, for none follows the one before
        publisher.stored(Stored(blocks(number)))
    recent, dump = await view.ask(start_event_id=77), await view.ask(start_event_id=76)
    assert recent.events is not None
    assert [event.event.event_id for event in recent.events.events] == list(range(77, 1101))
    assert dump.tree_dump is not None
    assert len(dump.tree_dump.events) == dump.tree_dump.last_event_id == 1100


@pytest.mark.parametrize(
    "query", [{"worker_id": 5}, {"dp_rank": 7}, {"kind": "gossip"}, {"start_event_id": "x"}, {"worker_id": None}]
)
async def test_a_question_that_is_none_for_this_rank(
    endpoint: Endpoint, view: RouterView, query: dict[str, Any]
) -> None:
    publisher_of(endpoint)
    assert (await view.ask(**query)).error


async def test_events_that_nobody_takes_are_dropped_and_can_be_asked_for(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint, batching_timeout_ms=60_000)
    for number in range(1, 20_001):
        publisher.stored(Stored(blocks(number)))
    dump = (await view.ask()).tree_dump
    assert dump is not None
    assert len(dump.events) == dump.last_event_id == publisher.num_dropped + 4096


async def test_a_publisher_that_was_shut_down_is_gone_and_takes_nothing(endpoint: Endpoint, view: RouterView) -> None:
    publisher = publisher_of(endpoint)
    await view.meets(publisher)
    publisher.shutdown()
    with pytest.raises(PublisherClosed):
        publisher.publish_removed([1])
    publisher.stored(Stored(blocks(1)))  # an engine that is still at work does no harm
    await publisher.close()
    assert [await entries(bucket) for bucket in (EVENT_SOURCES, EVENT_CHANNELS, INSTANCES)] == [[], [], []]


async def test_the_runtime_takes_its_publishers_along(view: RouterView) -> None:
    async with running() as endpoint:
        publisher = publisher_of(endpoint)
        await view.meets(publisher)
    assert [await entries(bucket) for bucket in (EVENT_SOURCES, EVENT_CHANNELS, INSTANCES)] == [[], [], []]


async def test_a_runtime_that_never_opens() -> None:
    async with running() as endpoint:
        publisher_of(endpoint)


async def test_a_block_size_is_needed(endpoint: Endpoint) -> None:
    with pytest.raises(ValueError, match="kv_block_size"):
        KvEventPublisher(endpoint)
