"""What our workers tell of their KV cache, as the real 1.6.1 understands it, and beside what its own would tell."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.event_plane.channel_watch import ChannelWatch
from dynamo.shared.event_plane.subscriber import EventSubscriber
from dynamo.shared.kv_events import KV_EVENTS_TOPIC, Change, RouterEvent, decode_events
from dynamo.shared.runtime import DistributedRuntime
from dynamo.shared.serving_config import ServingConfig
from dynamo.worker import KvEventPublisher
from tests.interop.anchor import AnchorFrontend, AnchorProcess, Store, file_store
from tests.interop.our_worker import our_worker
from tests.support.nats import NatsServer
from tests.support.waiting import PATIENCE_S, until, wait_until
from tests.worker.frontend import instance_in, open_frontend
from tests.worker.router_view import removed_by

MODEL = "held"
BLOCK_SIZE = 16
FLAGS = (f"--block-size={BLOCK_SIZE}",)
NUM_PROMPTS = 6


def prompt(number: int) -> str:
    """More than 8,000 tokens."""
    return f"Number {number}. " + "The sea covers most of the planet, and most of the sea is dark. " * 520


@pytest.fixture(params=["zmq", "nats"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    variables = {"DYN_FILE_KV": str(tmp_path), "DYN_EVENT_PLANE": request.param}
    with ExitStack() as stack:
        if request.param == "nats":
            variables["NATS_SERVER"] = stack.enter_context(NatsServer()).url
        yield Store("file", variables)


@pytest.fixture
def workers(store: Store) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(our_worker(store, MODEL, *FLAGS, "--speedup-ratio=0"))
        yield


class Served:
    """A real frontend that knows the model."""

    def __init__(self, frontend: AnchorFrontend) -> None:
        self._frontend = frontend
        wait_until(lambda: MODEL in frontend.models(), "our workers' model")

    def ask(self, text: str, annotations: tuple[str, ...] = (), max_tokens: int = 2) -> Any:
        nvext = {"extra_fields": ["worker_id"], "annotations": annotations}
        body = {"model": MODEL, "prompt": text, "max_tokens": max_tokens, "nvext": nvext}
        url = f"{self._frontend.base_url}/v1/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    async def until_status(self, status: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.to_thread(self._status) != status:
                await asyncio.sleep(0.02)

    def _status(self) -> int:
        try:
            self.ask("Is anybody there?")
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def holder(self, text: str) -> int:
        """Where it would go, without going."""
        return worker_of(self.ask(text, ("query_instance_id:",)))

    def knows(self, holders: list[int]) -> bool:
        """By chance one time in 2**18."""
        return all(self.holder(prompt(number)) == holder for _ in range(3) for number, holder in enumerate(holders))


def worker_of(answer: Any) -> int:
    worker_id: int = answer["nvext"]["worker_id"]["decode_worker_id"]
    return worker_id


def cached_tokens(answer: Any) -> int:
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def whole_blocks(answer: Any) -> int:
    num_tokens: int = answer["usage"]["prompt_tokens"]
    assert num_tokens > 8000
    return num_tokens // BLOCK_SIZE * BLOCK_SIZE


@pytest.mark.usefixtures("workers")
def test_a_prompt_goes_where_it_is_held_and_a_new_frontend_asks_for_what_it_missed(store: Store) -> None:
    with AnchorFrontend(store, "--router-mode=kv") as frontend:
        served = Served(frontend)
        first = [served.ask(prompt(number)) for number in range(NUM_PROMPTS)]
        assert [cached_tokens(answer) for answer in first] == [0] * NUM_PROMPTS
        holders = list(map(worker_of, first))
        wait_until(lambda: served.knows(holders), "the frontend to know who holds what")
        second = [served.ask(prompt(number)) for number in range(NUM_PROMPTS)]
        assert list(map(worker_of, second)) == holders
        assert list(map(cached_tokens, second)) == list(map(whole_blocks, second))
    with AnchorFrontend(store, "--router-mode=kv") as frontend:
        served = Served(frontend)
        wait_until(lambda: served.knows(holders), "the new frontend to know who holds what")
        third = [served.ask(prompt(number)) for number in range(NUM_PROMPTS)]
        assert list(map(worker_of, third)) == holders
        assert list(map(cached_tokens, third)) == list(map(whole_blocks, third))


async def test_a_worker_that_says_it_is_full_gets_no_more(store: Store, tmp_path: Path) -> None:
    """Its load comes from elsewhere, so that the frontend can only know of it from the worker."""
    flags = ("--router-mode=kv", "--active-decode-blocks-threshold=0.5")
    discovery = FileDiscovery(tmp_path)
    with our_worker(store, MODEL, *FLAGS, "--num-blocks=64"), AnchorFrontend(store, *flags) as frontend:
        served = await asyncio.to_thread(Served, frontend)
        await served.until_status(200)
        async with open_frontend() as elsewhere:
            await discovery.open()
            target = (await instance_in(discovery)).transport["tcp"]
            body = {"token_ids": list(range(700)), "stop_conditions": {"max_tokens": 300}}
            answer = await elsewhere.ask(target, body)
            await answer.until(1)
            await served.until_status(529)
            answer.drop()
            await served.until_status(200)
            await discovery.close()


# ---- the relay, beside the real one


class RealRelay(AnchorProcess):
    """engine_relay.py."""

    script = ("-P", str(Path(__file__).parent / "engine_relay.py"))

    def __init__(self, store: Store, engine: str) -> None:
        super().__init__(store)
        self._engine = engine

    def arguments(self) -> list[str]:
        return [self.store.backend, "theirs.backend.generate", self._engine, "4"]

    def is_ready(self, output: str) -> bool:
        return "relaying" in output


class Relays:
    """One engine, and what both relays make of its events."""

    def __init__(self, engine: zmq.Socket[bytes]) -> None:
        self._engine = engine
        self._num_batches = 0
        self.told: dict[str, list[RouterEvent]] = {"ours": [], "theirs": []}

    def say(self, *events: Any) -> None:
        sequence = self._num_batches.to_bytes(8, "big")
        self._num_batches += 1
        self._engine.send_multipart([b"", sequence, msgspec.msgpack.encode([1.5, events, 0])])

    async def until_removed(self, name: int) -> None:
        """Until both have told everything up to this."""

        def has_come() -> bool:
            return all(any(name in removed_by(event) for event in events) for events in self.told.values())

        await until(has_come, "both relays")

    async def meet(self) -> None:
        def has_come() -> bool:
            self.say(["BlockRemoved", [0xDEAD]])
            return all(self.told.values())

        await until(has_come, "both relays")
        await self.settle()

    async def settle(self) -> dict[str, list[Any]]:
        """What each has told since the last time."""
        self.say(["BlockStored", [0xBEEF], None, [0] * 4, 4, None])
        self.say(["BlockRemoved", [0xBEEF]])
        await self.until_removed(0xBEEF)
        told = {name: [plain(event) for event in events][:-2] for name, events in self.told.items()}
        for events in self.told.values():
            events.clear()
        return told


def plain(event: RouterEvent) -> Any:
    data = event.event.data
    return event.storage_tier, event.event.dp_rank, msgspec.to_builtins(data) if isinstance(data, Change) else data


@asynccontextmanager
async def relays(directory: Path) -> AsyncIterator[Relays]:
    store = file_store(directory)
    engine: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
    engine.bind("tcp://127.0.0.1:*")
    endpoint = engine.getsockopt_string(zmq.LAST_ENDPOINT)
    both = Relays(engine)
    runtime = DistributedRuntime(config=ServingConfig(discovery_backend="file"))
    KvEventPublisher(runtime.endpoint("ours.backend.generate"), kv_block_size=4, zmq_endpoint=endpoint)
    await runtime.open()
    following = [await _follow(FileDiscovery(directory), name, events) for name, events in both.told.items()]
    try:
        with RealRelay(store, endpoint):
            await both.meet()
            yield both
    finally:
        for task in following:
            task.cancel()
        await runtime.wait_closed()
        engine.close(linger=0)


async def _follow(discovery: FileDiscovery, namespace: str, events: list[RouterEvent]) -> asyncio.Task[None]:
    await discovery.open()
    subscriber = EventSubscriber(KV_EVENTS_TOPIC, lambda envelope: events.extend(decode_events(envelope.payload)))
    watch = ChannelWatch(discovery, [subscriber], lambda scope: scope.namespace == namespace)
    await watch.open()
    return asyncio.create_task(watch.follow())


FIRST, SECOND = [0, 1, 2, 3], [4, 5, 6, 7]
IMAGE = {"mm_objects": [{"mm_hash": 7, "offsets": [[0, 1]]}]}


def stored(name: int, *tail: Any, tokens: Any = FIRST, parent: int | None = None) -> list[Any]:
    return ["BlockStored", [name], parent, tokens, 4, None, *tail]


def named(**fields: Any) -> dict[str, Any]:
    return {"type": "BlockStored", "block_hashes": [1], "token_ids": FIRST, "block_size": 4, **fields}


BATCHES: dict[str, list[Any]] = {
    "a chain": [["BlockStored", [1, 2], None, FIRST + SECOND, 4, None]],
    "a chain in two": [stored(3), stored(4, tokens=SECOND, parent=3), ["BlockRemoved", [4]], ["BlockRemoved", [3]]],
    "twice": [stored(5), stored(5), ["BlockRemoved", [5]], stored(6), ["BlockRemoved", [5, 6]]],
    "signed": [stored(-1, parent=-2), ["BlockRemoved", [-1]]],
    "tiers": [stored(7, "CPU"), stored(7, "DISK"), stored(7, "EXTERNAL"), stored(7, ""), ["BlockRemoved", [7], "CPU"]],
    "a medium that nobody knows": [stored(8, "MARS")],
    "adapter and salt": [named(lora_name="ad", cache_salt="s"), stored(9, None, "ad", [["ad"]])],
    "an inherited salt": [
        stored(10, "GPU", None, [["dynamo-cache-salt:x"]]),
        stored(11, "GPU", None, [None], tokens=SECOND, parent=10),
        stored(12, "GPU", {"cache_salt": "x"}),
    ],
    "two salts": [
        stored(13, "GPU", None, [["dynamo-cache-salt:x"]]),
        stored(13, "GPU", None, [["dynamo-cache-salt:y"]]),
        stored(14, parent=13),
    ],
    "groups": [
        stored(15, "GPU", None, None, 1, "sliding_window", 512),
        stored(16, "GPU", None, None, 2, "full_attention", None, "LOCAL"),
        ["BlockRemoved", [15], "GPU", 1],
        ["BlockRemoved", [16], "GPU", 2],
        stored(17, "GPU", None, None, 3),
        stored(18, "GPU", None, None, "full_attention"),
    ],
    "elsewhere": [stored(19, "GPU", None, None, 0, "full_attention", None, "REMOTE"), ["AllBlocksCleared", "other"]],
    "pairs": [stored(20, tokens=[[0, 1], [1, 2], [2, 3], [3, 4]])],
    "an image": [named(block_mm_infos=[IMAGE]), stored(21, "GPU", None, None, [IMAGE])],
    "its own ancestor": [stored(22, parent=22), ["BlockStored", [23, 23], None, FIRST + SECOND, 4, None]],
    "too few tokens": [["BlockStored", [24, 25], None, FIRST, 4, None]],
    "a reset": [["Ignored", 1], ["AllBlocksCleared"], stored(26)],
}


async def test_our_relay_tells_what_the_real_one_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in file_store(tmp_path).environment.items():
        monkeypatch.setenv(name, value)
    async with relays(tmp_path) as both:
        for name, batch in BATCHES.items():
            both.say(*batch)
            told = await both.settle()
            assert told["ours"] == told["theirs"], name
