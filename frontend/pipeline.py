"""One request's way: model → prompt → worker → text. Everything an API surface needs, and nothing of HTTP.

`generate` is the whole of it; each mouth (chat, completions, later others) prepares its prompt and folds the deltas.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

from msgspec import Struct

from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.migration import Journey, KeptOutput, MigrationRules
from dynamo.frontend.models import ModelRegistry
from dynamo.frontend.openai import ChatCompletionRequest, CompletionRequest
from dynamo.frontend.placement import PlacementWish
from dynamo.frontend.postprocess import Delta, make_choice
from dynamo.frontend.preprocess import Prepared, count_chat_tokens, prepare_chat, prepare_completion
from dynamo.frontend.router_client import Placement, RouterClient
from dynamo.frontend.routing_headers import NO_ROUTING_HEADERS, RoutingHeaders
from dynamo.shared.errors import CannotConnect, Overloaded, WorkerError
from dynamo.shared.messages import Explained, Placed
from dynamo.shared.protocol import EngineOutput
from dynamo.shared.request_plane.client import EngineClient
from dynamo.shared.request_plane.stream import EngineStream

log = logging.getLogger("dynamo.pipeline")


class PipelineOptions(Struct, frozen=True):
    """`kv_cache_block_size` is in tokens and goes before what cards say."""

    kv_cache_block_size: int | None = None
    migration: MigrationRules = MigrationRules()


class Sink(Protocol):
    """Where the deltas of a request go, whichever choice they are of."""

    def push(self, delta: Delta) -> bool:
        """True: the client takes less than the workers give, `drain` before the next push."""

    async def drain(self) -> None: ...


class Pipeline:
    def __init__(
        self,
        models: ModelRegistry,
        router: RouterClient,
        engine: EngineClient,
        options: PipelineOptions,
    ) -> None:
        self._models = models
        self._router = router
        self._engine = engine
        self._options = options
        self._loop = asyncio.get_running_loop()

    async def prepare_chat(
        self, request: ChatCompletionRequest, record: RequestRecord, headers: RoutingHeaders = NO_ROUTING_HEADERS
    ) -> list[Prepared]:
        """One per choice."""
        model = await self._models.get(request.model, "Chat")
        record.model = model.name
        record.num_reasoning_tokens = None if model.reasoning_parser is None else 0
        return self._fan_out([await prepare_chat(model, request, headers)], record)

    async def prepare_completion(
        self, request: CompletionRequest, record: RequestRecord, headers: RoutingHeaders = NO_ROUTING_HEADERS
    ) -> list[Prepared]:
        """One per choice; those of the first prompt come first."""
        model = await self._models.get(request.model, "Completions")
        record.model = model.name
        return self._fan_out([await prepare_completion(model, request, p, headers) for p in request.prompts], record)

    async def count_tokens(self, request: ChatCompletionRequest) -> int:
        """Of its prompt, whether or not that fits the model's context."""
        model = await self._models.get(request.model, "Chat")
        return await count_chat_tokens(model, request)

    def block_size(self, prepared: Prepared) -> int:
        """Tokens in a block of its workers' KV cache."""
        return self._options.kv_cache_block_size or prepared.model.kv_cache_block_size

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
        rules = self._options.migration
        wish = self._wish(prepared, call_id)
        journey = Journey(prepared, wish, rules, self._router, record, self._hash_blocks)
        answer = Answer(prepared, index, record, sink, journey.output)
        try:
            while (failed := await self._attempt(journey, answer, call_id, record)) is not None:
                instance_id, error = failed
                if rules.limit and answer.has_all_it_may:
                    answer.cut_off()
                    break
                if not journey.goes_on(instance_id, error):
                    raise error
        finally:
            record.has_outgrown_migration |= journey.output.has_outgrown
        answer.finish()

    # ---- one attempt

    async def _attempt(
        self, journey: Journey, answer: Answer, call_id: str, record: RequestRecord
    ) -> tuple[int, WorkerError] | None:
        """Ask one worker. None: the answer is complete; else who failed, and how."""
        placement = self._router.place(journey.wish)
        async with placement as placed:
            record.note_placed(perf_counter(), placed)
            answer.follow(placement)
            try:
                with await self._open(placed, journey.asked, call_id) as stream:
                    await stream.relay(answer)
                    stream.is_ending = answer.is_ended_by_worker
            except WorkerError as error:
                self._note_failure(record, placed.instance_id, error)
                return placed.instance_id, error
        return None

    async def _open(self, placed: Placed, prepared: Prepared, call_id: str) -> EngineStream:
        worker = self._router.table.workers.get(placed.instance_id)
        if worker is None:
            raise CannotConnect(f"The worker {placed.instance_id:x} has just left.")
        request = prepared.wire_request(worker.codec, placed.dp_rank)
        return await self._engine.generate(worker, call_id, request, metadata=prepared.wishes.metadata)

    def _wish(self, prepared: Prepared, call_id: str) -> PlacementWish:
        wishes = prepared.wishes
        return PlacementWish(
            prepared.model.name,
            prepared.num_tokens,
            mdcsum=prepared.model.mdcsum,
            block_hashes=prepared.block_hashes,
            block_size=self.block_size(prepared),
            instance_id=wishes.instance_id,
            dp_rank=wishes.dp_rank,
            pinned_by=wishes.pinned_by,
            hints=wishes.hints,
            label=call_id,
        )

    def _hash_blocks(self, prepared: Prepared) -> None:
        if self._router.settings.needs_block_hashes:
            prepared.hash_blocks(self.block_size(prepared))

    def _note_failure(self, record: RequestRecord, instance_id: int, error: WorkerError) -> None:
        log.warning("request %s, worker %x: %s", record.label, instance_id, error.log_message)
        if error.is_suspect:
            self._router.report_failure(instance_id, error.code or "failed")

    def _fan_out(self, prompts: list[Prepared], record: RequestRecord) -> list[Prepared]:
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


