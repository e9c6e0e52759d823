"""Bodies of `POST /v1/messages` and `POST /v1/messages/count_tokens`, the API of Anthropic, as typed structs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, field

from dynamo.frontend.openai_requests import (
    MAX_STOP_SEQUENCES,
    MAX_TOOLS,
    JsonObject,
    NonEmptyStr,
    NvExt,
    OutputTokens,
    RequestBody,
    TokenId,
    Unit,
)

# --------------------------------------------------------------------------- content


class Text(Struct, tag_field="type", tag="text"):
    text: str


class Thinking(Struct, tag_field="type", tag="thinking"):
    """What the model thought in a past turn; nobody here signs it, and nobody checks the signature."""

    thinking: str
    signature: str = ""


class RedactedThinking(Struct, tag_field="type", tag="redacted_thinking"):
    data: str = ""


class ToolUse(Struct, tag_field="type", tag="tool_use"):
    id: NonEmptyStr
    name: NonEmptyStr
    input: JsonObject


class Image(Struct, tag_field="type", tag="image"):
    source: JsonObject


class PlainTextSource(Struct, tag_field="type", tag="text"):
    data: str


class ContentSource(Struct, tag_field="type", tag="content"):
    content: str | list[Text | Image]


class Base64Source(Struct, tag_field="type", tag="base64"):
    data: str
    media_type: str = ""


class UrlSource(Struct, tag_field="type", tag="url"):
    url: str


class FileSource(Struct, tag_field="type", tag="file"):
    file_id: str


DocumentSource: TypeAlias = PlainTextSource | ContentSource | Base64Source | UrlSource | FileSource


class Document(Struct, tag_field="type", tag="document"):
    source: DocumentSource
    title: str | None = None
    context: str | None = None


class SearchResult(Struct, tag_field="type", tag="search_result"):
    content: list[Text]
    source: str = ""
    title: str = ""


class ToolReference(Struct, tag_field="type", tag="tool_reference"):
    tool_name: str


ResultBlock: TypeAlias = Text | Image | Document | SearchResult | ToolReference


class ToolResult(Struct, tag_field="type", tag="tool_result"):
    tool_use_id: NonEmptyStr
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None


Block: TypeAlias = Text | Thinking | RedactedThinking | ToolUse | Image | Document | SearchResult | ToolResult


class Message(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


# --------------------------------------------------------------------------- options


class Tool(Struct):
    """A tool of the client's own. Those that Anthropic's servers run have another `type`, and no schema."""

    name: NonEmptyStr
    input_schema: JsonObject | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None


class ToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: TokenId | None = None
    display: str | None = None


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: JsonObject


class OutputConfig(Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Struct):
    user_id: str | None = None


class CountTokensRequest(RequestBody, kw_only=True):
    """What makes up a prompt. `cache_control` marks are accepted everywhere: workers cache all they can anyway."""

    model: NonEmptyStr
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[Text] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] = field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    cache_control: Any = None
    mcp_servers: list[Any] | None = None
    context_management: Any = None
    nvext: NvExt | None = None

    @property
    def schema_of_answer(self) -> JsonObject | None:
        wanted = self.output_format or (self.output_config.format if self.output_config is not None else None)
        return None if wanted is None else wanted.schema


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: OutputTokens
    stream: bool | None = None
    stop_sequences: Annotated[list[NonEmptyStr], Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Unit | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    container: Any = None
    inference_geo: str | None = None
    speed: str | None = None
    diagnostics: Any = None
