"""What each route is for, what it takes and what it answers: one line for a new route, and /openapi.json has it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from dynamo.frontend.admin import Replacement, ThresholdsBody
from dynamo.frontend.anthropic_requests import CountTokensRequest, MessagesRequest
from dynamo.frontend.embedding_requests import EmbeddingRequest
from dynamo.frontend.embeddings import EmbeddingResponse
from dynamo.frontend.openai_answers import Model
from dynamo.frontend.openai_requests import ChatCompletionRequest, CompletionBody
from dynamo.frontend.responses_requests import ResponsesPrompt, ResponsesRequest
from dynamo.frontend.token_counting import InputTokens, ResponseInputTokens
from dynamo.frontend.tokenization import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

EVENTS = "text/event-stream"


class ModelList(Struct):
    object: str
    data: list[Model]


class AllThresholds(Struct):
    thresholds: list[ThresholdsBody]


class OpenAiError(Struct):
    """`param` is the path of the field at fault; all codes are in docs/errors.md."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(Struct):
    error: OpenAiError


class PlainError(Struct):
    """As 1.6.1 has it at this one path."""

    error: str | OpenAiError


class AnthropicError(Struct):
    type: str
    message: str


class AnthropicErrorEnvelope(Struct):
    type: str
    error: AnthropicError


class Operation(Struct, frozen=True):
    """`answer` is a type, a content type, or None for JSON that is described by `about` alone. `streams` says that
    `"stream": true` is answered with events, `query` are parameters that must be given."""

    about: str
    body: Any = None
    answer: type[Struct] | str | None = None
    streams: bool = False
    errors: type[Struct] = ErrorEnvelope
    query: tuple[str, ...] = ()
    is_admin: bool = False
    redirects: bool = False


_CHAT_ABOUT = "Answer a chat: a `chat.completion`, or `chat.completion.chunk` events that end with `[DONE]`."

OPERATIONS: dict[str, Operation] = {
    "POST /v1/chat/completions": Operation(_CHAT_ABOUT, ChatCompletionRequest, streams=True),
    "POST /v1/completions": Operation("Continue a text: a `text_completion`, or events.", CompletionBody, streams=True),
    "POST /v1/embeddings": Operation("Turn texts into vectors.", EmbeddingRequest, EmbeddingResponse),
    "POST /v1/responses": Operation("Answer as the Responses API does.", ResponsesRequest, streams=True),
    "POST /v1/responses/input_tokens": Operation("Count a prompt's tokens.", ResponsesPrompt, ResponseInputTokens),
    "GET /v1/responses/{response_id}": Operation("A stored response."),
    "DELETE /v1/responses/{response_id}": Operation("Forget a stored response."),
    "POST /v1/messages": Operation(
        "Answer as Anthropic's API does.", MessagesRequest, streams=True, errors=AnthropicErrorEnvelope
    ),
    "POST /v1/messages/count_tokens": Operation(
        "Count a prompt's tokens.", CountTokensRequest, InputTokens, errors=AnthropicErrorEnvelope
    ),
    "POST /tokenize": Operation("The tokens of a text or of a chat.", TokenizeRequest, TokenizeResponse),
    "POST /v1/tokenize": Operation("The same as `/tokenize`.", TokenizeRequest, TokenizeResponse),
    "POST /detokenize": Operation("The text of tokens.", DetokenizeRequest, DetokenizeResponse),
    "POST /v1/detokenize": Operation("The same as `/detokenize`.", DetokenizeRequest, DetokenizeResponse),
    "GET /v1/models": Operation("Models that can be asked now.", answer=ModelList),
    "GET /v1/models/{model}": Operation("One of them; its name may have slashes.", answer=Model),
    "GET /v1/models/{model}/ready": Operation("Whether a model can be asked, and what is missing if not."),
    "GET /health": Operation("What this gateway sees of its fleet; 503 while it drains."),
    "GET /live": Operation("That the process is alive."),
    "GET /metrics": Operation("Metrics of all processes, for Prometheus.", answer="text/plain"),
    "GET /busy_threshold": Operation(
        "When workers count as busy.", answer=AllThresholds, errors=PlainError, is_admin=True
    ),
    "POST /busy_threshold": Operation(
        "Change what is given, or read it where nothing is.",
        ThresholdsBody,
        ThresholdsBody,
        errors=PlainError,
        is_admin=True,
    ),
    "PUT /busy_threshold": Operation(
        "Replace all thresholds of a model.", Replacement, ThresholdsBody, errors=PlainError, is_admin=True
    ),
    "GET /v1/admin/busy_threshold": Operation("When workers count as busy.", answer=AllThresholds, is_admin=True),
    "POST /v1/admin/busy_threshold": Operation(
        "Change what is given, or read it where nothing is.", ThresholdsBody, ThresholdsBody, is_admin=True
    ),
    "PUT /v1/admin/busy_threshold": Operation(
        "Replace all thresholds of a model.", Replacement, ThresholdsBody, is_admin=True
    ),
    "GET /v1/admin/router/explain": Operation(
        "What the router would do with this prompt.", query=("model", "prompt"), is_admin=True
    ),
    "POST /v1/admin/router/explain": Operation(
        "What the router would do with this request.", ChatCompletionRequest | CompletionBody, is_admin=True
    ),
    "GET /openapi.json": Operation("This document."),
    "GET /docs": Operation("Leads to `/docs/`.", redirects=True),
    "GET /docs/": Operation("This document as a page.", answer="text/html"),
}
