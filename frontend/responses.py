"""The Responses API: `POST /v1/responses`, and with a store `GET` and `DELETE /v1/responses/{id}`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from dynamo.frontend.answer_extras import AnswerExtras
from dynamo.frontend.body_fields import BodyReader, RequestPolicy
from dynamo.frontend.error_formats import ErrorFormat
from dynamo.frontend.field_names import FieldNames
from dynamo.frontend.inference import JSON, RequestIds
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai_answers import Choice, JsonObject
from dynamo.frontend.openai_compatibility import Api, Row, forwarded, honoured, no_effect, refused
from dynamo.frontend.openai_messages import check_arguments
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.openai_rules import check_chat
from dynamo.frontend.parsers.message import ToolCallDelta
from dynamo.frontend.pipeline import Pipeline
from dynamo.frontend.prepared import Prepared
from dynamo.frontend.renderer import Renderer
from dynamo.frontend.responses_answers import ResponseObject, ResponseRenderer, encode, output_items
from dynamo.frontend.responses_conversion import (
    chat_of,
    decode_messages,
    encode_messages,
    message_of_answer,
    prompt_of,
)
from dynamo.frontend.responses_requests import ResponsesPrompt, ResponsesRequest
from dynamo.frontend.responses_store import ResponseStore, StoredResponse
from dynamo.frontend.responses_tools import special_tools
from dynamo.frontend.routing_headers import RoutingHeaders
from dynamo.frontend.server.exchange import Exchange, HeaderBlock
from dynamo.shared.errors import InvalidRequest, ResponseNotFound, RouteNotFound, UnsupportedFeature

ROUTE = "/v1/responses"

_OF_PROMPT: dict[str, Row] = {
    "model": honoured("Any name that `/v1/models` lists."),
    "input": honoured(
        "A string, or messages, reasoning, calls of tools and their outputs; output items of past responses as they "
        "came. `additional_tools` and `tool_search_output` bring tools along. Pictures and files are refused."
    ),
    "instructions": honoured("The system message of this turn."),
    "tools": honoured(
        "Functions, custom tools, namespaces of both, and a `tool_search` that the client does. All are functions to "
        "the model, one of a namespace as `namespace__name`, and their calls come as the items the client expects. A "
        "custom tool's grammar is described, not enforced. Tools that OpenAI's servers run are not offered."
    ),
    "tool_choice": honoured("`none`, `auto`, `required`, a function or custom tool, or `allowed_tools` of them."),
    "parallel_tool_calls": forwarded("Off allows one call where `tool_choice` demands any; else the model decides."),
    "reasoning": honoured("`effort` is for the template. Reasoning is told as it is, never as a summary."),
    "text": forwarded("`format` guides the output; `verbosity` is for the template."),
    "previous_response_id": honoured("With `--responses-store-mb`; else refused with a 501."),
    "conversation": refused("With a 501. Send the items of the conversation as `input`."),
    "truncation": no_effect("Nothing is left out: an input that does not fit is refused with a 400."),
    "nvext": honoured("As in chat completions."),
}
_OF_ANSWER: dict[str, Row] = {
    "stream": honoured("Events as OpenAI names them; the last is the response itself, without `[DONE]`."),
    "stream_options": no_effect("Usage always comes with the last event; nothing is obfuscated."),
    "max_output_tokens": honoured("1 to 2^20."),
    "temperature": forwarded("0 to 2."),
    "top_p": forwarded("Above 0, up to 1."),
    "top_logprobs": honoured("0 to 20 alternatives of each token."),
    "include": honoured("`message.output_text.logprobs`; the rest is of tools that nobody here runs."),
    "store": honoured("On by default where there is a store; the response says whether it was stored."),
    "background": refused("With a 501. Ask for a stream, and read it at leisure.", False),
    "metadata": honoured("Told again in the response."),
    "client_metadata": no_effect("Codex notes here which of its turns this is."),
    "max_tool_calls": no_effect("It counts calls of tools that nobody here runs."),
    "user": no_effect("Not interpreted."),
    "service_tier": no_effect("There is one tier."),
    "safety_identifier": no_effect("Nobody is reported."),
    "prompt": refused("Templates of prompts are not kept here; send the text."),
    "prompt_cache_key": no_effect("The router finds cached prefixes by itself."),
    "prompt_cache_options": no_effect("Workers cache prefixes as they are configured to."),
    "prompt_cache_retention": no_effect("Workers keep prefixes for as long as they have room."),
    "context_management": no_effect("Nothing is compacted."),
    "moderation": refused("Nothing is moderated here."),
}
RESPONSES = Api("Responses: `POST /v1/responses`", ResponsesRequest, _OF_PROMPT | _OF_ANSWER)
NAMES_OF_CHAT = FieldNames(
    "input",
    (r"response_format\.json_schema", "text.format"),
    (r"response_format", "text.format"),
    (r"(tools\[\d+\])\.function", r"\1"),
    (r"tool_choice\.function", "tool_choice"),
    (r"max_completion_tokens", "max_output_tokens"),
)
INPUT_TOKENS = Api("`POST /v1/responses/input_tokens`", ResponsesPrompt, _OF_PROMPT)
_RESPONSES, _INPUT_TOKENS = BodyReader(RESPONSES), BodyReader(INPUT_TOKENS)


class ResponsesMouth:
    endpoint: ClassVar[str] = "responses"

    def __init__(self, policy: RequestPolicy, store: ResponseStore | None, errors: ErrorFormat) -> None:
        self.errors = errors
        self._policy = policy
        self._store = store

    def decode(self, body: bytes) -> ResponsesRequest:
        request: ResponsesRequest = _RESPONSES.read(body, self._policy, _refuse_what_only_openai_has)
        return request

    def decode_prompt(self, body: bytes) -> ChatCompletionRequest:
        """Of a request to count its tokens."""
        request: ResponsesPrompt = _INPUT_TOKENS.read(body, self._policy, _refuse_what_only_openai_has)
        chat = prompt_of(request, self._past(request))
        with NAMES_OF_CHAT.told():
            check_chat(chat)
        return chat

    async def prepare(
        self, pipeline: Pipeline, request: ResponsesRequest, record: RequestRecord, headers: RoutingHeaders
    ) -> list[Prepared]:
        past = self._past(request)
        chat = chat_of(request, past)
        num_instructions = 1 if request.instructions else 0
        request.note_turns(chat.messages[num_instructions:])
        with NAMES_OF_CHAT.told():
            check_chat(chat)
            return await pipeline.prepare_chat(chat, record, headers)

    def renderer(
        self, request: ResponsesRequest, record: RequestRecord, created: int, extras: AnswerExtras | None
    ) -> Renderer:
        response = self._object(request, record, created)
        return ResponseRenderer(response, record, partial(self._keep, request), special_tools(request))

    def body(
        self,
        request: ResponsesRequest,
        record: RequestRecord,
        created: int,
        choices: Sequence[Choice],
        nvext: JsonObject | None,
    ) -> bytes:
        choice = choices[0]
        output = output_items(record, choice, special_tools(request))
        response = self._object(request, record, created).ended(output, choice.finish_reason)
        if choice.parts is not None:
            self._keep(request, response, choice)
        return encode(response | ({"nvext": nvext} if nvext else {}))

    def _object(self, request: ResponsesRequest, record: RequestRecord, created: int) -> ResponseObject:
        return ResponseObject(request, record, created, is_stored=self._stores(request))

    def _stores(self, request: ResponsesRequest) -> bool:
        return self._store is not None and request.store is not False

    def _past(self, request: ResponsesPrompt) -> list[JsonObject]:
        id = request.previous_response_id
        if id is None:
            return []
        if self._store is None:
            raise UnsupportedFeature(
                "previous_response_id needs a store of past responses, which --responses-store-mb switches on; else "
                "send the items of the conversation as input.",
                "previous_response_id",
            )
        if (stored := self._store.get(id)) is None:
            raise ResponseNotFound(id, "previous_response_id")
        return decode_messages(stored.messages)

    def _keep(self, request: ResponsesRequest, response: JsonObject, choice: Choice) -> None:
        """Before the client is told: it may go on from here at once."""
        if self._store is None or not self._stores(request):
            return
        calls = [_call(call) for call in choice.calls if _is_whole(call)]
        answer = message_of_answer(choice.text or "", choice.reasoning, calls)
        messages = encode_messages([*request.turns, answer])
        if not self._store.put(response["id"], StoredResponse(messages, encode(response))):
            response["store"] = False


def _refuse_what_only_openai_has(request: ResponsesPrompt) -> None:
    """As 1.6.1 does, with a 501."""
    for name, instead in (("background", "Ask for a stream."), ("conversation", "Send its items as `input`.")):
        if getattr(request, name, None):
            raise UnsupportedFeature(f"{name} is not supported by this gateway. {instead}", name)


class StoredResponses:
    """The routes of what is stored."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    async def get(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        id = _id_in(exchange.path)
        if (stored := self._store.get(id)) is None:
            raise ResponseNotFound(id)
        exchange.respond(200, JSON + headers, stored.response)

    async def delete(self, exchange: Exchange, headers: HeaderBlock, ids: RequestIds) -> None:
        id = _id_in(exchange.path)
        if not self._store.delete(id):
            raise ResponseNotFound(id)
        exchange.respond(200, JSON + headers, encode({"id": id, "object": "response", "deleted": True}))


def _call(call: ToolCallDelta) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}


def _is_whole(call: ToolCallDelta) -> bool:
    """What was cut off in mid-call cannot be handed to a template, nor has anybody called it."""
    try:
        check_arguments(call.arguments, "")
    except InvalidRequest:
        return False
    return True


def _id_in(path: str) -> str:
    id = path.removeprefix(f"{ROUTE}/")
    if "/" in id:
        raise RouteNotFound(f"There is nothing at {path}.")
    return id
