"""Bodies of `POST /v1/responses` and `POST /v1/responses/input_tokens` as typed structs.

Items of `input` stay plain dicts: their `type` may be left out, and answers of past turns come back as they were sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from dynamo.frontend.openai_requests import (
    MAX_TOOLS,
    JsonObject,
    NonEmptyStr,
    NvExt,
    OutputTokens,
    ReasoningEffort,
    RequestBody,
    ServiceTier,
    StreamOptions,
)

Input: TypeAlias = str | list[JsonObject]
MAX_ITEMS = 65_536


class Format(Struct):
    """`name`, `schema` and `strict` are those of the type json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: JsonObject | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Struct):
    effort: ReasoningEffort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesPrompt(RequestBody, kw_only=True):
    """What makes up a prompt."""

    model: NonEmptyStr
    input: str | Annotated[list[JsonObject], Meta(max_length=MAX_ITEMS)]
    instructions: str | None = None
    tools: Annotated[list[JsonObject], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    previous_response_id: str | None = None
    conversation: str | JsonObject | None = None
    truncation: Literal["auto", "disabled"] | None = None
    nvext: NvExt | None = None


class ResponsesRequest(ResponsesPrompt, kw_only=True):
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: OutputTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
    client_metadata: Any = None
    max_tool_calls: int | None = None
    user: str | None = None
    service_tier: ServiceTier | None = None
    safety_identifier: str | None = None
    prompt: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    context_management: Any = None
    moderation: Any = None

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or ())

    @property
    def turns(self) -> list[JsonObject]:
        """Chat messages up to and with those of this request; there once it has been prepared."""
        turns: list[JsonObject] = self.__dict__["turns"]
        return turns

    def note_turns(self, turns: list[JsonObject]) -> None:
        self.__dict__["turns"] = turns
