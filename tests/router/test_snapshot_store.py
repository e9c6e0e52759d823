from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dynamo.router.snapshot_store import (
    FileSnapshots,
    ObjectSnapshots,
    SnapshotError,
    SnapshotStore,
    make_snapshot_store,
)
from dynamo.shared.nats import NatsConnection
from dynamo.shared.nats_config import NatsConfig
from tests.support.nats import NatsServer


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture
async def nats(server: NatsServer) -> AsyncIterator[NatsConnection]:
    connection = NatsConnection(NatsConfig(server=server.url))
    yield connection
    await connection.close()


@pytest.fixture(params=["file", "nats"])
def store(request: pytest.FixtureRequest, tmp_path: Path, nats: NatsConnection) -> SnapshotStore:
    place = str(tmp_path / "router" / "snapshot") if request.param == "file" else f"nats://router/{tmp_path.name}"
    return make_snapshot_store(place, nats)


async def test_there_is_none_at_first(store: SnapshotStore) -> None:
    assert await store.load() is None


async def test_the_last_one_comes_back(store: SnapshotStore) -> None:
    await store.save(b"first" * 100_000)
    await store.save(b"second" * 100_000)
    snapshot = await store.load()
    assert snapshot is not None
    assert snapshot.data == b"second" * 100_000
    assert 0 <= snapshot.age_s < 60


async def test_an_empty_one_is_one(store: SnapshotStore) -> None:
    await store.save(b"")
    snapshot = await store.load()
    assert snapshot is not None
    assert snapshot.data == b""


async def test_a_damaged_file_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "snapshot"
    store = FileSnapshots(path)
    await store.save(b"what the router knew")
    stored = bytearray(path.read_bytes())
    for damaged in (stored[:-1], stored[:10], b"", stored[:-1] + b"X"):
        caplog.clear()
        path.write_bytes(damaged)
        assert await store.load() is None
        assert str(path) in caplog.text


async def test_only_one_file_is_left_behind(tmp_path: Path) -> None:
    await FileSnapshots(tmp_path / "snapshot").save(b"data")
    assert os.listdir(tmp_path) == ["snapshot"]


async def test_where_it_cannot_be_saved_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SnapshotError, match="file/snapshot"):
        await FileSnapshots(tmp_path / "file" / "snapshot").save(b"data")


async def test_the_file_of_another_program_is_none(tmp_path: Path) -> None:
    (tmp_path / "snapshot").write_bytes(b"a text of somebody else's that is long enough")
    assert await FileSnapshots(tmp_path / "snapshot").load() is None


async def test_an_object_outlives_the_server_and_the_router() -> None:
    with NatsServer() as server:
        before, after = (NatsConnection(NatsConfig(server=server.url)) for _ in range(2))
        await ObjectSnapshots(before, "router", "snapshot").save(b"data")
        await before.close()
        server.restart()
        snapshot = await ObjectSnapshots(after, "router", "snapshot").load()
        assert snapshot is not None
        assert (snapshot.data, snapshot.source) == (b"data", "nats://router/snapshot")
        await after.close()


@pytest.mark.parametrize("place", ["nats://bucket", "nats://bucket/"])
async def test_an_object_needs_a_name(place: str, nats: NatsConnection) -> None:
    with pytest.raises(ValueError, match="nats://BUCKET/NAME"):
        make_snapshot_store(place, nats)
