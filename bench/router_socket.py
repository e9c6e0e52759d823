"""Short placements through ZeroMQ: the real router process on one core, an acceptor's end of the socket on the other.

The client keeps some questions in flight and some requests running, as a busy acceptor does. Prints figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import msgspec
import uvloop

from bench import process_tree
from bench.compare import FRONTEND_CORE, LOAD_CORE
from bench.figures import Figure, print_figures
from bench.frontends import Pinned
from bench.made_up_fleet import MODEL, SCOPE, Conversations, entries, worker_ids
from dynamo.shared.channel import DealerChannel
from dynamo.shared.discovery import EVENT_SOURCES
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.event_plane import Scope
from dynamo.shared.event_plane.publisher import EventPublisher
from dynamo.shared.kv_events import (
    KV_EVENTS_TOPIC,
    EventSource,
    SourceMetadata,
    WorkerRank,
    encode_events,
)
from dynamo.shared.messages import Free, Heartbeat, Hello, Place, Placed, PrefillCompleted, RouterMessage, Welcome

NUM_WORKERS = 100
NUM_TOKENS = 200
MAX_INDEX_BLOCKS = 1_000_000
IN_FLIGHT = (1, 64, 256)
NUM_RUNNING, NUM_PREFILLING = 400, 100
NUM_PROMPTS = 5_000
START_TIMEOUT_S = 30
WARM_UP_S = 1.0
SETTLE_S = 2.0  # subscriptions take effect some time after the router serves
PER_CORE_BAR = 12_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.router_socket")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "bench-router.log")
    args = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    print_figures(uvloop.run(measure(args.seconds, args.log)))


async def measure(seconds: float, log: Path) -> list[Figure]:
    conversations = Conversations(NUM_WORKERS, NUM_TOKENS, MAX_INDEX_BLOCKS)
    events = conversations.events()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-") as directory:
        store = Path(directory)
        async with _workers(store) as publishers:
            with _router(store, log) as (router, address):
                client = Client(address, [conversations.prompt() for _ in range(NUM_PROMPTS)])
                await client.welcomed()
                await asyncio.sleep(SETTLE_S)
                for worker, publisher in publishers.items():
                    publisher.publish(encode_events(events[worker]))
                await client.knows_of_overlap()
                for num_in_flight in IN_FLIGHT:
                    await client.run(num_in_flight, WARM_UP_S)
                    figures += await _run(client, router, num_in_flight, seconds)
                client.close()
    return figures


async def _run(client: Client, router: Pinned, num_in_flight: int, seconds: float) -> list[Figure]:
    started, router_s, client_s = time.perf_counter(), process_tree.cpu_s(router.pid), time.process_time()
    waits_s = await client.run(num_in_flight, seconds)
    elapsed_s = time.perf_counter() - started
    router_s, client_s = process_tree.cpu_s(router.pid) - router_s, time.process_time() - client_s
    case = f"{num_in_flight} in flight"
    return [
        Figure(f"{case}: placements/s", len(waits_s) / elapsed_s),
        Figure(f"{case}: router's CPU µs per placement", 1e6 * router_s / len(waits_s)),
        Figure(
            f"{case}: placements per second of the router's CPU",
            len(waits_s) / router_s,
            at_least=PER_CORE_BAR if num_in_flight == IN_FLIGHT[-1] else None,
        ),
        Figure(f"{case}: router's share of its core", router_s / elapsed_s),
        Figure(f"{case}: client's share of its core", client_s / elapsed_s),
        Figure(f"{case}: round trip p50 µs", 1e6 * _quantile(waits_s, 0.5)),
        Figure(f"{case}: round trip p99 µs", 1e6 * _quantile(waits_s, 0.99)),
    ]


class Client:
    """An acceptor without HTTP. Answers are counted while `run` lasts."""

    def __init__(self, address: str, prompts: Sequence[bytes]) -> None:
        self._prompts = cycle(prompts)
        self._prefilling: deque[int] = deque()
        self._decoding: deque[int] = deque()
        self._asked_at: dict[int, float] = {}
        self._waits_s: list[float] = []
        self._num_asked = 0
        self._until = 0.0
        self._num_overlaps = 0
        self._welcome = asyncio.Event()
        self._idle = asyncio.Event()
        self._channel = DealerChannel(
            address,
            on_messages=self._on_messages,
            on_connect=self._hello,
            on_disconnect=lambda: None,
        )
        self._beating = asyncio.create_task(self._beat())

    async def welcomed(self) -> None:
        """The router knows all workers."""
        async with asyncio.timeout(START_TIMEOUT_S):
            await self._welcome.wait()

    async def knows_of_overlap(self) -> None:
        """The router knows some of what the workers hold."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while not self._num_overlaps:
                await self.run(1, 0.1)

    async def run(self, num_in_flight: int, seconds: float) -> list[float]:
        """Waits in seconds, of every question asked in this time."""
        self._waits_s = []
        self._until = time.perf_counter() + seconds
        self._idle.clear()
        for _ in range(num_in_flight):
            self._ask()
        await self._idle.wait()
        return self._waits_s

    def close(self) -> None:
        self._beating.cancel()
        self._channel.close()

    def _hello(self) -> None:
        self._channel.send(Hello("bench", 1))

    def _ask(self) -> None:
        self._num_asked += 1
        self._asked_at[self._num_asked] = time.perf_counter()
        self._channel.send(Place(self._num_asked, MODEL, NUM_TOKENS, next(self._prompts)))

    def _on_messages(self, messages: list[RouterMessage]) -> None:
        for message in messages:
            match message:
                case Placed():
                    self._on_placed(message)
                case Welcome():
                    assert len(message.workers) == NUM_WORKERS
                    self._welcome.set()

    def _on_placed(self, placed: Placed) -> None:
        now = time.perf_counter()
        self._waits_s.append(now - self._asked_at.pop(placed.request_id))
        self._num_overlaps += placed.overlap_blocks > 0
        self._prefilling.append(placed.request_id)
        if len(self._prefilling) > NUM_PREFILLING:
            self._decoding.append(started := self._prefilling.popleft())
            self._channel.send_soon(PrefillCompleted(started))
        if len(self._decoding) > NUM_RUNNING - NUM_PREFILLING:
            self._channel.send_soon(Free(self._decoding.popleft()))
        if now < self._until:
            self._ask()
        elif not self._asked_at:
            self._idle.set()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._channel.send(Heartbeat())


