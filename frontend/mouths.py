"""What differs between the APIs that generate text: how a body is read, and how deltas are told.

A mouth is stateless; another API is another one of these on the same `pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerateRequest,
    decode_chat,
    decode_completion,
)
from dynamo.frontend.openai_responses import (
    ChatStream,
    Choice,
    CompletionStream,
    JsonObject,
    TokenLogprob,
    Usage,
    chat_response,
    completion_response,
)
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.preprocess import Prepared
from dynamo.frontend.routing_headers import RoutingHeaders

R = TypeVar("R", bound=GenerateRequest)


class ChoiceStream(Protocol):
    """Renders the chunks of one choice."""

    def first(self, text: str) -> bytes: ...

    def delta(self, text: str) -> bytes: ...

    def finish(self, reason: str) -> bytes: ...

    def usage(self, usage: Usage) -> bytes: ...

    def chunk(
        self,
        text: str | None = "",
        *,
        is_first: bool = False,
        finish_reason: str | None = None,
        logprobs: list[TokenLogprob] | None = None,
        usage: Usage | None = None,
        nvext: JsonObject | None = None,
    ) -> bytes: ...


class Mouth(Protocol, Generic[R]):
    """`endpoint` is its name in metrics."""

    endpoint: ClassVar[str]

    def decode(self, body: bytes) -> R:
        """Raises InvalidRequest naming the field."""

    async def prepare(
        self, pipeline: Pipeline, request: R, record: RequestRecord, headers: RoutingHeaders
    ) -> list[Prepared]:
        """One per choice."""

    def stream(self, record: RequestRecord, created: int, index: int) -> ChoiceStream: ...

    def body(
        self, record: RequestRecord, created: int, choices: Sequence[Choice], nvext: JsonObject | None = None
    ) -> bytes:
        """The unary answer."""

    def empty_body(self, record: RequestRecord, created: int, nvext: JsonObject) -> bytes:
        """The unary answer when nothing was to be generated."""


class ChatMouth:
    endpoint: ClassVar[str] = "chat_completions"

    def decode(self, body: bytes) -> ChatCompletionRequest:
        return decode_chat(body)

    async def prepare(
        self, pipeline: Pipeline, request: ChatCompletionRequest, record: RequestRecord, headers: RoutingHeaders
    ) -> list[Prepared]:
        return await pipeline.prepare_chat(request, record, headers)

    def stream(self, record: RequestRecord, created: int, index: int) -> ChoiceStream:
        return ChatStream(f"chatcmpl-{record.request_id}", record.model, created, index)

    def body(
        self, record: RequestRecord, created: int, choices: Sequence[Choice], nvext: JsonObject | None = None
    ) -> bytes:
        return chat_response(f"chatcmpl-{record.request_id}", record.model, created, choices, usage_of(record), nvext)

    def empty_body(self, record: RequestRecord, created: int, nvext: JsonObject) -> bytes:
        choices = [Choice(None, None)]
        return chat_response(f"chatcmpl-{record.request_id}", record.model, created, choices, None, nvext)


class CompletionMouth:
    endpoint: ClassVar[str] = "completions"

    def decode(self, body: bytes) -> CompletionRequest:
        return decode_completion(body)

    async def prepare(
        self, pipeline: Pipeline, request: CompletionRequest, record: RequestRecord, headers: RoutingHeaders
    ) -> list[Prepared]:
        return await pipeline.prepare_completion(request, record, headers)

    def stream(self, record: RequestRecord, created: int, index: int) -> ChoiceStream:
        return CompletionStream(f"cmpl-{record.request_id}", record.model, created, index)

    def body(
        self, record: RequestRecord, created: int, choices: Sequence[Choice], nvext: JsonObject | None = None
    ) -> bytes:
        return completion_response(f"cmpl-{record.request_id}", record.model, created, choices, usage_of(record), nvext)

    def empty_body(self, record: RequestRecord, created: int, nvext: JsonObject) -> bytes:
        choices = [Choice(None, None)]
        return completion_response(f"cmpl-{record.request_id}", record.model, created, choices, None, nvext)


def usage_of(record: RequestRecord) -> Usage:
    """Tokens so far."""
    return Usage(record.num_prompt_tokens, record.num_output_tokens, record.num_cached_tokens or 0)
