"""Anthropic's API, `POST /v1/messages`: a chat completion by another name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from dynamo.frontend.answer_extras import AnswerExtras
from dynamo.frontend.anthropic_answers import MessageRenderer, message_body
from dynamo.frontend.anthropic_conversion import chat_of, prompt_of
from dynamo.frontend.anthropic_requests import CountTokensRequest, MessagesRequest
from dynamo.frontend.body_fields import BodyReader, RequestPolicy
from dynamo.frontend.error_formats import ErrorFormat
from dynamo.frontend.field_names import FieldNames
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai_answers import Choice, JsonObject
from dynamo.frontend.openai_compatibility import Api, Row, forwarded, honoured, no_effect, refused
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.openai_rules import check_chat
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.prepared import Prepared
from dynamo.frontend.renderer import Renderer
from dynamo.frontend.routing_headers import RoutingHeaders

_OF_PROMPT: dict[str, Row] = {
    "model": honoured("Any name that `/v1/models` lists."),
    "messages": honoured(
        "Text, thinking, tool_use, tool_result, search_result, and documents that are text. A last message of the "
        "assistant is continued. Images are refused for a model that reads text only."
    ),
    "system": honoured("A string or text blocks; Claude Code's billing line is left out."),
    "tools": honoured("Tools with an `input_schema`; those that Anthropic's servers run are refused."),
    "tool_choice": honoured("All four types, and `disable_parallel_tool_use`."),
    "thinking": honoured("Switches the template's thinking; `budget_tokens` is told to the worker."),
    "output_config": honoured("`effort` is for the template, `format` guides the output."),
    "output_format": forwarded("The older name of `output_config.format`."),
    "cache_control": no_effect("Workers cache every prefix, and the router finds it."),
    "mcp_servers": refused("Offer their tools as your own.", []),
    "context_management": no_effect("Nothing is edited out of the context."),
    "nvext": honoured("As in chat completions."),
}
_OF_ANSWER: dict[str, Row] = {
    "max_tokens": honoured("1 to 2^20."),
    "stream": honoured("Events as Anthropic names them, without `[DONE]`."),
    "stop_sequences": honoured("Up to 32 strings; the one that was met is told."),
    "temperature": forwarded("0 to 2."),
    "top_k": forwarded("From -1."),
    "top_p": forwarded("0 to 1."),
    "metadata": no_effect("`user_id` is not interpreted."),
    "service_tier": no_effect("There is one tier."),
    "container": refused("This gateway runs no containers."),
    "inference_geo": no_effect("Workers are where they are."),
    "speed": no_effect("There is one speed."),
    "diagnostics": no_effect("The answer says how much of the prompt was cached."),
}
MESSAGES = Api("Anthropic's messages: `POST /v1/messages`", MessagesRequest, _OF_PROMPT | _OF_ANSWER)
NAMES_OF_CHAT = FieldNames(
    "messages",
    (r"response_format\.json_schema", "output_config.format"),
    (r"(tools\[\d+\])\.function\.parameters", r"\1.input_schema"),
    (r"(tools\[\d+\])\.function", r"\1"),
    (r"tool_choice\.function", "tool_choice"),
)
COUNT_TOKENS = Api("`POST /v1/messages/count_tokens`", CountTokensRequest, _OF_PROMPT)
_MESSAGES, _COUNT_TOKENS = BodyReader(MESSAGES), BodyReader(COUNT_TOKENS)


class MessagesMouth:
    endpoint: ClassVar[str] = "anthropic_messages"

    def __init__(self, policy: RequestPolicy, errors: ErrorFormat, *, strips_preamble: bool) -> None:
        self.errors = errors
        self._policy = policy
        self._chat_of = partial(chat_of, strips_preamble=strips_preamble)
        self._prompt_of = partial(prompt_of, strips_preamble=strips_preamble)

    def decode(self, body: bytes) -> MessagesRequest:
        request: MessagesRequest = _MESSAGES.read(body, self._policy)
        return request

    def decode_prompt(self, body: bytes) -> ChatCompletionRequest:
        """Of a request to count its tokens."""
        chat: ChatCompletionRequest = self._prompt_of(_COUNT_TOKENS.read(body, self._policy))
        with NAMES_OF_CHAT.told():
            check_chat(chat, checks_strict_tools=False)
        return chat

    async def prepare(
        self, pipeline: Pipeline, request: MessagesRequest, record: RequestRecord, headers: RoutingHeaders
    ) -> list[Prepared]:
        chat = self._chat_of(request)
        with NAMES_OF_CHAT.told():
            check_chat(chat, checks_strict_tools=False)
            return await pipeline.prepare_chat(chat, record, headers)

    def renderer(
        self, request: MessagesRequest, record: RequestRecord, created: int, extras: AnswerExtras | None
    ) -> Renderer:
        return MessageRenderer(record, self.errors)

    def body(
        self,
        request: MessagesRequest,
        record: RequestRecord,
        created: int,
        choices: Sequence[Choice],
        nvext: JsonObject | None,
    ) -> bytes:
        return message_body(record, choices[0], nvext)
