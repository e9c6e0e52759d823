"""Tells routers how loaded the ranks of a worker are. Call shapes are those of `dynamo.llm.WorkerMetricsPublisher`."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from dynamo.shared.event_plane.publisher import EventPublisher
from dynamo.shared.kv_events import LOAD_TOPIC, LoadReport, encode_load
from dynamo.shared.runtime import Endpoint

MIN_INTERVAL_S = 0.01  # between reports of changes
HEARTBEAT_S = 10.0  # until everything is told again, for routers that came later


class RankLoad(Struct, frozen=True):
    active_decode_blocks: int | None
    kv_used_blocks: int | None


class WorkerMetricsPublisher:
    """Reports the newest load of each rank when it changes, but not more often than every MIN_INTERVAL_S. Publish from
    any thread."""

    def __init__(self) -> None:
        self._load: dict[int, RankLoad] = {}
        self._told: dict[int, RankLoad] = {}
        self._is_awake = True  # the loop knows that there is something to report, or does not care yet
        self._loop: asyncio.AbstractEventLoop
        self._channel: EventPublisher
        self._worker_id = 0
        self._due_at = 0.0  # changes are not told before
        self._refresh_at = 0.0  # everything is told again
        self._timer: asyncio.TimerHandle | None = None

    async def create_endpoint(self, endpoint: Endpoint) -> None:
        """Report for this endpoint's worker from now on, until its runtime ends. Raises OSError, DiscoveryError,
        RuntimeClosed."""
        await endpoint.runtime.open()
        self._loop = asyncio.get_running_loop()
        self._channel = endpoint.runtime.event_publisher(endpoint.scope, LOAD_TOPIC)
        await self._channel.open()
        self._worker_id = endpoint.connection_id()
        endpoint.runtime.on_close(self._close)
        self._report()

    def publish(
        self,
        dp_rank: int | None = None,
        active_decode_blocks: int | None = None,
        kv_used_blocks: int | None = None,
    ) -> None:
        """The present load of a rank; no rank is rank 0. Raises ValueError when it says nothing."""
        if active_decode_blocks is None and kv_used_blocks is None:
            raise ValueError("a load report needs active_decode_blocks or kv_used_blocks")
        load = RankLoad(active_decode_blocks, kv_used_blocks)
        if self._load.get(dp_rank or 0) == load:
            return
        self._load[dp_rank or 0] = load
        if not self._is_awake:
            self._is_awake = True
            self._loop.call_soon_threadsafe(self._report_when_due)

    def _report_when_due(self) -> None:
        self._schedule(self._due_at - self._loop.time())

    def _schedule(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, delay_s), self._report)

    def _report(self) -> None:
        self._is_awake = False  # before the look at the load: what changes after it wakes us again
        now = self._loop.time()
        if now >= self._refresh_at:
            self._refresh_at = now + HEARTBEAT_S
            self._told.clear()
        for rank, load in self._load.copy().items():
            if self._told.get(rank) != load:
                self._told[rank] = load
                report = LoadReport(self._worker_id, rank, load.active_decode_blocks, None, load.kv_used_blocks)
                self._channel.publish(encode_load(report))
        self._due_at = now + MIN_INTERVAL_S
        self._schedule(self._refresh_at - now)

    async def _close(self) -> None:
        self._is_awake = True
        if self._timer is not None:
            self._timer.cancel()
        await self._channel.close()
