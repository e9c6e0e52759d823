"""Decode and validate OpenAI request bodies; bad input ends here as an `InvalidRequest` naming the field.

    decode_chat(body, policy) -> ChatCompletionRequest
    decode_completion(body, policy) -> CompletionRequest

Field types are in `openai_requests`, rules across fields in `openai_rules`, rules for messages in `openai_messages`
(`reject_media` is for the caller, who knows the model), what workers are told in `openai_wire`:
`stop_conditions(request, eos_token_ids)`, `sampling_options(request)`, `output_options(request)`.

A chat's body is decoded into an object that keeps its names, and that is converted; a prompt has many shapes, so the
names of a completion's body are listed in a second pass.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from dynamo.frontend.body_fields import (
    DEFAULT_POLICY,
    NAMES,
    OBJECT,
    BodyFields,
    FieldName,
    RequestPolicy,
    UnknownFields,
)
from dynamo.frontend.forced_calls import offer_allowed_tools
from dynamo.frontend.openai_compatibility import CHAT, COMPLETIONS
from dynamo.frontend.openai_diagnosis import explain
from dynamo.frontend.openai_messages import reject_media
from dynamo.frontend.openai_requests import (
    ChatCompletionRequest,
    CompletionBody,
    CompletionRequest,
    GenerateRequest,
    StreamOptions,
    TokenId,
)
from dynamo.frontend.openai_rules import check_chat, check_completion
from dynamo.shared.errors import InvalidRequest

__all__ = [
    "ChatCompletionRequest",
    "CompletionRequest",
    "GenerateRequest",
    "RequestPolicy",
    "UnknownFields",
    "decode_chat",
    "decode_completion",
    "reject_media",
]

_CHAT = msgspec.json.Decoder(ChatCompletionRequest)
_TEXT_PROMPT = msgspec.json.Decoder(CompletionBody[str | list[str]])
_TOKEN_PROMPTS: tuple[msgspec.json.Decoder[Any], ...] = (
    msgspec.json.Decoder(CompletionBody[list[TokenId]]),
    msgspec.json.Decoder(CompletionBody[list[list[TokenId]]]),
)


_CHAT_FIELDS = BodyFields(CHAT)
_COMPLETION_FIELDS = BodyFields(COMPLETIONS)


def decode_chat(body: bytes, policy: RequestPolicy = DEFAULT_POLICY) -> ChatCompletionRequest:
    try:
        names = OBJECT.decode(body)
        request = _convert_chat(names, body)
    except (ValueError, RecursionError) as error:
        raise _explain_chat(error, body) from None
    _CHAT_FIELDS.check(request, names, policy)
    if request.tool_choice is not None:
        offer_allowed_tools(request)
    check_chat(request, trusts_templates=policy.trusts_chat_templates)
    if policy.forces_usage:
        _force_usage(request)
    return request


def _explain_chat(error: Exception, body: bytes) -> InvalidRequest:
    """In the words of a typed decode, which knows where it is."""
    try:
        _CHAT.decode(body)
    except (ValueError, RecursionError) as typed:
        error = typed
    return explain(error, body, ChatCompletionRequest)


def _convert_chat(fields: dict[FieldName, Any], body: bytes) -> ChatCompletionRequest:
    """Conversion does not look into strings again, which decoding does; in doubt, decoding has the last word."""
    try:
        return msgspec.convert({str.__str__(name): value for name, value in fields.items()}, ChatCompletionRequest)
    except msgspec.ValidationError:
        return _CHAT.decode(body)


def decode_completion(body: bytes, policy: RequestPolicy = DEFAULT_POLICY) -> CompletionRequest:
    try:
        request = _decode_prompt_of_any_shape(body)
        names = NAMES.decode(body)
    except (ValueError, RecursionError) as error:
        raise _explain_completion(error, body) from None
    _COMPLETION_FIELDS.check(request, names, policy)
    check_completion(request)
    if policy.forces_usage:
        _force_usage(request)
    return request


def _force_usage(request: GenerateRequest) -> None:
    if request.stream:
        options = StreamOptions(include_usage=True, continuous_usage_stats=request.continuous_usage_stats)
        request.stream_options = options


def _decode_prompt_of_any_shape(body: bytes) -> CompletionRequest:
    try:
        return cast(CompletionRequest, _TEXT_PROMPT.decode(body))
    except msgspec.ValidationError as error:
        if "`$.prompt" not in str(error):
            raise
        for decoder in _TOKEN_PROMPTS:
            try:
                return cast(CompletionRequest, decoder.decode(body))
            except msgspec.ValidationError as other:
                if "`$.prompt" not in str(other):
                    raise
        raise


def _explain_completion(error: Exception, body: bytes) -> InvalidRequest:
    if isinstance(error, msgspec.ValidationError) and "`$.prompt" in str(error):
        return InvalidRequest(
            "prompt must be a string, an array of strings, an array of token ids, or an array of arrays of token ids;"
            f" all of one kind, ids between 0 and {2**32 - 1}.",
            "prompt",
            "invalid_type",
        )
    return explain(error, body, CompletionBody[str | list[str]])
