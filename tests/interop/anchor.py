"""Processes of the real Dynamo 1.6.1, unmodified, run by an interpreter of their own."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dynamo.worker
from tests.support.server import Server, free_port
from tests.support.waiting import wait_until

MODEL_PATH = Path(dynamo.worker.__file__).parent / "demo_model"
ANCHOR_PYTHON = os.environ.get("DYNAMO_ORACLE_PYTHON", "")
AS_THEIRS = "--no-detect-parsers"  # of ours: the real frontend takes parsers from cards alone
NUM_CONNECTIONS = 24  # the kernel gives each to any acceptor: one of two is left out once in ten million times
LOOPBACK = {
    "HF_HUB_OFFLINE": "1",
    "DYN_TCP_RPC_HOST": "127.0.0.1",
    "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    "DYN_EVENT_PLANE": "zmq",
    "DYN_EVENT_PLANE_HOST": "127.0.0.1",
    "DYN_SYSTEM_HOST": "127.0.0.1",
}


@dataclass(frozen=True)
class Store:
    """Where the processes of one test find each other."""

    backend: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**LOOPBACK, **self.variables}

    @property
    def flag(self) -> str:
        return f"--discovery-backend={self.backend}"


def file_store(directory: Path) -> Store:
    return Store("file", {"DYN_FILE_KV": str(directory)})


class AnchorProcess(Server):
    """`flags` follow those that the process needs to find the others."""

    program = "anchor"
    script: tuple[str, ...]

    def __init__(self, store: Store, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.store = store
        self._flags = flags
        self._environment = {**store.environment, **(environment or {})}

    def command(self) -> list[str]:
        return [ANCHOR_PYTHON, *self.script]

    def arguments(self) -> list[str]:
        return [self.store.flag, *self._flags]

    def environment(self) -> dict[str, str]:
        return self._environment

    def close(self) -> None:
        self.stop()
        super().close()


class Mocker(AnchorProcess):
    """`python -m dynamo.mocker`. Ready is not yet discovered: wait for that at the frontend."""

    script = ("-m", "dynamo.mocker")
    model = "mock"

    def __init__(self, store: Store, *flags: str) -> None:
        super().__init__(store, f"--model-path={MODEL_PATH}", f"--model-name={self.model}", "--block-size=16", *flags)

    def is_ready(self, output: str) -> bool:
        return "Signal handlers set up" in output


class AnchorFrontend(AnchorProcess):
    """`python -m dynamo.frontend`. Ready when it answers."""

    script = ("-m", "dynamo.frontend")

    def __init__(self, store: Store, *flags: str) -> None:
        self.port = free_port()
        super().__init__(store, "--http-host=127.0.0.1", f"--http-port={self.port}", *flags)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_ready(self, output: str) -> bool:
        try:
            self.models()
        except OSError:
            return False
        return True

    def models(self) -> set[str]:
        with urllib.request.urlopen(f"{self.base_url}/v1/models", timeout=10) as answer:
            return {model["id"] for model in json.load(answer)["data"]}


class ScriptedWorker(AnchorProcess):
    """scripted_worker.py: a worker on Dynamo's Python bindings that answers as `plan` says and keeps what it saw."""

    script = ("-P", str(Path(__file__).parent / "scripted_worker.py"))  # without the folder of the script on its path

    def __init__(
        self,
        store: Store,
        endpoint: str,
        model: str,
        *,
        codec: str = "msgpack",
        model_input: str = "Tokens",
        model_types: Sequence[str] = ("Chat", "Completions"),
    ) -> None:
        super().__init__(store, environment={"DYN_REQUEST_PLANE_CODEC": codec})
        self.model = model
        self._endpoint = endpoint
        self._kind = [model_input, ",".join(model_types)]

    def arguments(self) -> list[str]:
        return [self.store.backend, self._endpoint, str(MODEL_PATH), self.model, str(self.directory), *self._kind]

    def is_ready(self, output: str) -> bool:
        return "serving" in output

    def plan(self, *items: Any, error: tuple[str, str] | None = None, waits: bool = False) -> None:
        """What every request from now on gets: these frames, then an exception by class name and message, or silence
        until it is cancelled."""
        (self.directory / "plan.json").write_text(json.dumps({"items": items, "error": error, "waits": waits}))

    @property
    def calls(self) -> list[dict[str, Any]]:
        return self._records("calls")

    @property
    def endings(self) -> list[dict[str, Any]]:
        return self._records("endings")

    def _records(self, kind: str) -> list[dict[str, Any]]:
        file = self.directory / f"{kind}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_until_everywhere(condition: Callable[[], object], what: str) -> None:
    """For what several acceptors are asked: by so many connections that none is left out."""
    wait_until(lambda: all(condition() for _ in range(NUM_CONNECTIONS)), what)
