"""One request's way: model → prompt → worker → text. Everything an API surface needs, and nothing of HTTP.

`generate` is the whole of it; each mouth (chat, completions, later others) prepares its prompt and folds the deltas.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from time import perf_counter

from dynamo.frontend.engine_client import EngineClient, WorkerAtCapacity
from dynamo.frontend.engine_stream import EngineStream
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.openai import ChatCompletionRequest, CompletionRequest
from dynamo.frontend.postprocess import Delta, make_choice
from dynamo.frontend.preprocess import Prepared, prepare_chat, prepare_completion
from dynamo.frontend.router_client import PlacementWish, RouterClient
from dynamo.shared.errors import CannotConnect, WorkerError
from dynamo.shared.messages import Placed
from dynamo.shared.protocol import EngineOutput

log = logging.getLogger("dynamo.pipeline")

MAX_DISPATCH_ATTEMPTS = 4  # workers asked for one request before any has begun it
MAX_QUEUED_DELTAS = 64  # of one batch of prompts, between its generations and the client


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

    async def generate(self, prepared: Prepared, record: RequestRecord, call_id: str) -> AsyncGenerator[Delta, None]:
        """Deltas of one choice until it is over. A worker that has begun nothing is replaced by another, silently.

        A worker knows its calls by `call_id` and confuses those that share one: no two choices may.
        Raises what `dynamo.shared.errors` lists under UnavailableError and WorkerError.
        """
        wish = PlacementWish(
            prepared.model.name,
            prepared.num_tokens,
            mdcsum=prepared.model.mdcsum,
            instance_id=prepared.routing.backend_instance_id,
            dp_rank=prepared.routing.dp_rank,
        )
        is_answered = False
        while not is_answered:
            async with self._router.place(wish) as placed:
                record.note_placed(perf_counter(), placed.instance_id)
                try:
                    with await self._open(placed, prepared, call_id) as stream:
                        answer = Answer(prepared)
                        async for outputs in stream:  # all that has arrived since the last look: one delta
                            delta = answer.push(outputs)
                            stream.is_ending = answer.is_ended_by_worker
                            if delta.num_tokens:
                                record.note_tokens(perf_counter(), delta.num_tokens)
                            if answer.is_over:
                                break
                            if delta.text or delta.logprobs:
                                yield delta
                        else:
                            delta = answer.finish()
                    is_answered = True
                except WorkerError as error:
                    self._note_failure(placed.instance_id, error)
                    if not self._may_ask_another(wish, placed, error):
                        raise
        record.note_cached(answer.num_cached_tokens)
        yield delta

    async def generate_all(self, batch: Sequence[Prepared], record: RequestRecord) -> AsyncGenerator[Delta, None]:
        """The deltas of several choices as they come; `Delta.index` says whose."""
        queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(MAX_QUEUED_DELTAS)
        tasks = [self._loop.create_task(self._feed(queue, i, prepared, record)) for i, prepared in enumerate(batch)]
        try:
            num_running = len(tasks)
            while num_running:
                item = await queue.get()
                if item is None:
                    num_running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def answers(self, batch: Sequence[Prepared], record: RequestRecord) -> AsyncGenerator[Delta, None]:
        """The deltas of a request, whether it has one choice or more."""
        if len(batch) == 1:
            return self.generate(batch[0], record, record.request_id)
        return self.generate_all(batch, record)

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

    async def _feed(
        self,
        queue: asyncio.Queue[Delta | BaseException | None],
        position: int,
        prepared: Prepared,
        record: RequestRecord,
    ) -> None:
        try:
            call_id = f"{record.request_id}-{position}"
            async with aclosing(self.generate(prepared, record, call_id)) as deltas:
                async for delta in deltas:
                    delta.index = position
                    await queue.put(delta)
            await queue.put(None)
        except Exception as error:  # the top of this task; the consumer raises it in the request's own
            await queue.put(error)

    def _note_failure(self, instance_id: int, error: WorkerError) -> None:
        log.warning("worker %x: %s", instance_id, error.log_message)
        if error.is_suspect:
            self._router.report_failure(instance_id, error.code or "failed")

    def _fan_out(self, prompts: list[Prepared], record: RequestRecord) -> list[Prepared]:
        """Every choice is a generation of its own: few engines behind Dynamo answer more than one of `n`."""
        record.prepared_at = perf_counter()
        record.num_prompt_tokens = sum(prepared.num_tokens for prepared in prompts)
        batch = [choice for prepared in prompts for choice in prepared.choices()]
        record.num_choices = len(batch)
        return batch


class Answer:
    """One choice, fed by one worker's stream."""

    __slots__ = ("_choice", "is_ended_by_worker", "num_cached_tokens")

    def __init__(self, prepared: Prepared) -> None:
        self._choice = make_choice(
            prepared.model.vocabulary,
            prepared.rules,
            skip_special_tokens=bool(prepared.output.skip_special_tokens),
            with_logprobs=prepared.output.logprobs is not None,
        )
        self.is_ended_by_worker = False
        self.num_cached_tokens: int | None = None

    @property
    def is_over(self) -> bool:
        return self._choice.finish_reason is not None

    def push(self, outputs: list[EngineOutput]) -> Delta:
        choice = self._choice
        num_before = choice.num_tokens
        pieces = []
        for output in outputs:
            pieces.append(choice.push(output))
            if output.completion_usage is not None:
                self._note_usage(output.completion_usage)
            if output.finish_reason is not None:
                self.is_ended_by_worker = True
            if choice.finish_reason is not None:
                pieces.append(choice.flush())
                break
        return Delta(
            0,
            pieces[0] if len(pieces) == 1 else "".join(pieces),
            choice.num_tokens - num_before,
            choice.finish_reason,
            choice.stop_reason,
            choice.take_logprobs(),
        )

    def finish(self) -> Delta:
        """The worker completed without giving a reason: it has simply stopped."""
        return Delta(0, self._choice.flush(), 0, "stop")

    def _note_usage(self, usage: dict[str, object]) -> None:
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
            self.num_cached_tokens = cached
