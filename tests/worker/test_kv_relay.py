"""The relay between an engine's sockets and routers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import zmq
import zmq.asyncio

from dynamo.shared.kv_events import Stored
from dynamo.shared.runtime import DistributedRuntime
from dynamo.shared.serving_config import ServingConfig
from dynamo.worker import KvEventPublisher
from dynamo.worker.engine_blocks import BlockHasher
from dynamo.worker.engine_translator import EngineTranslator
from dynamo.worker.zmq_relay import EngineRelay
from tests.support.waiting import PATIENCE_S, until
from tests.worker.router_view import open_view, removed_by, stored_by

END = (-1).to_bytes(8, "big", signed=True)
HELLO = 10**6


class Engine:
    """vLLM's two sockets: a stream of batches, and the batches that it remembers. `first_remembered` forgets some,
    `has_topic` answers as newer engines do."""

    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()
        self._live = self._context.socket(zmq.PUB)
        self._replay = self._context.socket(zmq.ROUTER)
        self._live.bind("tcp://127.0.0.1:*")
        self._replay.bind("tcp://127.0.0.1:*")
        self.batches: list[bytes] = []
        self.first_remembered = 0
        self.has_topic = False
        self.asked: list[int] = []
        self._answering = asyncio.create_task(self._answer())

    @property
    def endpoint(self) -> str:
        return self._live.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def replay_endpoint(self) -> str:
        return self._replay.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        self._answering.cancel()
        self._context.destroy(linger=0)

    async def publish(self, name: int, *, is_lost: bool = False) -> None:
        """One block, in a batch of its own."""
        event = ["BlockStored", [name], None, [name] * 4, 4, None]
        await self.send(msgspec.msgpack.encode([1.5, [event], 0]), is_lost=is_lost)

    async def send(self, batch: bytes, *, is_lost: bool = False) -> None:
        sequence = len(self.batches)
        self.batches.append(batch)
        if not is_lost:
            await self.frames(b"kv", sequence.to_bytes(8, "big"), batch)

    async def frames(self, *frames: bytes) -> None:
        await self._live.send_multipart(frames)

    async def _answer(self) -> None:
        while True:
            peer, _, start = await self._replay.recv_multipart()
            topic = [b"kv"] if self.has_topic else []
            self.asked.append(int.from_bytes(start, "big"))
            for sequence, batch in enumerate(self.batches):
                if sequence >= max(self.asked[-1], self.first_remembered):
                    await self._replay.send_multipart([peer, b"", *topic, sequence.to_bytes(8, "big"), batch])
            await self._replay.send_multipart([peer, b"", *topic, END, b""])

    def begin_anew(self) -> None:
        self.batches.clear()


class Sink:
    """What came of it: the names of blocks, or `cleared`."""

    def __init__(self) -> None:
        self.told: list[int | str] = []

    def stored(self, stored: Stored, tier: str = "device") -> None:
        self.told += [block.block_hash for block in stored.blocks]

    def removed(self, block_hashes: list[int], tier: str = "device") -> None:
        raise AssertionError("nothing is removed here")

    def cleared(self) -> None:
        self.told.append("cleared")


class Relayed:
    def __init__(self, engine: Engine, *, can_replay: bool, topic: str = "") -> None:
        self.sink = Sink()
        translator = EngineTranslator(BlockHasher(4), 0, self.sink)
        self.relay = EngineRelay(engine.endpoint, translator, topic, engine.replay_endpoint if can_replay else None)

    @property
    def told(self) -> list[int | str]:
        return self.sink.told

    async def is_listening(self, engine: Engine) -> None:
        await publish_until(engine, HELLO, lambda: bool(self.told))
        await engine.publish(HELLO + 1)
        await until(lambda: self.told[-1] == HELLO + 1)
        self.told.clear()


async def publish_until(engine: Engine, name: int, condition: Callable[[], bool]) -> None:
    """A subscription takes effect when the engine has heard of it: until then nothing arrives."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await engine.publish(name)
            await asyncio.sleep(0.02)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    try:
        yield engine
    finally:
        engine.close()


@asynccontextmanager
async def relayed(engine: Engine, *, can_replay: bool, topic: str = "") -> AsyncIterator[Relayed]:
    relayed = Relayed(engine, can_replay=can_replay, topic=topic)
    try:
        yield relayed
    finally:
        await relayed.relay.close()


async def test_batches_in_order(engine: Engine) -> None:
    async with relayed(engine, can_replay=False, topic="kv") as relay:
        await relay.is_listening(engine)
        num_lost = relay.relay.num_lost
        for name in range(1000):
            await engine.publish(name)
        await until(lambda: len(relay.told) == 1000)
        assert relay.told == list(range(1000))
        assert relay.relay.num_lost == num_lost


