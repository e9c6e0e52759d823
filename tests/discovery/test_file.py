"""The file store against real directories and processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dynamo.shared.discovery import CARDS, EVENT_CHANNELS, EVENT_SOURCES, INSTANCES, DiscoveryError
from dynamo.shared.discovery import file as file_module
from dynamo.shared.discovery.file import FileDiscovery, default_root
from tests.discovery.watching import watching

# (bucket, key, file) as a running Dynamo 1.6.1 wrote them
NAMES = [
    (CARDS, "dynamo/backend/generate/3d2d7a0f696fc330", "v1/mdc/dynamo%2Fbackend%2Fgenerate%2F3d2d7a0f696fc330"),
    (
        INSTANCES,
        "dynamo/backend/worker_kv_query_source_a5e806a705c2b/3d2d7a0f696fc330",
        "v1/instances/dynamo%2Fbackend%2Fworker%5Fkv%5Fquery%5Fsource%5Fa5e806a705c2b%2F3d2d7a0f696fc330",
    ),
    (
        EVENT_SOURCES,
        "namespace/dynamo/component/backend/endpoint/generate/topic/kv-events/a5e806a705c2b",
        "v1/event_sources/namespace%2Fdynamo%2Fcomponent%2Fbackend%2Fendpoint%2Fgenerate%2Ftopic%2Fkv%2Devents"
        "%2Fa5e806a705c2b",
    ),
    (
        EVENT_CHANNELS,
        "namespace/dynamo/component/backend/endpoint/generate/topic/active_sequences_events/9fa9403564a36",
        "v1/event_channels/namespace%2Fdynamo%2Fcomponent%2Fbackend%2Fendpoint%2Fgenerate%2Ftopic%2F"
        "active%5Fsequences%5Fevents%2F9fa9403564a36",
    ),
    (CARDS, "a.b/%2F/c", "v1/mdc/a%2Eb%2F%252F%2Fc"),  # a segment that was already encoded is encoded again
]


def files_below(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("bucket", "key", "file"), NAMES)
async def test_file_names_are_dynamos(tmp_path: Path, bucket: str, key: str, file: str) -> None:
    discovery = FileDiscovery(tmp_path)
    await discovery.open()
    await discovery.publish(bucket, key, b"value")
    assert files_below(tmp_path) == [file]
    async with watching(discovery, bucket) as watcher:
        await watcher.until_entries({key: b"value"})
    await discovery.close()
    assert files_below(tmp_path) == []


async def test_temporary_files_and_directories_are_not_entries(tmp_path: Path) -> None:
    bucket = tmp_path / INSTANCES
    (bucket / "directory").mkdir(parents=True)
    (bucket / ".tmp_0123456789abcdef").write_bytes(b"half")
    (bucket / "whole").write_bytes(b"whole")
    discovery = FileDiscovery(tmp_path)
    await discovery.open()
    async with watching(discovery, INSTANCES) as watcher:
        await watcher.until_entries({"whole": b"whole"})
    await discovery.close()


async def test_entries_linked_into_place_are_seen(tmp_path: Path) -> None:
    """Dynamo creates-if-absent with a hard link instead of a rename."""
    discovery = FileDiscovery(tmp_path)
    await discovery.open()
    async with watching(discovery, INSTANCES) as watcher:
        await watcher.until_entries({})
        temporary = tmp_path / INSTANCES / ".tmp_0123456789abcdef"
        temporary.write_bytes(b"linked")
        os.link(temporary, tmp_path / INSTANCES / "ns%2F1")
        temporary.unlink()
        await watcher.until_entries({"ns/1": b"linked"})
    await discovery.close()


async def test_an_entry_nobody_refreshes_expires(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path)
    await discovery.open()
    stale = tmp_path / CARDS / "stale"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    os.utime(stale, (time.time() - 11, time.time() - 11))
    async with watching(discovery, CARDS) as watcher:
        await watcher.until_entries({})
    assert not stale.exists()
    await discovery.close()


async def test_a_removed_entry_is_published_again(tmp_path: Path) -> None:
    """A process that slept longer than the TTL finds its entries removed by the others."""
    discovery = FileDiscovery(tmp_path, ttl_s=1)
    await discovery.open()
    await discovery.publish(INSTANCES, "ns/c/e/1", b"one")
    async with watching(discovery, INSTANCES) as watcher:
        await watcher.until_entries({"ns/c/e/1": b"one"})
        (tmp_path / INSTANCES / "ns%2Fc%2Fe%2F1").unlink()
        await watcher.until(lambda: len(watcher.batches) >= 3)
        assert watcher.entries == {"ns/c/e/1": b"one"}
    await discovery.close()


async def test_a_store_that_vanished_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "kv"
    discovery = FileDiscovery(root, ttl_s=1)
    await discovery.open()
    async with watching(discovery, INSTANCES) as watcher:
        await watcher.until_entries({})
        root.rename(tmp_path / "moved")
        other = FileDiscovery(root, ttl_s=1)
        await other.open()
        await other.publish(INSTANCES, "ns/c/e/1", b"one")
        await watcher.until_entries({"ns/c/e/1": b"one"})
        await other.close()
        await watcher.until_entries({})
    await discovery.close()


async def test_changes_are_seen_without_inotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("Too many open files")  # what Linux says when max_user_instances are in use

    monkeypatch.setattr(file_module, "Inotify", refuse)
    discovery = FileDiscovery(tmp_path)
    await discovery.open()
    async with watching(discovery, INSTANCES) as watcher:
        await discovery.publish(INSTANCES, "ns/c/e/1", b"one")
        await watcher.until_entries({"ns/c/e/1": b"one"})
    await discovery.close()


async def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiscoveryError, match=r"file/kv.*DYN_FILE_KV"):
        await FileDiscovery(tmp_path / "file" / "kv").open()


async def test_a_name_too_long_for_the_disk_is_refused(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path)
    await discovery.open()
    with pytest.raises(DiscoveryError, match="too long"):
        await discovery.publish(INSTANCES, "n" * 300, b"value")
    await discovery.close()


def test_the_root_is_dynamos() -> None:
    assert default_root({"DYN_FILE_KV": "/data/kv", "TMPDIR": "/scratch"}) == Path("/data/kv")
    assert default_root({"TMPDIR": "/scratch"}) == Path("/scratch/dynamo_store_kv")
    assert default_root({}) == Path("/tmp/dynamo_store_kv")
