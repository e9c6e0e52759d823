"""A real server binary of this environment, for the length of a test."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 60.0  # bounds a failure; a start takes a fraction of a second
STOP_TIMEOUT_S = 60.0  # bounds a failure; a stop without running requests takes a fraction of a second
PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
libc = ctypes.CDLL(None, use_errno=True)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """In a child before exec: whatever ends the tests, the server does not outlive them."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server(ABC):
    """Runs one server on loopback, in a directory of its own that survives `restart`."""

    program: str

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.program}-"))
        self._log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        return [str(Path(sys.executable).parent / self.program)]

    def environment(self) -> dict[str, str]:
        """Variables on top of our own."""
        return {}

    @abstractmethod
    def arguments(self) -> list[str]: ...

    @abstractmethod
    def is_ready(self, output: str) -> bool: ...

    def start(self) -> None:
        """Returns when the server is ready; raises with the server's own output when it is not in time."""
        offset = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command(), *self.arguments()],
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready(output := self._log.read_bytes()[offset:].decode(errors="replace")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.program} did not get ready:\n{output}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """Ask it to end, and wait for that."""
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill and start again on the same port with the same data."""
        self.kill()
        self.start()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
