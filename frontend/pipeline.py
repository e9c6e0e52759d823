"""One request's way: model → prompt → worker → text. Everything an API surface needs, and nothing of HTTP.

`generate` is the whole of it; each mouth (chat, completions, later others) prepares its prompt and folds the deltas.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, TypeVar

from msgspec import Struct

from dynamo.frontend.kept_output import KeptOutput
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.migration import Journey, MigrationRules
from dynamo.frontend.model import Model
from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.openai import ChatCompletionRequest, CompletionRequest
from dynamo.frontend.placement import PlacementWish
from dynamo.frontend.prepared import Errand, Prepared, Sink, WorkerAnswer
from dynamo.frontend.preprocess import count_chat_tokens, prepare_chat, prepare_completion
from dynamo.frontend.router_client import RouterClient
from dynamo.frontend.routing_headers import NO_ROUTING_HEADERS, RoutingHeaders
from dynamo.frontend.text_workers import TextPrompt, prepare_text
from dynamo.shared.errors import CannotConnect, Overloaded, WorkerError
from dynamo.shared.messages import Explained, Placed
from dynamo.shared.request_plane.client import EngineClient
from dynamo.shared.request_plane.stream import AnswerStream

log = logging.getLogger("dynamo.pipeline")

A = TypeVar("A", bound=WorkerAnswer)


class PipelineOptions(Struct, frozen=True):
    """`kv_cache_block_size` is in tokens and goes before what cards say."""

    kv_cache_block_size: int | None = None
    migration: MigrationRules = MigrationRules()


class Pipeline:
    def __init__(
        self,
        models: ModelRegistry,
        router: RouterClient,
        engine: EngineClient,
        options: PipelineOptions,
    ) -> None:
        self.models = models
        self._router = router
        self._engine = engine
        self._options = options
        self._loop = asyncio.get_running_loop()

    async def model(self, name: str, kind: str, record: RequestRecord) -> Model:
        """The model that serves `name` for `kind`; raises what the registry does."""
        model = await self.models.get(name, kind)
        record.model = model.name
        return model

    async def prepare_chat(
        self, request: ChatCompletionRequest, record: RequestRecord, headers: RoutingHeaders = NO_ROUTING_HEADERS
    ) -> list[Prepared]:
        """One per choice."""
        model = await self.model(request.model, "Chat", record)
        if model.takes_text:
            return self._fan_out_text([prepare_text(model, request, headers)], record)
        record.num_reasoning_tokens = None if model.reasoning_parser is None else 0
        return self._fan_out([await prepare_chat(model, request, headers)], record)

    async def prepare_completion(
        self, request: CompletionRequest, record: RequestRecord, headers: RoutingHeaders = NO_ROUTING_HEADERS
    ) -> list[Prepared]:
        """One per choice; those of the first prompt come first."""
        model = await self.model(request.model, "Completions", record)
        if model.takes_text:
            return self._fan_out_text([prepare_text(model, request, headers, p) for p in request.prompts], record)
        return self._fan_out([await prepare_completion(model, request, p, headers) for p in request.prompts], record)

    async def count_tokens(self, request: ChatCompletionRequest) -> int:
        """Of its prompt, whether or not that fits the model's context."""
        model = await self.models.get(request.model, "Chat")
        model.check_tokenizer()
        return await count_chat_tokens(model, request)

    def block_size(self, errand: Errand) -> int:
        """Tokens in a block of its workers' KV cache."""
        return self._options.kv_cache_block_size or errand.model.kv_cache_block_size

    async def explain(self, prepared: Prepared) -> Explained:
        """What the router would do with it, and why; nothing is placed. Raises what a placement would."""
        return await self._router.explain(self._wish(prepared, ""))

    async def choose(self, prepared: Prepared) -> Placed:
        """Where it would go; nothing is placed. Raises what `explain` does, and Overloaded where it would wait."""
        explained = await self.explain(prepared)
        if explained.choice is None:
            raise Overloaded(f"No worker can take the request now; it would be {explained.outcome}.")
        return explained.choice

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
        """One choice, its deltas into `sink`. A worker that fails is replaced by another, silently, as far as
        `migration` says.

        A worker knows its calls by `call_id` and confuses those that share one: no two choices may.
        Raises what `dynamo.shared.errors` lists under UnavailableError and WorkerError.
        """
        journey = self._journey(prepared, call_id, record)
        answer = prepared.answer(index, record, sink, journey.output)
        await self._travel(journey, answer, call_id, record)

    async def send(self, errand: Errand, record: RequestRecord, answer_of: Callable[[KeptOutput], A]) -> A:
        """The same for what is answered otherwise than with text; returns the finished answer."""
        journey = self._journey(errand, record.request_id, record)
        answer = answer_of(journey.output)
        await self._travel(journey, answer, record.request_id, record)
        return answer

    # ---- one attempt after the other

    def _journey(self, errand: Errand, call_id: str, record: RequestRecord) -> Journey:
        wish = self._wish(errand, call_id)
        return Journey(errand, wish, self._options.migration, self._router, record, self._hash_blocks)

    async def _travel(self, journey: Journey, answer: WorkerAnswer, call_id: str, record: RequestRecord) -> None:
        try:
            while (failed := await self._attempt(journey, answer, call_id, record)) is not None:
                instance_id, error = failed
                if self._options.migration.limit and answer.cut_off():
                    break
                if not journey.goes_on(instance_id, error):
                    raise error
        finally:
            record.has_outgrown_migration |= journey.output.has_outgrown
        answer.finish()

    async def _attempt(
        self, journey: Journey, answer: WorkerAnswer, call_id: str, record: RequestRecord
    ) -> tuple[int, WorkerError] | None:
        """Ask one worker. None: the answer is complete; else who failed, and how."""
        placement = self._router.place(journey.wish)
        async with placement as placed:
            record.note_placed(perf_counter(), placed)
            answer.follow(placement)
            try:
                with await self._open(placed, journey.asked, call_id, record.trace_headers) as stream:
                    await stream.relay(answer)
                    stream.is_ending = answer.is_ended_by_worker
            except WorkerError as error:
                self._note_failure(record, placed.instance_id, error)
                return placed.instance_id, error
        return None

    async def _open(
        self, placed: Placed, errand: Errand, call_id: str, trace_headers: dict[str, str] | None
    ) -> AnswerStream[Any]:
        worker = self._router.table.workers.get(placed.instance_id)
        if worker is None:
            raise CannotConnect(f"The worker {placed.instance_id:x} has just left.")
        request = errand.wire_request(worker.codec, placed.dp_rank)
        return await self._engine.call(worker, call_id, request, errand.items, trace_headers, errand.wishes.metadata)

    def _wish(self, errand: Errand, call_id: str) -> PlacementWish:
        wishes = errand.wishes
        return PlacementWish(
            errand.model.name,
            errand.num_tokens,
            mdcsum=errand.model.mdcsum,
            block_hashes=errand.block_hashes,
            block_size=self.block_size(errand),
            instance_id=wishes.instance_id,
            dp_rank=wishes.dp_rank,
            pinned_by=wishes.pinned_by,
            hints=wishes.hints,
            label=call_id,
        )

    def _hash_blocks(self, errand: Errand) -> None:
        if self._router.settings.needs_block_hashes:
            errand.hash_blocks(self.block_size(errand))

    def _note_failure(self, record: RequestRecord, instance_id: int, error: WorkerError) -> None:
        log.warning("request %s, worker %x: %s", record.label, instance_id, error.log_message)
        if error.is_suspect:
            self._router.report_failure(instance_id, error.code or "failed")

    def _fan_out_text(self, prompts: list[TextPrompt], record: RequestRecord) -> list[Prepared]:
        """How long the prompts are is for their workers to tell."""
        batch = self._fan_out(prompts, record)
        record.num_prompt_tokens = 0
        return batch

    def _fan_out(self, prompts: Sequence[Prepared], record: RequestRecord) -> list[Prepared]:
        """Every choice is a generation of its own: few engines behind Dynamo answer more than one of `n`."""
        record.prepared_at = perf_counter()
        record.num_prompt_tokens = sum(prepared.num_tokens for prepared in prompts)
        for prepared in prompts:
            self._hash_blocks(prepared)
        if self._router.settings.needs_block_hashes:
            record.hashed_at = perf_counter()
        batch = [choice for prepared in prompts for choice in prepared.choices()]
        record.num_choices = len(batch)
        return batch
