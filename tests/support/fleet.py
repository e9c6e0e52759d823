"""A gateway and workers of their own in one store, as a test of faults needs them: every process can be told apart."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from dynamo.frontend.main import DEMO_MODEL
from tests.support import held_worker
from tests.support.completions import Completion, complete
from tests.support.gateway import Gateway
from tests.support.processes import client_ports
from tests.support.server import Server
from tests.support.waiting import PATIENCE_S, wait_until

SHORT_PROMPT = "Is anybody there?"
LONG_PROMPT = "The quick brown fox jumps over the lazy dog. " * 6


class HeldWorker(Server):
    program = "held-worker"

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._environment = dict(environment)
        self.instance_id = ""

    def command(self) -> list[str]:
        return [sys.executable, "-P", held_worker.__file__]

    def arguments(self) -> list[str]:
        return []

    def environment(self) -> dict[str, str]:
        return self._environment

    def is_ready(self, output: str) -> bool:
        if (serving := re.search(r"serving as (\w+)", output)) is None:
            return False
        self.instance_id = serving[1]
        return True

    def open_gate(self) -> None:
        self.signal(signal.SIGUSR1)

    @property
    def num_began(self) -> int:
        return self.log.count("began\n")

    @property
    def num_cancelled(self) -> int:
        return self.log.count("cancelled\n")

    @property
    def num_flooded(self) -> int:
        """Tokens sent so far of an answer that repeats the prompt."""
        return max(map(int, re.findall(r"flooded (\d+)\n", self.log)), default=0)


class Fleet(Gateway):
    model = held_worker.MODEL

    def __init__(self, *flags: str, environment: Mapping[str, str], mock_workers: int = 0) -> None:
        super().__init__("--workers=2", *flags, environment=environment, mock_workers=mock_workers)
        self.workers: list[HeldWorker] = []

    def is_ready(self, output: str) -> bool:
        """Every child was ready once."""
        if (listening := re.search(r"listening on (http://\S+)", output)) is None:
            return False
        self.base_url = listening[1]
        return re.search(r": serving$", output, re.MULTILINE) is not None

    # ---- processes

    def wait(self) -> int:
        """The exit status of the supervisor."""
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def pids_of(self, child: str) -> list[int]:
        """Of all its lives so far; the last one is the present one."""
        return [int(pid) for pid in re.findall(rf"{child} is ready pid=(\d+)", self.log)]

    def pid_of(self, child: str) -> int:
        return self.pids_of(child)[-1]

    def acceptors(self) -> list[int]:
        names = sorted(set(re.findall(r"(acceptor-\d+) is ready", self.log)))
        return [self.pid_of(name) for name in names]

    def held_by(self, acceptor: int, completions: list[Completion]) -> list[Completion]:
        ports = client_ports(acceptor, self.address[1])
        return [completion for completion in completions if completion.local_port in ports]

    def open_gates(self) -> None:
        for worker in self.workers:
            worker.open_gate()

    # ---- requests

    async def ask(self, count: int, prompt: str, **fields: Any) -> list[Completion]:
        """`count` at once, each with a prompt of its own, on a connection of its own."""
        fields = {"model": self.model, **fields}
        return await asyncio.gather(*(complete(self.address, f"{i}. {prompt}", **fields) for i in range(count)))

    async def stream(self, count: int, prompt: str = LONG_PROMPT, **fields: Any) -> list[Completion]:
        return await self.ask(count, prompt, stream=True, stream_options={"include_usage": True}, **fields)

    def metrics(self) -> Metrics:
        """As whichever acceptor takes a new connection tells them."""
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)) as connection:
            return Metrics(get(connection, "/metrics")[1])

    @contextmanager
    def connection_to_each_acceptor(self) -> Iterator[list[http.client.HTTPConnection]]:
        """Kept alive. The kernel chooses the acceptor of a connection, so: until every acceptor has been chosen."""
        wanted = self.acceptors()
        found: dict[int, http.client.HTTPConnection] = {}
        with ExitStack() as connections:
            while len(found) < len(wanted):
                connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)
                connections.enter_context(contextlib.closing(connection))
                assert get(connection, "/live")[0] == 200
                port = connection.sock.getsockname()[1]
                found[next(pid for pid in wanted if port in client_ports(pid, self.address[1]))] = connection
            yield list(found.values())


def get(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


class Metrics:
    def __init__(self, text: bytes) -> None:
        self.text = text
        self._samples = [s for family in text_string_to_metric_families(text.decode()) for s in family.samples]

    def total(self, name: str, **labels: str) -> int:
        """Over all label values that are not given; 0 where there is no such sample yet."""
        return int(sum(s.value for s in self._samples if s.name == name and labels.items() <= s.labels.items()))

    def by_label(self, name: str, label: str) -> dict[str, int]:
        """Value of that label -> total."""
        values = {s.labels[label] for s in self._samples if s.name == name}
        return {value: self.total(name, **{label: value}) for value in values}


@contextmanager
def fleet(directory: Path, *flags: str, num_workers: int = 1, mock_workers: int = 0) -> Iterator[Fleet]:
    """Ready to serve, with a store of files."""
    store = {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": os.fspath(directory / "store")}
    with fleet_in(store, *flags, num_workers=num_workers, mock_workers=mock_workers) as started:
        yield started


@contextmanager
def fleet_in(store: Mapping[str, str], *flags: str, num_workers: int = 1, mock_workers: int = 0) -> Iterator[Fleet]:
    """`store` are the variables that say where workers are found."""
    backend = f"--discovery-backend={store['DYN_DISCOVERY_BACKEND']}"
    environment = {**store, "DYN_TCP_RPC_HOST": "127.0.0.1", "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1"}
    with ExitStack() as running:
        started = Fleet(backend, *flags, environment=environment, mock_workers=mock_workers)
        for _ in range(num_workers):
            started.workers.append(running.enter_context(HeldWorker(environment)))
        running.enter_context(started)
        models = {started.model, *([DEMO_MODEL] if mock_workers else [])}
        with started.connection_to_each_acceptor() as connections:
            wait_until(lambda: all(models_of(c) == models for c in connections), "the models at every acceptor")
        yield started


def models_of(connection: http.client.HTTPConnection) -> set[str]:
    _, body = get(connection, "/v1/models")
    return {entry["id"] for entry in json.loads(body)["data"]}
