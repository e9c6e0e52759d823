"""The answer to a request that wants to know more than text: what it cost is not paid by others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynamo.frontend.kept_output import KeptOutput
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai_answers import TokenLogprob
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.prepared import Sink
from dynamo.frontend.token_answer import TokenAnswer
from dynamo.frontend.worker_news import WorkerNews
from dynamo.shared.protocol import EngineOutput

if TYPE_CHECKING:
    from dynamo.frontend.preprocess import TokenPrompt


class TellingAnswer(TokenAnswer):
    """Deltas carry what the worker tells besides text; the first begins with the prompt where that is to be echoed."""

    __slots__ = ("_echo", "_echoed", "_logprobs", "_news", "_prompt")

    def __init__(self, prompt: TokenPrompt, index: int, record: RequestRecord, sink: Sink, kept: KeptOutput) -> None:
        super().__init__(prompt, index, record, sink, kept)
        self._prompt = prompt
        self._echo = prompt.echo
        self._echoed: list[TokenLogprob] = []
        self._logprobs = prompt.logprob_reader()
        self._news = WorkerNews([], prompt.unpacked if prompt.tells_prompt else None)

    def finish(self) -> None:
        if self._last is None:
            self._last = self._delta(self._choice.flush(), 0, "stop")
        if self._last.news is None:
            self._attach(self._last)
        super().finish()

    def _fold(self, outputs: list[EngineOutput]) -> Delta:
        delta = super()._fold(outputs)
        num_known = len(self._news.token_ids)
        for output in outputs:
            self._news.note(output)
        del self._news.token_ids[num_known + delta.num_tokens :]  # what came after the end
        if self._news.prompt_logprobs is not None:
            self._note_prompt_logprobs(self._news.prompt_logprobs)
        if delta.finish_reason is not None or not delta.is_empty:
            self._attach(delta)
        return delta

    def _note_prompt_logprobs(self, told: list[Any]) -> None:
        """A worker that goes on for another takes what that one has generated for prompt too."""
        del told[self._num_prompt_tokens :]
        if self._logprobs is not None:
            # A whole answer still holds these entries; of a stream they are gone, with null for what was not known.
            self._logprobs.fill_in(self._echoed, told)

    def _attach(self, delta: Delta) -> None:
        delta.news, self._news = self._news, WorkerNews([])
        if self._echo is not None:
            self._begin_with(self._echo, delta)
            self._echo = None

    def _begin_with(self, echo: str, delta: Delta) -> None:
        if delta.parts is None:
            delta.text = echo + delta.text
        else:
            delta.parts = [echo, *delta.parts]
        if self._logprobs is not None and self._prompt.echoes_tokens:
            told = None if delta.news is None else delta.news.prompt_logprobs
            self._echoed = self._logprobs.of_prompt(self._prompt.unpacked, told)
            delta.logprobs = [*self._echoed, *(delta.logprobs or ())]
