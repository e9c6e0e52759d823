"""The systems under test: how each is started, when it serves, and how it is stopped."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import process_tree
from bench.load import Client, WrongAnswer, check

COMMON_FLAGS = ("-m", "dynamo.frontend", "--router-mode", "round-robin", "--discovery-backend", "file")
LOOPBACK = {
    "HF_HUB_OFFLINE": "1",
    "DYN_TCP_RPC_HOST": "127.0.0.1",
    "DYN_EVENT_PLANE_HOST": "127.0.0.1",
    "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    "DYN_SYSTEM_HOST": "127.0.0.1",
}
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15


class DidNotStart(Exception):
    """A process ended or did not serve in time; the message holds the end of its log."""


@dataclass(frozen=True)
class System:
    """A frontend as a user would start it. `tokenizer` is the anchor's setting; ours has one way only, None."""

    name: str
    python: str
    flags: tuple[str, ...] = ()
    tokenizer: str | None = None

    @property
    def slug(self) -> str:
        return re.sub("[^a-z0-9]+", "-", self.name)


def ours(num_acceptors: int = 1) -> System:
    return System(
        f"ours, {num_acceptors}" if num_acceptors > 1 else "ours", sys.executable, ("--workers", str(num_acceptors))
    )


def anchor(tokenizer: str = "default") -> System:
    return System(f"anchor, {tokenizer}", anchor_python(), ("--tokenizer", tokenizer), tokenizer)


def anchor_python() -> str:
    """Interpreter of the venv that holds ai-dynamo."""
    return os.environ.get("DYNAMO_ORACLE_PYTHON", ".venv-oracle/bin/python")


class Pinned:
    """A process tree pinned to some cores, its output in a log file."""

    def __init__(
        self, name: str, argv: Sequence[str], *, cores: Collection[int], env: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, cores)), *argv],
                env={**_environment(), **env},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def check_alive(self) -> None:
        if self._process.poll() is not None:
            raise DidNotStart(f"{self.name} ended with {self._process.returncode}:\n{self._log_end()}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left of the tree."""
        pids = process_tree.pids_of(self.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            self._process.wait()

    def _log_end(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


class Frontend(Pinned):
    """A started system; `start_s` is from spawn to the first served request of every model."""

    def __init__(self, system: System, *, core: int, store: Path, log: Path) -> None:
        self.system = system
        self.port = free_port()
        self._spawned_at = time.perf_counter()
        self.start_s = 0.0
        super().__init__(
            system.name,
            [system.python, *COMMON_FLAGS, *system.flags, "--http-host", "127.0.0.1", "--http-port", str(self.port)],
            cores=(core,),
            env={"DYN_FILE_KV": str(store)},
            log=log,
        )

    async def until_serving(self, bodies: Sequence[bytes]) -> None:
        """`bodies` ask each model for one token."""
        for body in bodies:
            while not await self._serves(body):
                self.check_alive()
                if time.perf_counter() - self._spawned_at > START_TIMEOUT_S:
                    raise DidNotStart(
                        f"{self.system.name} did not serve within {START_TIMEOUT_S} s:\n{self._log_end()}"
                    )
                await asyncio.sleep(0.01)
        self.start_s = time.perf_counter() - self._spawned_at

    async def _serves(self, body: bytes) -> bool:
        try:
            async with self.client() as client:
                check(await client.ask(body), tokens_out=1)
        except (OSError, WrongAnswer):
            return False
        return True

    def client(self, concurrency: int = 1) -> Client:
        return Client(self.port, concurrency)


def _environment() -> dict[str, str]:
    """Ours, on loopback, and with bytecode caching as everybody has it."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | LOOPBACK


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
