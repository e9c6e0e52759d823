"""How late an acceptor's event loop is: what it does at a time is what every stream waits for."""

from __future__ import annotations

import asyncio

from dynamo.frontend.metric_families import Families

INTERVAL_S = 0.1
STALL_S = 0.005


class LoopDelay:
    def __init__(self, families: Families) -> None:
        self._delays = families.histograms["event_loop_delay_seconds"].labels()
        self._stalls = families.counters["event_loop_stall"].labels()
        self._loop = asyncio.get_running_loop()
        self._expect()

    def stop(self) -> None:
        self._timer.cancel()

    def _expect(self) -> None:
        self._due_at = self._loop.time() + INTERVAL_S
        self._timer = self._loop.call_at(self._due_at, self._look)

    def _look(self) -> None:
        delay_s = max(0.0, self._loop.time() - self._due_at)
        self._delays.observe(delay_s)
        if delay_s > STALL_S:
            self._stalls.inc()
        self._expect()
