"""A process that the supervisor keeps running: how it starts, says that it is ready, and is tried again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 5.0
STEADY_AFTER_S = 30.0  # a life this long forgets earlier failures
START_TIMEOUT_S = 60.0  # not ready by then: it hangs


@dataclass
class Child:
    """`message` goes to its stdin as one JSON line. The pipe then stays open: its end tells the child that we are gone.

    The child writes `ready` to the descriptor that `--ready-fd` names.
    """

    name: str
    module: str
    message: dict[str, Any]
    inherited_fds: tuple[int, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)

    is_ready: bool = False
    was_ever_ready: bool = False
    num_failures: int = 0  # in a row
    restart_at: float | None = None
    ready_fd: int | None = None
    _process: subprocess.Popen[bytes] | None = None
    _started_at: float = 0.0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self, now: float) -> None:
        """Raises OSError when the system has no room for another process; that counts as a failure."""
        self._started_at, self.restart_at = now, None
        try:
            self.ready_fd, write_end = os.pipe()
            try:
                self._process = self._spawn(write_end)
            finally:
                os.close(write_end)
        except OSError:
            self.close_ready_fd()
            self._back_off(now)
            raise
        self._send_message()

    def _spawn(self, ready_fd: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            # -P: a folder of the working directory that happens to be called dynamo must not be imported
            [sys.executable, "-P", "-m", self.module, "--config-stdin", "--ready-fd", str(ready_fd)],
            stdin=subprocess.PIPE,
            pass_fds=(ready_fd, *self.inherited_fds),
            env=os.environ | self.environ,
            process_group=0,  # Ctrl-C in a terminal is for the supervisor to act upon
        )

    def _send_message(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(self.message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead already; `reap` will say how

    def read_ready(self) -> bool:
        """Its ready descriptor has something: True when that says ready, False when the child closed it unsaid."""
        assert self.ready_fd is not None
        self.is_ready = os.read(self.ready_fd, 16).startswith(b"ready")
        self.was_ever_ready |= self.is_ready
        self.close_ready_fd()
        return self.is_ready

    def close_ready_fd(self) -> None:
        if self.ready_fd is not None:
            os.close(self.ready_fd)
            self.ready_fd = None

    def is_stuck(self, now: float) -> bool:
        return self.is_running and not self.is_ready and now - self._started_at > START_TIMEOUT_S

    def has_exited(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def bury(self, now: float) -> str:
        """After `has_exited`: how it ended. Decides when it may start again."""
        assert self._process is not None
        assert self._process.stdin is not None
        ending = describe_exit(self._process.returncode)
        self._process.stdin.close()
        self._process, self.is_ready = None, False
        self._back_off(now)
        return ending

    def _back_off(self, now: float) -> None:
        if now - self._started_at > STEADY_AFTER_S:
            self.num_failures = 0
        self.restart_at = now + min(FIRST_BACK_OFF_S * 2**self.num_failures, LONGEST_BACK_OFF_S)
        self.num_failures += 1

    def send_signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it now and wait for that."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def describe_exit(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
