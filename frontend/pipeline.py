"""One request's way: model → prompt → worker → text. Everything an API surface needs, and nothing of HTTP.

`generate` is the whole of it; each mouth (chat, completions, later others) prepares its prompt and folds the deltas.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.openai import ChatCompletionRequest, CompletionRequest
from dynamo.frontend.postprocess import Delta, make_choice
from dynamo.frontend.preprocess import Prepared, prepare_chat, prepare_completion
from dynamo.frontend.router_client import PlacementWish, RouterClient
from dynamo.shared.errors import CannotConnect, WorkerError
from dynamo.shared.messages import Explained, Placed
from dynamo.shared.protocol import EngineOutput
from dynamo.shared.request_plane.client import EngineClient, WorkerAtCapacity
from dynamo.shared.request_plane.stream import EngineStream

log = logging.getLogger("dynamo.pipeline")

MAX_DISPATCH_ATTEMPTS = 4  # workers asked for one request before any has begun it


class Sink(Protocol):
    """Where the deltas of a request go, whichever choice they are of."""

    def push(self, delta: Delta) -> bool:
        """True: the client takes less than the workers give, `drain` before the next push."""

    async def drain(self) -> None: ...


class Pipeline:
    def __init__(self, models: ModelRegistry, router: RouterClient, engine: EngineClient) -> None:
        self._models = models
        self._router = router
        self._engine = engine
        self._loop = asyncio.get_running_loop()

    async def prepare_chat(self, request: ChatCompletionRequest, record: RequestRecord) -> list[Prepared]:
        """One per choice."""
        model = await self._models.get(request.model, "Chat")
        record.model = model.name
        return self._fan_out([await prepare_chat(model, request)], record)

    async def prepare_completion(self, request: CompletionRequest, record: RequestRecord) -> list[Prepared]:
        """One per choice; those of the first prompt come first."""
        model = await self._models.get(request.model, "Completions")
        record.model = model.name
        return self._fan_out([await prepare_completion(model, request, p) for p in request.prompts], record)

    async def explain(self, prepared: Prepared) -> Explained:
        """What the router would do with it, and why; nothing is placed. Raises what a placement would."""
        return await self._router.explain(_wish(prepared))

    async def run(self, batch: Sequence[Prepared], record: RequestRecord, sink: Sink) -> None:
        """All choices of a request, side by side; returns when each is over. Raises what `generate` raises first."""
        if len(batch) == 1:
            await self.generate(batch[0], record, sink, record.request_id)
            return
        tasks = [
            self._loop.create_task(self.generate(prepared, record, sink, f"{record.request_id}-{index}", index))
            for index, prepared in enumerate(batch)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def generate(
        self, prepared: Prepared, record: RequestRecord, sink: Sink, call_id: str, index: int = 0
    ) -> None:
        """One choice, its deltas into `sink`. A worker that has begun nothing is replaced by another, silently.

        A worker knows its calls by `call_id` and confuses those that share one: no two choices may.
        Raises what `dynamo.shared.errors` lists under UnavailableError and WorkerError.
        """
        wish = _wish(prepared)
        while True:
            async with self._router.place(wish) as placed:
                record.note_placed(perf_counter(), placed.instance_id)
                try:
                    with await self._open(placed, prepared, call_id) as stream:
                        answer = Answer(prepared, index, record, sink)
                        await stream.relay(answer)
                        stream.is_ending = answer.is_ended_by_worker
                    break
                except WorkerError as error:
                    self._note_failure(record, placed.instance_id, error)
                    if not self._may_ask_another(wish, placed, error):
                        raise
        answer.finish()

    # ---- one attempt

    async def _open(self, placed: Placed, prepared: Prepared, call_id: str) -> EngineStream:
        worker = self._router.table.workers.get(placed.instance_id)
        if worker is None:
            raise CannotConnect(f"The worker {placed.instance_id:x} has just left.")
        return await self._engine.generate(worker, call_id, prepared.wire_request(worker.codec))

    def _may_ask_another(self, wish: PlacementWish, placed: Placed, error: WorkerError) -> bool:
        """After a failure that left the request unbegun, while there are workers it was not offered to."""
        wish.excluded.append(placed.instance_id)
        if not isinstance(error, CannotConnect | WorkerAtCapacity) or len(wish.excluded) >= MAX_DISPATCH_ATTEMPTS:
            return False
        worker_set = self._router.table.worker_sets.get(placed.worker_set)
        return worker_set is not None and not set(worker_set.members) <= set(wish.excluded)

    def _note_failure(self, record: RequestRecord, instance_id: int, error: WorkerError) -> None:
        log.warning("request %s, worker %x: %s", record.label, instance_id, error.log_message)
        if error.is_suspect:
            self._router.report_failure(instance_id, error.code or "failed")

    def _fan_out(self, prompts: list[Prepared], record: RequestRecord) -> list[Prepared]:
        """Every choice is a generation of its own: few engines behind Dynamo answer more than one of `n`."""
        record.prepared_at = perf_counter()
        record.num_prompt_tokens = sum(prepared.num_tokens for prepared in prompts)
        batch = [choice for prepared in prompts for choice in prepared.choices()]
        record.num_choices = len(batch)
        return batch


def _wish(prepared: Prepared) -> PlacementWish:
    return PlacementWish(
        prepared.model.name,
        prepared.num_tokens,
        mdcsum=prepared.model.mdcsum,
        instance_id=prepared.routing.backend_instance_id,
        dp_rank=prepared.routing.dp_rank,
    )


class Answer:
    """One choice on its way from a worker's stream to a sink. What one read has brought becomes one delta.

    The last delta is kept for `finish`, when the placement is freed and the worker let go already.
    """

    __slots__ = ("_choice", "_index", "_last", "_num_cached_tokens", "_record", "_sink", "is_ended_by_worker")

    def __init__(self, prepared: Prepared, index: int, record: RequestRecord, sink: Sink) -> None:
        self._choice = make_choice(
            prepared.model.vocabulary,
            prepared.rules,
            skip_special_tokens=bool(prepared.output.skip_special_tokens),
            with_logprobs=prepared.output.logprobs is not None,
        )
        self._index = index
        self._record = record
        self._sink = sink
        self._last: Delta | None = None
        self._num_cached_tokens: int | None = None
        self.is_ended_by_worker = False

    def take(self, outputs: list[EngineOutput]) -> bool:
        delta = self._fold(outputs)
        record = self._record
        record.num_output_tokens += delta.num_tokens
        if not record.first_token_at:
            record.first_token_at = perf_counter()
        if delta.finish_reason is not None:
            self._last = delta
            return False
        return not (delta.text or delta.logprobs) or not self._sink.push(delta)

    async def ready(self) -> bool:
        if self._last is not None:
            return False
        await self._sink.drain()
        return True

    def finish(self) -> None:
        """A worker that completed without giving a reason has simply stopped."""
        self._record.note_end(perf_counter(), self._num_cached_tokens)
        self._sink.push(self._last or Delta(self._index, self._choice.flush(), 0, "stop"))

    def _fold(self, outputs: list[EngineOutput]) -> Delta:
        choice = self._choice
        num_before, text = choice.num_tokens, ""
        for output in outputs:
            text += choice.push(output)
            if output.completion_usage is not None:
                self._note_usage(output.completion_usage)
            if choice.finish_reason is not None:
                self.is_ended_by_worker = output.finish_reason is not None
                text += choice.flush()
                break
        return Delta(
            self._index,
            text,
            choice.num_tokens - num_before,
            choice.finish_reason,
            choice.stop_reason,
            choice.take_logprobs(),
        )

    def _note_usage(self, usage: dict[str, object]) -> None:
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
            self._num_cached_tokens = cached