async def test_without_replay_what_is_missed_is_lost_and_counted(engine: Engine) -> None:
    async with relayed(engine, can_replay=False) as relay:
        await relay.is_listening(engine)
        num_lost = relay.relay.num_lost
        await engine.publish(1)
        for name in (2, 3):
            await engine.publish(name, is_lost=True)
        await engine.publish(4)
        await until(lambda: relay.told == [1, 4])
        assert relay.relay.num_lost == num_lost + 2


@pytest.mark.parametrize("has_topic", [False, True])
async def test_what_is_missed_is_asked_for(engine: Engine, has_topic: bool) -> None:
    engine.has_topic = has_topic
    async with relayed(engine, can_replay=True) as relay:
        await relay.is_listening(engine)
        engine.asked.clear()
        await engine.publish(1)
        start = len(engine.batches)
        for name in (2, 3):
            await engine.publish(name, is_lost=True)
        for name in (4, 5):
            await engine.publish(name)
        await until(lambda: relay.told == [1, 2, 3, 4, 5])
        assert engine.asked == [start]
        assert relay.relay.num_lost == 0


async def test_what_happened_before_is_asked_for(engine: Engine) -> None:
    for name in range(5):
        await engine.publish(name)
    async with relayed(engine, can_replay=True) as relay:
        await until(lambda: relay.told == [0, 1, 2, 3, 4])
        assert relay.relay.num_replayed == 5


async def test_what_the_engine_has_forgotten_is_lost_and_counted(engine: Engine) -> None:
    for name in range(5):
        await engine.publish(name)
    engine.first_remembered = 3
    async with relayed(engine, can_replay=True) as relay:
        await until(lambda: relay.told == [3, 4])
        assert relay.relay.num_lost == 3


async def test_an_engine_that_began_anew_holds_nothing(engine: Engine) -> None:
    async with relayed(engine, can_replay=False) as relay:
        await relay.is_listening(engine)
        await engine.publish(1)
        engine.begin_anew()
        await engine.publish(2)
        await engine.publish(3)
        await until(lambda: len(relay.told) == 4)
        assert relay.told == [1, "cleared", 2, 3]


async def test_a_replay_that_never_comes_holds_nothing_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo.worker.zmq_relay.REPLAY_SILENCE_S", 0.05)
    engine._answering.cancel()
    async with relayed(engine, can_replay=True) as relay:
        await relay.is_listening(engine)
        await engine.publish(1)
        await engine.publish(2, is_lost=True)
        await engine.publish(3)
        await until(lambda: relay.told == [1, 3])


@pytest.mark.parametrize(
    "frames",
    [(b"",), (b"", b"123", b"x"), (b"", b"12345678", b"x", b"y")],
    ids=["one", "short sequence", "four"],
)
async def test_messages_that_are_none(engine: Engine, frames: tuple[bytes, ...]) -> None:
    async with relayed(engine, can_replay=False) as relay:
        await relay.is_listening(engine)
        await engine.frames(*frames)
        await engine.publish(1)
        await until(lambda: relay.told == [1])
        assert relay.relay.translator.num_malformed == 1


@pytest.mark.parametrize("arguments", [("tcp://", None), ("tcp://127.0.0.1:1", "nowhere")])
async def test_endpoints_that_are_no_addresses(arguments: tuple[str, str | None]) -> None:
    endpoint, replay_endpoint = arguments
    with pytest.raises(ValueError, match="is no address"):
        EngineRelay(endpoint, EngineTranslator(BlockHasher(4), 0, Sink()), "", replay_endpoint)


async def test_from_the_engine_to_a_router(engine: Engine) -> None:
    await engine.publish(1)
    runtime = DistributedRuntime(config=ServingConfig(discovery_backend="mem"))
    KvEventPublisher(
        runtime.endpoint("demo.backend.generate"),
        kv_block_size=4,
        enable_local_indexer=True,
        zmq_endpoint=engine.endpoint,
        zmq_topic="",
        zmq_replay_endpoint=engine.replay_endpoint,
    )
    async with open_view() as view:
        await publish_until(engine, 2, lambda: any(2 in stored_by(event) for event in view.events))
        dump = (await view.ask()).tree_dump
        assert dump is not None
        assert {name for event in dump.events for name in stored_by(event)} == {1, 2}
        removal = ["BlockRemoved", [1]]
        await engine.send(msgspec.msgpack.encode([1.5, [removal], None]))
        await until(lambda: any(removed_by(event) == [1] for event in view.events))
    await runtime.wait_closed()
