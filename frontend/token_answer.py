"""What workers answer in tokens becomes deltas of one choice."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from dynamo.frontend.kept_output import KeptOutput
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.postprocess import Delta, make_choice
from dynamo.frontend.prepared import Sink
from dynamo.frontend.router_client import Placement
from dynamo.shared.protocol import EngineOutput

if TYPE_CHECKING:
    from dynamo.frontend.preprocess import TokenPrompt


class TokenAnswer:
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
        "_num_reasoning_tokens",
        "_output_limit",
        "_placement",
        "_reader",
        "_reads_reasoning",
        "_record",
        "_sink",
        "is_ended_by_worker",
    )

    def __init__(self, prompt: TokenPrompt, index: int, record: RequestRecord, sink: Sink, kept: KeptOutput) -> None:
        self._choice = make_choice(
            prompt.model.vocabulary,
            prompt.rules,
            skip_special_tokens=bool(prompt.output.skip_special_tokens),
            logprobs=prompt.logprob_reader(),
        )
        self._reader = None if prompt.reader_of_message is None else prompt.reader_of_message()
        self._index = index
        self._record = record
        self._sink = sink
        self._kept = kept
        self._num_prompt_tokens = prompt.num_tokens
        self._output_limit = prompt.output_limit
        self._placement: Placement
        self._milestone = 1  # tokens at which somebody wants to know of them
        self._last: Delta | None = None
        self._num_cached_tokens: int | None = None
        self._num_reasoning_tokens: int | None = None  # as the worker counts them
        self._reads_reasoning = self._reader is not None and prompt.model.reasoning_parser is not None
        self.is_ended_by_worker = False

    def follow(self, placement: Placement) -> None:
        self._placement = placement
        self._milestone = self._choice.num_tokens + 1

    def cut_off(self) -> bool:
        if self._output_limit is None or self._choice.num_tokens < self._output_limit:
            return False
        self._last = self._delta(self._choice.flush(), 0, "length")
        return True

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
        return (not delta.text and delta.is_empty) or not self._sink.push(delta)

    async def ready(self) -> bool:
        if self._last is not None:
            return False
        await self._sink.drain()
        return True

    def finish(self) -> None:
        """A worker that completed without giving a reason has simply stopped."""
        record = self._record
        record.note_end(perf_counter(), self._num_cached_tokens)
        if self._num_reasoning_tokens is not None and not self._reads_reasoning:
            record.num_reasoning_tokens = (record.num_reasoning_tokens or 0) + self._num_reasoning_tokens
        self._sink.push(self._last or self._delta(self._choice.flush(), 0, "stop"))
        if self._reader is not None and self._reader.has_failed:
            record.num_parser_failures += 1

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
        details = usage.get("completion_tokens_details")
        if isinstance(details, dict) and isinstance(reasoning := details.get("reasoning_tokens"), int):
            self._num_reasoning_tokens = reasoning
