"""The process that users start: it keeps one router and N acceptors running, and ends them in order.

    starting ──all ready once──▶ serving ──SIGTERM, SIGINT──▶ draining ──the last child is gone──▶ exit 0
       └──a child fails again and again before it was ever ready──▶ exit 1    └──second signal──▶ kill all, exit 1

A child that dies is started again, on the same socket, after a pause that grows with each failure in a row. The others
stay as they are: acceptors outlive the router and the router outlives them.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass

from dynamo.frontend.child import Child
from dynamo.frontend.signals import SignalQueue

log = logging.getLogger(__name__)

MAX_FAILED_STARTS = 5
STOP_GRACE_S = 5.0  # to exit after SIGTERM, on top of the time for running requests


class StartError(Exception):
    """Serving cannot begin; the message says what stands in the way."""


@dataclass
class Stage:
    """Children that are stopped together."""

    children: list[Child]
    grace_s: float
    deadline: float | None = None


class Supervisor:
    """`stages` in the order of stopping; children start in the opposite one. `listeners` are closed when the drain
    begins, so that a connection is refused, not left waiting, once its acceptor is gone."""

    def __init__(self, stages: list[Stage], listeners: list[socket.socket]) -> None:
        self._stages = deque(stages)
        self._children = [child for stage in reversed(stages) for child in stage.children]
        self._listeners = listeners
        self._selector = selectors.DefaultSelector()
        self._is_draining = False
        self._was_forced = False
        self._has_served = False

    def run(self) -> int:
        """Blocks until everything has stopped; the exit status of the process."""
        with contextlib.closing(SignalQueue()) as signals, self._selector:
            self._selector.register(signals, selectors.EVENT_READ)
            try:
                self._start_due(time.monotonic())
                while self._stages:
                    self._tick(signals)
            finally:
                self._kill_all()
        return 1 if self._was_forced else 0

    def _tick(self, signals: SignalQueue) -> None:
        """Wait for something to happen, then act on all of it."""
        for key, _ in self._selector.select(self._time_to_next_deadline()):
            if isinstance(key.data, Child):
                self._take_ready(key.data)
        for number in signals.take():
            self._on_signal(number)
        now = time.monotonic()
        self._reap(now)
        if self._is_draining:
            self._advance_drain(now)
        else:
            self._start_due(now)

    def _time_to_next_deadline(self) -> float:
        """Seconds; at most one, so that a child which hangs at its start is seen."""
        deadlines = [child.restart_at for child in self._children if child.restart_at is not None]
        if self._is_draining:
            deadlines = [stage.deadline for stage in self._stages if stage.deadline is not None]
        return max(0.0, min([1.0, *(deadline - time.monotonic() for deadline in deadlines)]))

    # ---- children come and go

    def _start_due(self, now: float) -> None:
        for child in self._children:
            if not child.is_running and (child.restart_at is None or child.restart_at <= now):
                self._start_child(child, now)

    def _start_child(self, child: Child, now: float) -> None:
        try:
            child.start(now)
        except OSError as error:
            self._on_failure(child, f"could not be started: {error}", now)
            return
        assert child.ready_fd is not None
        self._selector.register(child.ready_fd, selectors.EVENT_READ, child)
        log.debug("%s started", child.name, extra={"pid": child.pid})

    def _take_ready(self, child: Child) -> None:
        self._forget_ready_fd(child)
        if not child.read_ready():
            return
        log.info("%s is ready", child.name, extra={"pid": child.pid})
        if not self._has_served and all(child.was_ever_ready for child in self._children):
            self._has_served = True
            log.info("serving")

    def _forget_ready_fd(self, child: Child) -> None:
        if child.ready_fd is not None:
            self._selector.unregister(child.ready_fd)

    def _reap(self, now: float) -> None:
        for child in self._children:
            if child.is_stuck(now):
                log.error("%s did not become ready in time; killing it", child.name, extra={"pid": child.pid})
                child.kill()
            if child.has_exited():
                self._on_exit(child, now)

    def _on_exit(self, child: Child, now: float) -> None:
        pid = child.pid
        self._forget_ready_fd(child)
        child.close_ready_fd()
        ending = child.bury(now)
        if self._is_draining:
            log.info("%s %s", child.name, ending, extra={"pid": pid})
        else:
            self._on_failure(child, ending, now)

    def _on_failure(self, child: Child, what: str, now: float) -> None:
        if not child.was_ever_ready and child.num_failures >= MAX_FAILED_STARTS:
            raise StartError(f"{child.name} {what}, {child.num_failures} times before it was ever ready; see its log")
        assert child.restart_at is not None
        log.warning("%s %s; starting it again in %.1f s", child.name, what, child.restart_at - now)

    # ---- the end

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            return
        if self._is_draining:
            log.warning("%s again: ending everything now", number.name)
            self._was_forced = True
            self._stages.clear()
            return
        log.warning("%s: running requests may finish; once more to end at once", number.name)
        self._is_draining = True
        for listener in self._listeners:
            listener.close()

    def _advance_drain(self, now: float) -> None:
        while self._stages:
            stage = self._stages[0]
            running = [child for child in stage.children if child.is_running]
            if running:
                self._stop(stage, running, now)
                return
            self._stages.popleft()
        log.info("stopped")

    def _stop(self, stage: Stage, running: list[Child], now: float) -> None:
        if stage.deadline is None:
            stage.deadline = now + stage.grace_s
            for child in running:
                child.send_signal(signal.SIGTERM)
        elif now >= stage.deadline:
            self._was_forced = True
            for child in running:
                log.warning("%s did not stop in %g s; killing it", child.name, stage.grace_s, extra={"pid": child.pid})
                child.kill()

    def _kill_all(self) -> None:
        for child in self._children:
            child.kill()
