"""Requests that a router sends on to the worker it chose, and their answers on the way back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from msgspec.structs import replace

from dynamo.router.local_acceptor import LocalAcceptor
from dynamo.shared.errors import BackendError, CannotConnect, Disconnected, WorkerError, WorkerTimeout
from dynamo.shared.messages import Place, Placed, Worker
from dynamo.shared.request_plane import exceptions
from dynamo.shared.request_plane.client import EngineClient, WorkerAtCapacity
from dynamo.shared.request_plane.context import Context
from dynamo.shared.request_plane.items import ANYTHING, items_of

Request = dict[str, Any]


class Forwarder:
    """`worker_of` finds a worker of the table, `num_queued` says how many requests wait."""

    def __init__(
        self,
        local: LocalAcceptor,
        engine: EngineClient,
        worker_of: Callable[[int], Worker | None],
        num_queued: Callable[[], int],
    ) -> None:
        self._local = local
        self._engine = engine
        self._worker_of = worker_of
        self._num_queued = num_queued

    async def forward(
        self, place: Place, request: Request, context: Context, block_size: int
    ) -> AsyncGenerator[Any, None]:
        """The worker's items as they come. Another worker is asked where one surely has not begun. Raises NotPlaced,
        GivenUp and a DynamoException."""
        until = context.async_killed_or_stopped()
        excluded: list[int] = []
        while True:
            place = replace(place, request_id=self._local.next_request_id(), excluded=list(excluded))
            progress = Progress(self._local, place, block_size, self._num_queued())
            async with self._local.placed(place, until) as placed:
                progress.note_placed()
                try:
                    async with aclosing(self._answer(placed, request, context, until)) as items:
                        async for item in items:
                            yield progress.noted(item, placed)
                    return
                except WorkerError as error:
                    if error.is_suspect:
                        self._local.report_failure(placed.instance_id, error.code or "failed")
                    has_begun = not isinstance(error, CannotConnect | WorkerAtCapacity)
                    if has_begun or placed.instance_id in excluded:
                        raise _as_dynamo(error) from error
            excluded.append(placed.instance_id)

    async def _answer(
        self, placed: Placed, request: Request, context: Context, until: asyncio.Future[bool]
    ) -> AsyncGenerator[Any, None]:
        worker = self._worker_of(placed.instance_id)
        if worker is None or not worker.address:
            raise CannotConnect(f"The worker {placed.instance_id:x} cannot be reached over TCP, or has just left.")
        if placed.dp_rank is not None:
            request = request | {"routing": (request.get("routing") or {}) | {"dp_rank": placed.dp_rank}}
        call = self._engine.call(worker, context.id(), request, ANYTHING, metadata=context.metadata or None)
        with await call as stream:
            async with aclosing(items_of(stream, until)) as items:
                async for item in items:
                    yield item


class Progress:
    """Tells the router how far an answer is, and the client, as Dynamo's router does, where it came from and how long
    that took: `routing_data` of the first item with tokens and of the last."""

    def __init__(self, local: LocalAcceptor, place: Place, block_size: int, num_queued: int) -> None:
        self._local = local
        self._place = place
        self._block_size = block_size
        self._num_queued = num_queued
        self._num_tokens = place.num_tokens
        self._num_blocks = self._num_prompt_blocks = -(-place.num_tokens // block_size)
        self._received_at = time.time()
        self._asked_at = time.perf_counter()
        self._placed_at = 0.0
        self._first_token_at = 0.0

    def note_placed(self) -> None:
        self._placed_at = time.perf_counter()

    def noted(self, item: Any, placed: Placed) -> Any:
        """The item, perhaps with more in it."""
        if not isinstance(item, dict):
            return item
        told: dict[str, Any] = {}
        if token_ids := item.get("token_ids"):
            self._num_tokens += len(token_ids)
            if not self._first_token_at:
                self._first_token_at = time.perf_counter()
                self._local.complete_prefill(self._place.request_id)
                told["worker_id"] = _whereabouts(placed)
            self._tell_growth()
        if item.get("finish_reason") is not None:
            told["timing"] = self._timing(placed)
        return item | {"routing_data": (item.get("routing_data") or {}) | told} if told else item

    def _tell_growth(self) -> None:
        num_blocks = -(-self._num_tokens // self._block_size)
        if num_blocks > self._num_blocks and self._local.settings.tracks_output_blocks:
            self._local.grow_output(self._place.request_id, num_blocks - self._num_blocks)
        self._num_blocks = num_blocks

    def _timing(self, placed: Placed) -> dict[str, float]:
        now = time.perf_counter()
        first_token_at = self._first_token_at or now
        return {
            "request_received_ms": int(self._received_at * 1000),
            "prefill_wait_time_ms": (self._placed_at - self._asked_at) * 1000,
            "prefill_time_ms": (first_token_at - self._placed_at) * 1000,
            "ttft_ms": (first_token_at - self._asked_at) * 1000,
            "total_time_ms": (now - self._asked_at) * 1000,
            "kv_hit_rate": placed.overlap_blocks / max(1, self._num_prompt_blocks),
            "router_queue_depth": self._num_queued,
        }


def _whereabouts(placed: Placed) -> dict[str, int]:
    worker_id, dp_rank = placed.instance_id, placed.dp_rank or 0
    return {
        "prefill_worker_id": worker_id,
        "prefill_dp_rank": dp_rank,
        "decode_worker_id": worker_id,
        "decode_dp_rank": dp_rank,
    }


def _as_dynamo(error: WorkerError) -> Exception:
    """The same fault, in the words of the request plane, for whoever asked us."""
    match error:
        case CannotConnect():
            return exceptions.CannotConnect(str(error))
        case Disconnected():
            return exceptions.Disconnected(str(error))
        case WorkerTimeout():
            return exceptions.ConnectionTimeout(str(error))
        case BackendError(status=400):
            return exceptions.InvalidArgument(str(error))
        case BackendError(code="worker_unavailable"):
            return exceptions.WorkerUnavailable(str(error))
        case BackendError(code="worker_cancelled"):
            return exceptions.Cancelled(str(error))
        case BackendError(status=status):
            return exceptions.HttpError(status, str(error))
        case _:
            return exceptions.Unknown(str(error))
