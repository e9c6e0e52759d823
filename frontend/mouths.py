"""What differs between the APIs that generate text: how a body is read, and how an answer is told.

A mouth is stateless; another API is another one of these on the same `pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Protocol, TypeVar

from dynamo.frontend.answer_extras import AnswerExtras
from dynamo.frontend.body_fields import DEFAULT_POLICY, RequestPolicy
from dynamo.frontend.dispatch_events import NO_DISPATCHES, Dispatches
from dynamo.frontend.error_formats import ErrorFormat, OpenAiErrors
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.news_fields import news_fields
from dynamo.frontend.openai import ChatCompletionRequest, CompletionRequest, decode_chat, decode_completion
from dynamo.frontend.openai_answers import (
    REASONING_FIELD,
    Choice,
    JsonObject,
    chat_response,
    completion_response,
)
from dynamo.frontend.openai_chunks import ChatStream, CompletionStream
from dynamo.frontend.openai_requests import GenerateRequest, NvExt
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.prepared import Prepared
from dynamo.frontend.renderer import ChunkRenderer, Renderer, usage_of
from dynamo.frontend.routing_headers import RoutingHeaders


class Asked(Protocol):
    """What all requests for text have in common."""

    @property
    def stream(self) -> bool | None: ...

    @property
    def nvext(self) -> NvExt | None: ...

    @property
    def unknown_fields(self) -> tuple[str, ...]: ...


R = TypeVar("R", bound=Asked)


class Mouth(Protocol[R]):
    """`endpoint` is its name in metrics, `errors` how its clients are told of errors."""

    endpoint: ClassVar[str]

    @property
    def errors(self) -> ErrorFormat: ...

    def decode(self, body: bytes) -> R:
        """Raises InvalidRequest naming the field."""

    async def prepare(
        self, pipeline: Pipeline, request: R, record: RequestRecord, headers: RoutingHeaders
    ) -> list[Prepared]:
        """One per choice."""

    def renderer(self, request: R, record: RequestRecord, created: int, extras: AnswerExtras | None) -> Renderer:
        """Of the streamed answer."""

    def body(
        self, request: R, record: RequestRecord, created: int, choices: Sequence[Choice], nvext: JsonObject | None
    ) -> bytes:
        """The unary answer; of one choice without parts where nothing was to be generated."""


class ChatMouth:
    endpoint: ClassVar[str] = "chat_completions"

    def __init__(
        self,
        policy: RequestPolicy = DEFAULT_POLICY,
        errors: ErrorFormat | None = None,
        reasoning_field: str = REASONING_FIELD,
        dispatches: Dispatches = NO_DISPATCHES,
    ) -> None:
        self.errors = errors or OpenAiErrors()
        self._policy = policy
        self._reasoning_field = reasoning_field
        self._dispatches = dispatches

    def decode(self, body: bytes) -> ChatCompletionRequest:
        return decode_chat(body, self._policy)

    async def prepare(
        self, pipeline: Pipeline, request: ChatCompletionRequest, record: RequestRecord, headers: RoutingHeaders
    ) -> list[Prepared]:
        return await pipeline.prepare_chat(request, record, headers)

    def renderer(
        self, request: ChatCompletionRequest, record: RequestRecord, created: int, extras: AnswerExtras | None
    ) -> Renderer:
        id = _id("chatcmpl", request, record)
        stream_of = partial(ChatStream, id, record.model, created, reasoning_field=self._reasoning_field)
        return self._dispatches.wrap(ChunkRenderer(stream_of, request, record, extras, self.errors))

    def body(
        self,
        request: ChatCompletionRequest,
        record: RequestRecord,
        created: int,
        choices: Sequence[Choice],
        nvext: JsonObject | None,
    ) -> bytes:
        usage = None if choices[0].parts is None else usage_of(record)
        return chat_response(
            _id("chatcmpl", request, record),
            record.model,
            created,
            choices,
            usage,
            nvext,
            self._reasoning_field,
            news_fields(request),
        )


class CompletionMouth:
    endpoint: ClassVar[str] = "completions"

    def __init__(self, policy: RequestPolicy = DEFAULT_POLICY, errors: ErrorFormat | None = None) -> None:
        self.errors = errors or OpenAiErrors()
        self._policy = policy

    def decode(self, body: bytes) -> CompletionRequest:
        return decode_completion(body, self._policy)

    async def prepare(
        self, pipeline: Pipeline, request: CompletionRequest, record: RequestRecord, headers: RoutingHeaders
    ) -> list[Prepared]:
        return await pipeline.prepare_completion(request, record, headers)

    def renderer(
        self, request: CompletionRequest, record: RequestRecord, created: int, extras: AnswerExtras | None
    ) -> Renderer:
        stream_of = partial(CompletionStream, _id("cmpl", request, record), record.model, created)
        return ChunkRenderer(stream_of, request, record, extras, self.errors)

    def body(
        self,
        request: CompletionRequest,
        record: RequestRecord,
        created: int,
        choices: Sequence[Choice],
        nvext: JsonObject | None,
    ) -> bytes:
        usage = None if choices[0].parts is None else usage_of(record)
        id = _id("cmpl", request, record)
        return completion_response(id, record.model, created, choices, usage, nvext, news_fields(request))


def _id(kind: str, request: GenerateRequest, record: RequestRecord) -> str:
    """Workers and logs know the request by another id where the client names this one."""
    return f"{kind}-{request.request_id or record.answer_id or record.request_id}"
