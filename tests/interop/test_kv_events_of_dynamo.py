"""KV events of the real 1.6.1, over both event planes, into our feed: live, asked for, and withdrawn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.anchor import AnchorProcess, Store, file_store
from tests.router.event_world import RouterSide, open_router
from tests.support.nats import NatsServer
from tests.support.waiting import until

BLOCK = [1, 2, 3, 4]


class Publisher(AnchorProcess):
    """event_publisher.py."""

    script = ("-P", str(Path(__file__).parent / "event_publisher.py"))

    def __init__(self, store: Store, event_plane: str, nats: NatsServer) -> None:
        super().__init__(store, environment={"DYN_EVENT_PLANE": event_plane, "NATS_SERVER": nats.url})

    def arguments(self) -> list[str]:
        return [self.store.backend, "demo.backend.generate", str(self.directory)]

    def is_ready(self, output: str) -> bool:
        return "publishing" in output

    def stored(self, *names: int, parent: int | None = None) -> None:
        self._step("publish_stored", BLOCK * len(names), [len(BLOCK)] * len(names), list(names), parent)

    def removed(self, *names: int) -> None:
        self._step("publish_removed", list(names))

    def _step(self, name: str, *arguments: object) -> None:
        with (self.directory / "steps.jsonl").open("a") as file:
            file.write(json.dumps([name, arguments]) + "\n")


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.mark.parametrize("event_plane", ["zmq", "nats"])
async def test_a_real_publisher_is_followed(
    event_plane: str, nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    monkeypatch.setenv("NATS_SERVER", nats.url)
    publisher = Publisher(file_store(tmp_path), event_plane, nats)
    router = RouterSide()
    try:
        publisher.stored(11, 12)
        await asyncio.to_thread(publisher.start)
        async with open_router(router) as feed:
            await until(lambda: router.index[0] == {11, 12}, "what there was before")
            publisher.removed(12)
            publisher.stored(13, parent=11)
            await until(lambda: router.index[0] == {11, 13}, "what happens")
            for channel in feed.channels.connected():
                feed.events.disconnect(channel)
            num_received = feed.events.num_received
            publisher.stored(14, parent=13)
            await asyncio.sleep(0.5)
            assert feed.events.num_received == num_received
            for channel in feed.channels.connected():
                feed.events.connect(channel)
            publisher.removed(11)
            await until(lambda: router.index[0] == {13, 14}, "what was missed")
            assert feed.sources.counts.replays >= 1
            await asyncio.to_thread(publisher.stop)
            await until(lambda: router.index[0] == set(), "that it is gone")
            assert feed.num_malformed == feed.events.num_malformed == 0
    finally:
        publisher.close()
