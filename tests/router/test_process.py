"""The real router process with file discovery; the test is its workers and its acceptors."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dynamo.shared.channel import DealerChannel
from dynamo.shared.discovery import CARDS, INSTANCES
from dynamo.shared.discovery.file import FileDiscovery
from dynamo.shared.messages import (
    ActiveRequest,
    Free,
    Heartbeat,
    Hello,
    Place,
    Placed,
    Refused,
    RouterMessage,
    TableDelta,
    Welcome,
    WorkerFailed,
)
from dynamo.shared.metrics import render
from tests.router.registrations import card_value, instance_value
from tests.support.waiting import PATIENCE_S, until

M = TypeVar("M", bound=RouterMessage)
ENDPOINT = "ns/backend/generate"


class RouterProcess:
    """`python -m dynamo.router` with everything of its own below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.address = f"ipc://{directory}/router.sock"
        self.store = directory / "store"
        self.metrics = directory / "metrics"
        self.metrics.mkdir(exist_ok=True)
        self._log = directory / "router.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, options: dict[str, Any] | None = None) -> None:
        """Returns when it is ready; raises with its own log when it ends before."""
        readable, writable = os.pipe()
        by_stdin = {"bind": self.address, "discovery_backend": "file"} | (options or {})
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dynamo.router", "--config-stdin", "--ready-fd", str(writable), *flags],
                stdin=subprocess.PIPE,
                stderr=log,
                pass_fds=(writable,),
                env=os.environ | {"DYN_FILE_KV": str(self.store), "DYN_METRICS_DIR": str(self.metrics)},
            )
        os.close(writable)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(by_stdin).encode() + b"\n")
        self.process.stdin.flush()
        with os.fdopen(readable, "rb") as pipe:
            if pipe.readline() != b"ready\n":
                raise RuntimeError(f"the router did not get ready:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.wait()


class Acceptor:
    """Says hello with what it holds whenever the router appears, as the real one does."""

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self.active: dict[int, int] = {}
        self.messages: list[RouterMessage] = []
        self.channel = DealerChannel(
            address, on_messages=self._on_messages, on_connect=self.hello, on_disconnect=self.messages.clear
        )

    def hello(self) -> None:
        self.channel.send(
            Hello(self.name, 1, [ActiveRequest(request_id, worker, 1) for request_id, worker in self.active.items()])
        )

    def _on_messages(self, messages: list[RouterMessage]) -> None:
        self.messages += messages

    async def welcome(self) -> Welcome:
        return await self.first(Welcome)

    async def place(self, request_id: int, model: str = "m", **wishes: Any) -> int:
        assert self.channel.send(Place(request_id, model, 10, **wishes))
        placed = await self.first(Placed)
        assert placed.request_id == request_id
        self.active[request_id] = placed.instance_id
        return placed.instance_id

    def free(self, request_id: int) -> None:
        del self.active[request_id]
        self.channel.send(Free(request_id))

    async def first(self, kind: type[M]) -> M:
        """Take the oldest message of a kind, waiting for it."""
        await until(lambda: any(isinstance(message, kind) for message in self.messages))
        found = next(message for message in self.messages if isinstance(message, kind))
        self.messages.remove(found)
        return found


@pytest.fixture
def router(tmp_path: Path) -> Iterator[RouterProcess]:
    process = RouterProcess(tmp_path)
    yield process
    process.kill()


@pytest.fixture
async def workers(router: RouterProcess) -> AsyncIterator[FileDiscovery]:
    """Workers 1 to 3, as far as discovery goes."""
    discovery = FileDiscovery(router.store)
    await discovery.open()
    for worker in (1, 2, 3):
        await register(discovery, worker)
    yield discovery
    await discovery.close()


async def register(discovery: FileDiscovery, worker: int, model: str = "m") -> None:
    await discovery.publish(INSTANCES, f"{ENDPOINT}/{worker:x}", instance_value(worker, ENDPOINT))
    await discovery.publish(CARDS, f"{ENDPOINT}/{worker:x}", card_value(worker, ENDPOINT, {"model": model}))


async def test_table_placement_and_changes(router: RouterProcess, workers: FileDiscovery) -> None:
    router.start("--router-mode", "round_robin")
    acceptor = Acceptor(router.address, "a0")
    welcome = await acceptor.welcome()
    assert {worker.instance_id for worker in welcome.workers} == {1, 2, 3}
    assert [(each.model, sorted(each.members)) for each in welcome.worker_sets] == [("m", [1, 2, 3])]
    assert {await acceptor.place(request_id) for request_id in range(3)} == {1, 2, 3}

    acceptor.channel.send(Place(9, "unknown", 1))
    refused = await acceptor.first(Refused)
    assert (refused.request_id, refused.code) == (9, "model_not_found")

    await workers.withdraw(INSTANCES, f"{ENDPOINT}/2")
    delta = await acceptor.first(TableDelta)
    assert (delta.version, delta.workers_down) == (welcome.version + 1, [2])
    assert {await acceptor.place(request_id) for request_id in range(10, 14)} == {1, 3}

    acceptor.channel.send(WorkerFailed(1, "connection refused"))
    assert {await acceptor.place(request_id) for request_id in range(20, 24)} == {3}
    acceptor.channel.close()


async def test_a_killed_router_comes_back_with_its_load(router: RouterProcess, workers: FileDiscovery) -> None:
    flags = ("--router-mode", "least-loaded", "--random-seed", "1")
    router.start(*flags)
    first, second = Acceptor(router.address, "a0"), Acceptor(router.address, "a1")
    await first.welcome()
    await second.welcome()
    for request_id in range(6):
        await first.place(request_id, instance_id=1)
    for request_id in range(3):
        await second.place(request_id, instance_id=2)

    router.kill()
    await until(lambda: not first.channel.is_connected and not second.channel.is_connected)
    assert not first.channel.send(Heartbeat())
    router.start(*flags)
    assert {worker.instance_id for worker in (await first.welcome()).workers} == {1, 2, 3}
    await second.welcome()

    # Announced again: 6 on worker 1, 3 on worker 2. So 3 more go to worker 3, and then worker 1 is left alone till 6.
    assert [await first.place(request_id) for request_id in range(10, 13)] == [3, 3, 3]
    assert sorted([await second.place(request_id) for request_id in range(10, 16)]) == [2, 2, 2, 3, 3, 3]
    first.channel.close()
    second.channel.close()


async def test_what_a_dead_acceptor_held_is_freed(router: RouterProcess, workers: FileDiscovery) -> None:
    router.start("--router-mode", "least-loaded")
    dying, living = Acceptor(router.address, "a0"), Acceptor(router.address, "a1")
    await dying.welcome()
    await living.welcome()
    for request_id in range(4):
        await dying.place(request_id, instance_id=1)
    assert [await living.place(request_id, instance_id=worker) for request_id, worker in ((1, 2), (2, 3))] == [2, 3]
    assert await living.place(3, excluded=[3]) == 2
    dying.channel.close()  # without a goodbye

    async def is_freed() -> bool:
        chosen = await living.place(100)
        living.free(100)
        return chosen == 1

    async with asyncio.timeout(PATIENCE_S):
        while not await is_freed():
            await asyncio.sleep(0.05)
    living.channel.close()


async def test_a_malformed_card_is_logged_once_and_hurts_nobody(router: RouterProcess, workers: FileDiscovery) -> None:
    await workers.publish(CARDS, f"{ENDPOINT}/9", b'{"type":"Model","card_json":{}}')
    router.start()
    acceptor = Acceptor(router.address, "a0")
    await acceptor.welcome()
    assert await acceptor.place(1) in (1, 2, 3)
    await workers.publish(CARDS, f"{ENDPOINT}/a", b"\x00")
    await register(workers, 4, "other")
    await until(lambda: any(isinstance(m, TableDelta) and m.workers_up for m in acceptor.messages))
    assert router.log.count(f"ignoring v1/mdc/{ENDPOINT}/9") == 1
    assert "Traceback" not in router.log
    await until(lambda: b"dynamo_router_malformed_entries 2.0" in render(router.metrics))
    assert b'dynamo_router_placements_total{outcome="placed"} 1.0' in render(router.metrics)
    assert b"dynamo_router_workers 4.0" in render(router.metrics)
    acceptor.channel.close()


def test_it_ends_with_its_parent(router: RouterProcess) -> None:
    router.start()
    assert router.process is not None
    assert router.process.stdin is not None
    router.process.stdin.close()
    assert router.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order_on_a_signal(router: RouterProcess, number: signal.Signals) -> None:
    router.start()
    assert router.process is not None
    router.process.send_signal(number)
    assert router.wait() == 0
    assert "Traceback" not in router.log


def test_it_ends_on_a_signal_while_discovery_is_out_of_reach(router: RouterProcess, monkeypatch: Any) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS", "http://127.0.0.1:1")
    process = subprocess.Popen(
        [sys.executable, "-m", "dynamo.router", "--bind", router.address, "--discovery-backend", "etcd"],
        stderr=subprocess.PIPE,
        env=os.environ | {"DYN_LOG": "info"},
    )
    assert process.stderr is not None
    process.stderr.readline()  # its complaint about etcd: the signal handlers are there by then
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


async def test_kv_mode_asks_for_block_hashes(router: RouterProcess, workers: FileDiscovery) -> None:
    await register(workers, 1)
    router.start(options={"router_mode": "kv"})
    acceptor = Acceptor(router.address, "a0")
    welcome = await acceptor.welcome()
    assert (welcome.router_mode, welcome.settings.needs_block_hashes) == ("kv", True)
    acceptor.channel.close()


@pytest.mark.parametrize(
    ("flags", "line", "complaint"),
    [
        (["--router-mode", "fastest"], b"", "expected one of round-robin, random"),
        (["--config-stdin"], b"no json\n", "is not a JSON object of options"),
        (["--config-stdin"], b'{"router_mood":"kv"}\n', "unknown options: router_mood"),
        (["--config-stdin"], b'{"inhibited_duration_s":"long"}\n', "inhibited_duration_s"),
        (
            ["--discovery-backend", "mem", "--bind", "ipc:///no/such/place"],
            b"",
            "cannot listen on ipc:///no/such/place",
        ),
        (["--discovery-backend", "mem", "--bind", "pigeon"], b"", "cannot listen on pigeon"),
    ],
)
def test_options_that_do_not_fit_are_named(flags: list[str], line: bytes, complaint: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dynamo.router", *flags],
        input=line,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode != 0
    assert complaint in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