class Answer:
    """One choice on its way from its workers' streams to a sink. What one read has brought becomes one delta.

    The last delta is kept for `finish`, when the placement is freed and the worker let go already.
    """

    __slots__ = (
        "_choice",
        "_index",
        "_kept",
        "_last",
        "_milestone",
        "_num_cached_tokens",
        "_num_prompt_tokens",
        "_output_limit",
        "_placement",
        "_reader",
        "_record",
        "_sink",
        "is_ended_by_worker",
    )

    def __init__(self, prepared: Prepared, index: int, record: RequestRecord, sink: Sink, kept: KeptOutput) -> None:
        self._choice = make_choice(
            prepared.model.vocabulary,
            prepared.rules,
            skip_special_tokens=bool(prepared.output.skip_special_tokens),
            with_logprobs=prepared.output.logprobs is not None,
        )
        self._reader = None if prepared.reader_of_message is None else prepared.reader_of_message()
        self._index = index
        self._record = record
        self._sink = sink
        self._kept = kept
        self._num_prompt_tokens = prepared.num_tokens
        self._output_limit = prepared.output_limit
        self._placement: Placement
        self._milestone = 1  # tokens at which somebody wants to know of them
        self._last: Delta | None = None
        self._num_cached_tokens: int | None = None
        self.is_ended_by_worker = False

    @property
    def has_all_it_may(self) -> bool:
        """No token may follow: only the worker's last word is missing."""
        return self._output_limit is not None and self._choice.num_tokens >= self._output_limit

    def follow(self, placement: Placement) -> None:
        """The worker at this place goes on with the answer."""
        self._placement = placement
        self._milestone = self._choice.num_tokens + 1

    def cut_off(self) -> None:
        """It ends here, at its full length."""
        self._last = self._delta(self._choice.flush(), 0, "length")

    def take(self, outputs: list[EngineOutput]) -> bool:
        delta = self._fold(outputs)
        record = self._record
        record.num_output_tokens += delta.num_tokens
        if not record.first_token_at:
            record.first_token_at = perf_counter()
        if self._choice.num_tokens >= self._milestone:
            self._reach_milestone()
        if delta.finish_reason is not None:
            self._last = delta
            return False
        return delta.is_empty or not self._sink.push(delta)

    async def ready(self) -> bool:
        if self._last is not None:
            return False
        await self._sink.drain()
        return True

    def finish(self) -> None:
        """A worker that completed without giving a reason has simply stopped."""
        self._record.note_end(perf_counter(), self._num_cached_tokens)
        self._sink.push(self._last or self._delta(self._choice.flush(), 0, "stop"))

    def _fold(self, outputs: list[EngineOutput]) -> Delta:
        choice = self._choice
        num_before, text = choice.num_tokens, ""
        keep = self._kept.keep
        for output in outputs:
            text += choice.push(output)
            if keep is not None:
                if output.token_ids:
                    keep(output.token_ids)
                elif output.text:  # of tokens that its worker does not tell
                    self._kept.drop()
            if output.completion_usage is not None:
                self._note_usage(output.completion_usage)
            if choice.finish_reason is not None:
                self.is_ended_by_worker = output.finish_reason is not None
                text += choice.flush()
                break
        return self._delta(text, choice.num_tokens - num_before, choice.finish_reason)

    def _delta(self, text: str, num_tokens: int, finish_reason: str | None) -> Delta:
        choice, reader = self._choice, self._reader
        delta = Delta(self._index, text, num_tokens, finish_reason, choice.stop_reason, choice.take_logprobs())
        if reader is not None:
            reader.read(delta)
            if self._record.num_reasoning_tokens is not None:
                self._record.num_reasoning_tokens += reader.take_reasoning_tokens()
        return delta

    def _reach_milestone(self) -> None:
        """Some number of tokens matters: to the router, or to what is kept of them."""
        num_tokens, num_prompt_tokens, kept = self._choice.num_tokens, self._num_prompt_tokens, self._kept
        self._milestone = self._placement.reached(num_prompt_tokens + num_tokens) - num_prompt_tokens
        if num_tokens > kept.room:
            kept.outgrow()
        else:
            self._milestone = min(self._milestone, kept.room + 1)

    def _note_usage(self, usage: dict[str, object]) -> None:
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
            self._num_cached_tokens = min(cached, self._num_prompt_tokens)  # of a moved request there may be more
