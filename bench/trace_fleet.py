"""The processes of one arm of the trace replay: fresh mockers of ai-dynamo 1.6.1, and one or more frontends of a kind.

The mockers listen on every interface, whatever they are told: all of it belongs in a network namespace.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dynamo.worker
from bench import process_tree
from bench.frontends import DidNotStart, Pinned, anchor_python, free_port

MODEL_DIR = Path(dynamo.worker.__file__).parent / "demo_model"
MODEL = "trace"
BLOCK_SIZE = 16
SYSTEMS = ("ours", "anchor")
MODES = {
    "round-robin": ("--router-mode", "round-robin"),
    "approximate": ("--router-mode", "kv", "--no-router-kv-events"),
    "kv": ("--router-mode", "kv"),
}
START_TIMEOUT_S = 60
SETTLE_S = 2.0  # subscriptions to KV events take effect some time after a frontend serves
ALL_CORES = (0, 1)
ANNOUNCED = ("instances/*%2Fgenerate%2F*", "mdc/*", "event_sources/*kv%2Devents*")


@dataclass(frozen=True)
class Arm:
    """One way to route the trace: `num_replicas` frontends in one replica-sync group, requests spread over them."""

    system: str
    mode: str
    num_replicas: int

    @property
    def name(self) -> str:
        replicas = f"{self.num_replicas} replicas" if self.num_replicas > 1 else "1 replica"
        return f"{self.system}, {self.mode}, {replicas}"


@dataclass(frozen=True, kw_only=True)
class Mockers:
    """`speedup` is how much faster than real engines they are; `num_blocks` the cache of each."""

    num_workers: int
    num_blocks: int
    speedup: float


class Fleet:
    """Started processes of an arm, all of them serving."""

    def __init__(self, frontends: Sequence[tuple[Pinned, int]], mockers: Pinned) -> None:
        self.ports = [port for _process, port in frontends]
        self._frontends = [process for process, _port in frontends]
        self._mockers = mockers

    def frontend_cpu_s(self) -> float:
        return sum(process_tree.cpu_s(process.pid) for process in self._frontends)

    def mocker_cpu_s(self) -> float:
        return process_tree.cpu_s(self._mockers.pid)

    def check_alive(self) -> None:
        for process in (*self._frontends, self._mockers):
            process.check_alive()


@contextlib.contextmanager
def started(arm: Arm, mockers: Mockers, logs: Path) -> Iterator[Fleet]:
    """Frontends start when all workers are announced, so that each knows all of them from the beginning."""
    with contextlib.ExitStack() as stack:
        store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dynamo-bench-")))

        def start(name: str, argv: list[str]) -> Pinned:
            env = {"DYN_FILE_KV": str(store), "DYN_EVENT_PLANE": "zmq"}
            process = Pinned(name, argv, cores=ALL_CORES, env=env, log=logs / f"{name}.log")
            stack.callback(process.stop)
            return process

        workers = start("mockers", [anchor_python(), *_mocker_flags(mockers)])
        _wait_until(lambda: _num_announced(store) >= mockers.num_workers, workers)
        frontends = [
            (start(f"frontend-{arm.system}-{i}", _argv(arm, port)), port) for i, port in enumerate(_ports(arm))
        ]
        for process, port in frontends:
            _wait_until(functools.partial(_lists_model, port), process)
        time.sleep(SETTLE_S)
        yield Fleet(frontends, workers)


def _mocker_flags(mockers: Mockers) -> list[str]:
    return [
        *("-m", "dynamo.mocker", "--model-path", str(MODEL_DIR), "--model-name", MODEL, "--discovery-backend", "file"),
        *("--num-workers", str(mockers.num_workers), "--speedup-ratio", str(mockers.speedup)),
        *("--block-size", str(BLOCK_SIZE), "--num-gpu-blocks-override", str(mockers.num_blocks)),
    ]


def _argv(arm: Arm, port: int) -> list[str]:
    python = sys.executable if arm.system == "ours" else anchor_python()
    flags = ["--discovery-backend", "file", "--http-host", "127.0.0.1", "--http-port", str(port), *MODES[arm.mode]]
    if arm.num_replicas > 1 and arm.mode != "round-robin":
        flags.append("--router-replica-sync")
    return [python, "-m", "dynamo.frontend", *flags]


def _ports(arm: Arm) -> list[int]:
    return [free_port() for _ in range(arm.num_replicas)]


def _num_announced(store: Path) -> int:
    """Workers whose instance, card and source of KV events are all in the store."""
    return min(sum(1 for _ in (store / "v1").glob(pattern)) for pattern in ANNOUNCED)


def _lists_model(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
            return any(model["id"] == MODEL for model in json.load(answer)["data"])
    except OSError:
        return False


def _wait_until(condition: Callable[[], bool], process: Pinned) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        process.check_alive()
        if time.monotonic() > deadline:
            raise DidNotStart(f"{process.name} was not ready within {START_TIMEOUT_S} s; see {process.log}")
        time.sleep(0.05)
