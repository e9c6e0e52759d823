"""Workers with model_input Text: they get the body of the request, and stream the chunks of an OpenAI answer.

Each choice is a call of its own, as with tokens, so that `n` means the same whatever the worker makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any, Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from dynamo.frontend.kept_output import KeptOutput
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.model import Model
from dynamo.frontend.openai import ChatCompletionRequest, CompletionRequest
from dynamo.frontend.openai_answers import Alternative, TokenLogprob
from dynamo.frontend.parsers.message import MessagePart, ToolCallDelta
from dynamo.frontend.parsers.parts import Reasoning
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.prepared import Sink
from dynamo.frontend.router_client import Placement
from dynamo.frontend.routing_headers import RoutingHeaders
from dynamo.frontend.routing_wishes import RoutingWishes, routing_wishes
from dynamo.frontend.text_body import guessed_tokens, sent_fields
from dynamo.shared.protocol import ResponseItem
from dynamo.shared.request_plane.stream import ItemDecoders


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Message(Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Logprobs(Struct, gc=False):
    """`content` of a chat; the parallel lists of a completion."""

    content: list[TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(Struct, gc=False):
    """`delta` of a chat, `text` of a completion."""

    delta: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None


class _OutputDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class TextChunk(Struct, gc=False):
    """What is read of a chunk; it has one choice, or none where it tells the usage."""

    choices: list[_Choice]
    usage: _Usage | None = None


_CHUNKS: ItemDecoders[TextChunk] = {
    "msgpack": msgspec.msgpack.Decoder(ResponseItem[TextChunk]).decode,
    "json": msgspec.json.Decoder(ResponseItem[TextChunk]).decode,
}


class TextPrompt(Struct):
    """The body for one choice, or before `choices` for all of one prompt. `num_tokens` is a guess."""

    model: Model
    wishes: RoutingWishes
    body: dict[str, Any]
    num_tokens: int
    token_ids: bytes = b""
    block_hashes: bytes = b""
    formatted_prompt: str = ""  # only the worker knows it
    tells_prompt: bool = True  # of several choices of a prompt, only one tells how long it was

    @property
    def is_guided(self) -> bool:
        return False

    @property
    def items(self) -> ItemDecoders[TextChunk]:
        return _CHUNKS

    def choices(self) -> list[Self]:
        num_choices = self.body.pop("n", None) or 1
        if num_choices == 1:
            return [self]
        seed = self.body.get("seed")
        bodies = [self.body if seed is None else self.body | {"seed": seed + i} for i in range(num_choices)]
        return [replace(self, body=body, tells_prompt=i == 0) for i, body in enumerate(bodies)]

    def hash_blocks(self, block_size: int) -> None:
        """Only the worker knows the tokens of its prompt, so it is placed by load."""

    def continued(self, output: bytes) -> Self:
        """Nothing is kept of an answer that has begun."""
        return self

    def wire_request(self, codec: str, dp_rank: int | None = None) -> dict[str, Any]:
        return self.body

    def answer(self, index: int, record: RequestRecord, sink: Sink, kept: KeptOutput) -> TextAnswer:
        return TextAnswer(self, index, record, sink, kept)


def prepare_text(
    model: Model,
    request: ChatCompletionRequest | CompletionRequest,
    headers: RoutingHeaders,
    prompt: str | list[int] | None = None,
) -> TextPrompt:
    """`prompt` is one of those that a completion has."""
    body = sent_fields(request)
    if prompt is not None:
        body["prompt"] = prompt
    return TextPrompt(model, routing_wishes(request, headers, model.lora_name), body, guessed_tokens(body))


class TextAnswer:
    """Chunks of one choice on their way to a sink, one delta for each. Another worker may be asked only before the
    first: none could go on where this one stopped.

    Each chunk with text counts as a token until the worker tells the usage. The last delta is kept for `finish`.
    """

    __slots__ = (
        "_index",
        "_kept",
        "_last",
        "_milestone",
        "_num_cached_tokens",
        "_num_prompt_tokens",
        "_num_reasoning",
        "_num_tokens",
        "_placement",
        "_record",
        "_sink",
        "_tells_prompt",
        "is_ended_by_worker",
    )

    def __init__(self, prompt: TextPrompt, index: int, record: RequestRecord, sink: Sink, kept: KeptOutput) -> None:
        self._index = index
        self._record = record
        self._sink = sink
        self._kept = kept
        self._num_prompt_tokens = prompt.num_tokens
        self._tells_prompt = prompt.tells_prompt
        self._num_tokens = 0
        self._num_reasoning = 0
        self._num_cached_tokens: int | None = None
        self._placement: Placement
        self._milestone = 1  # tokens at which the router wants to know of them
        self._last: Delta | None = None
        self.is_ended_by_worker = False

    def follow(self, placement: Placement) -> None:
        self._placement = placement

    def take(self, outputs: list[TextChunk]) -> bool:
        self._kept.drop()
        if not self._record.first_token_at:
            self._record.first_token_at = perf_counter()
        has_room = True
        for chunk in outputs:
            for choice in chunk.choices:
                has_room = self._tell(choice) and has_room
            if chunk.usage is not None:
                self._note_usage(chunk.usage)
        if self._num_tokens >= self._milestone:
            reached = self._placement.reached(self._num_prompt_tokens + self._num_tokens)
            self._milestone = reached - self._num_prompt_tokens
        return has_room

    async def ready(self) -> bool:
        await self._sink.drain()
        return True

    def cut_off(self) -> bool:
        return self._last is not None

    def finish(self) -> None:
        """A worker that completed without giving a reason has simply stopped."""
        self._record.note_end(perf_counter(), self._num_cached_tokens)
        self._sink.push(self._last or Delta(self._index, "", 0, "stop"))

    def _tell(self, choice: _Choice) -> bool:
        """False where the client takes less than the worker gives. The usage may follow a reason to finish."""
        delta = self._delta(choice)
        self._count(delta.num_tokens)
        if delta.finish_reason is None:
            return delta.is_empty or not self._sink.push(delta)
        self._last = delta
        return True

    def _delta(self, choice: _Choice) -> Delta:
        parts = list(_parts(choice))
        logprobs = None if choice.logprobs is None else list(_logprobs(choice.logprobs)) or None
        delta = Delta(
            self._index, "", 1 if parts else 0, choice.finish_reason, choice.stop_reason, logprobs, parts or None
        )
        if len(parts) == 1 and isinstance(parts[0], str):
            delta.text, delta.parts = parts[0], None
        return delta

    def _count(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        self._record.num_output_tokens += num_tokens

    def _note_usage(self, usage: _Usage) -> None:
        """Of the whole answer so far."""
        record = self._record
        self._count(usage.completion_tokens - self._num_tokens)
        if self._tells_prompt:
            record.num_prompt_tokens += usage.prompt_tokens
            self._tells_prompt = False
        if usage.prompt_tokens_details is not None:
            self._num_cached_tokens = usage.prompt_tokens_details.cached_tokens
        details = usage.completion_tokens_details
        if details is not None and details.reasoning_tokens is not None:
            news = details.reasoning_tokens - self._num_reasoning
            record.num_reasoning_tokens = (record.num_reasoning_tokens or 0) + news
            self._num_reasoning = details.reasoning_tokens


def _parts(choice: _Choice) -> Iterator[MessagePart]:
    if choice.text:
        yield choice.text
    message = choice.delta
    if message is None:
        return
    if reasoning := message.reasoning_content or message.reasoning:
        yield Reasoning(reasoning)
    if content := message.content or message.refusal:
        yield content
    for call in message.tool_calls or ():
        function = call.function or _Function()
        yield ToolCallDelta(call.index, call.id, function.name, function.arguments or "")


def _logprobs(logprobs: _Logprobs) -> Iterator[TokenLogprob]:
    if logprobs.content is not None:
        yield from logprobs.content
    tops = logprobs.top_logprobs or []
    for position, (token, logprob) in enumerate(
        zip(logprobs.tokens or (), logprobs.token_logprobs or (), strict=False)
    ):
        top = tops[position] if position < len(tops) else None
        others = [Alternative(other, value) for other, value in (top or {}).items()]
        yield TokenLogprob(token, logprob or 0.0, None, others)
