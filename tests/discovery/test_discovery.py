"""What every backend promises."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from dynamo.shared.discovery import CARDS, INSTANCES, Discovery, DiscoveryError, Put, key_of
from dynamo.shared.discovery.etcd import EtcdDiscovery
from dynamo.shared.discovery.etcd_config import EtcdConfig
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.discovery.mem import MemDiscovery, MemStore
from dynamo.shared.discovery.registry import make_discovery, open_discovery
from tests.discovery.watching import watching
from tests.support.etcd import EtcdServer

PUBLISHER = Path(__file__).parent / "publisher.py"

MakeDiscovery = Callable[[], Discovery]


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture(params=["etcd", "file", "mem"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeDiscovery:
    """Makes participants of one store."""
    if request.param == "etcd":
        server: EtcdServer = request.getfixturevalue("etcd")
        return lambda: EtcdDiscovery(EtcdConfig(endpoints=server.url))
    if request.param == "file":
        return lambda: FileDiscovery(tmp_path)
    store = MemStore()
    return lambda: MemDiscovery(store)


@pytest.fixture
async def pair(make: MakeDiscovery) -> AsyncIterator[tuple[Discovery, Discovery]]:
    """Two open participants."""
    async with AsyncExitStack() as stack:
        participants = make(), make()
        for participant in participants:
            await participant.open()
            stack.push_async_callback(participant.close)
        yield participants


async def test_a_watch_starts_with_all_that_is_there(pair: tuple[Discovery, Discovery]) -> None:
    ours, theirs = pair
    await ours.publish(INSTANCES, "ns/c/e/1", b"one")
    await ours.publish(INSTANCES, "ns/c/e/2", b"\x00\xff not text")
    async with watching(theirs, INSTANCES) as watcher:
        await watcher.until_entries({"ns/c/e/1": b"one", "ns/c/e/2": b"\x00\xff not text"})
        assert len(watcher.batches) == 1


async def test_an_empty_bucket_starts_with_an_empty_batch(pair: tuple[Discovery, Discovery]) -> None:
    async with watching(pair[0], CARDS) as watcher:
        await watcher.until(lambda: watcher.batches == [[]])


async def test_changes_arrive_as_they_come(pair: tuple[Discovery, Discovery]) -> None:
    ours, theirs = pair
    async with watching(theirs, INSTANCES) as watcher:
        await watcher.until_entries({})
        await ours.publish(INSTANCES, "ns/c/e/1", b"one")
        await watcher.until_entries({"ns/c/e/1": b"one"})
        await ours.publish(INSTANCES, "ns/c/e/1", b"two")
        await watcher.until_entries({"ns/c/e/1": b"two"})
        await ours.withdraw(INSTANCES, "ns/c/e/1")
        await watcher.until_entries({})


async def test_an_equal_value_is_no_change(pair: tuple[Discovery, Discovery]) -> None:
    ours, theirs = pair
    async with watching(theirs, INSTANCES) as watcher:
        await ours.publish(INSTANCES, "a/b/c/1", b"same")
        await watcher.until_entries({"a/b/c/1": b"same"})
        heard = len(watcher.batches)
        await ours.publish(INSTANCES, "a/b/c/1", b"same")
        await ours.publish(INSTANCES, "a/b/c/2", b"new")
        await watcher.until(lambda: len(watcher.batches) > heard)
        assert watcher.batches[heard:] == [[Put("a/b/c/2", b"new")]]


async def test_buckets_do_not_mix(pair: tuple[Discovery, Discovery]) -> None:
    ours, theirs = pair
    await ours.publish("v1/mdc2", "ns/c/e/1", b"another bucket that starts the same")
    await ours.publish(CARDS, "ns/c/e/1", b"card")
    async with watching(theirs, CARDS) as watcher:
        await watcher.until_entries({"ns/c/e/1": b"card"})


async def test_closing_withdraws_everything_and_ends_watches(make: MakeDiscovery) -> None:
    ours, theirs = make(), make()
    await ours.open()
    await theirs.open()
    await ours.publish(INSTANCES, "ns/c/e/1", b"one")
    await ours.publish(INSTANCES, "ns/c/e/2", b"two")
    async with watching(theirs, INSTANCES) as watcher:
        await watcher.until(lambda: len(watcher.entries) == 2)
        await ours.close()
        await watcher.until_entries({})
    ended = asyncio.create_task(_drain(theirs))
    await asyncio.sleep(0)
    await theirs.close()
    await asyncio.wait_for(ended, 60)


async def _drain(discovery: Discovery) -> None:
    async for _batch in discovery.watch(INSTANCES):
        pass


@pytest.mark.parametrize("backend", ["etcd", "file"])
async def test_a_killed_publisher_is_forgotten(backend: str, etcd: EtcdServer, tmp_path: Path) -> None:
    environment = {**os.environ, "ETCD_ENDPOINTS": etcd.url, "DYN_FILE_KV": str(tmp_path)}
    publisher = await asyncio.create_subprocess_exec(sys.executable, str(PUBLISHER), backend, "2", env=environment)
    reader = FileDiscovery(tmp_path, ttl_s=2) if backend == "file" else EtcdDiscovery(EtcdConfig(endpoints=etcd.url))
    await reader.open()
    try:
        async with watching(reader, INSTANCES) as watcher:
            await watcher.until_entries({"demo/backend/generate/1": b"alive"})
            await asyncio.sleep(4)  # longer than the TTL: it is kept alive
            assert watcher.entries == {"demo/backend/generate/1": b"alive"}
            publisher.kill()
            await watcher.until_entries({})
    finally:
        if publisher.returncode is None:
            publisher.kill()
        await publisher.wait()
        await reader.close()


async def test_only_what_was_published_here_can_be_withdrawn(pair: tuple[Discovery, Discovery]) -> None:
    ours, theirs = pair
    await ours.publish(INSTANCES, "ns/c/e/1", b"one")
    await theirs.withdraw(INSTANCES, "ns/c/e/1")
    await theirs.withdraw(INSTANCES, "ns/c/e/unknown")
    async with watching(theirs, INSTANCES) as watcher:
        await watcher.until_entries({"ns/c/e/1": b"one"})


async def test_lease_ids_identify_participants(pair: tuple[Discovery, Discovery]) -> None:
    ours, theirs = pair
    assert ours.lease_id != theirs.lease_id
    assert 0 < ours.lease_id < 2**63


async def test_a_slow_reader_gets_the_sum_of_what_it_missed(pair: tuple[Discovery, Discovery]) -> None:
    ours, theirs = pair
    changes = theirs.watch(INSTANCES)
    assert await anext(changes) == []
    for number in range(50):
        await ours.publish(INSTANCES, "ns/c/e/1", str(number).encode())
    seen: list[bytes] = []
    while not seen or seen[-1] != b"49":
        (change,) = await anext(changes)
        assert isinstance(change, Put)
        seen.append(change.value)
    assert seen == sorted(seen, key=int)


def test_keys_are_written_in_hexadecimal() -> None:
    assert key_of("demo", "backend", "generate", 0x13B0A1FF) == "demo/backend/generate/13b0a1ff"
    assert key_of("demo", "backend", "generate", 1, "my-lora") == "demo/backend/generate/1/my-lora"


async def test_the_registry_opens_a_backend_by_name(tmp_path: Path) -> None:
    async with open_discovery("file", {"DYN_FILE_KV": str(tmp_path / "kv")}) as discovery:
        await discovery.publish(INSTANCES, "ns/c/e/1", b"one")
        assert (tmp_path / "kv/v1/instances/ns%2Fc%2Fe%2F1").read_bytes() == b"one"


def test_the_registry_names_what_it_knows() -> None:
    with pytest.raises(DiscoveryError, match=r"consul.*etcd, file, mem"):
        make_discovery("consul")


def test_only_etcd_imports_grpc() -> None:
    program = (
        "import sys; from dynamo.shared.discovery.registry import make_discovery; make_discovery('file'); "
        "make_discovery('mem'); sys.exit(any(name in sys.modules for name in ('grpc', 'aetcd')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