@contextlib.asynccontextmanager
async def _workers(store: Path) -> AsyncIterator[dict[int, EventPublisher]]:
    """Announced in a store of files; by the publishers of their KV events."""
    discovery = FileDiscovery(store)
    await discovery.open()
    publishers = {worker: EventPublisher(discovery, SCOPE, KV_EVENTS_TOPIC) for worker in worker_ids(NUM_WORKERS)}
    try:
        for bucket, entry in entries(NUM_WORKERS):
            await discovery.publish(bucket, entry.key, entry.value)
        for worker, publisher in publishers.items():
            await publisher.open()
            metadata = SourceMetadata(SCOPE, WorkerRank(worker), publisher.publisher_id)
            source = EventSource(Scope(endpoint=SCOPE), KV_EVENTS_TOPIC, publisher.publisher_id, metadata)
            await discovery.publish(EVENT_SOURCES, publisher.key, msgspec.json.encode(source))
        yield publishers
    finally:
        await asyncio.gather(*(publisher.close() for publisher in publishers.values()))
        await discovery.close()


@contextlib.contextmanager
def _router(store: Path, log: Path) -> Iterator[tuple[Pinned, str]]:
    """The process and where it listens."""
    address = f"ipc://{store}/router"
    argv = [
        sys.executable,
        "-m",
        "dynamo.router",
        "--bind",
        address,
        "--router-mode",
        "kv",
        "--discovery-backend",
        "file",
    ]
    router = Pinned("router", argv, cores=(FRONTEND_CORE,), env={"DYN_FILE_KV": str(store)}, log=log)
    try:
        yield router, address
    finally:
        router.stop()


def _quantile(values: list[float], quantile: float) -> float:
    return sorted(values)[math.ceil(quantile * len(values)) - 1]


if __name__ == "__main__":
    main()
