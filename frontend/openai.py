"""Decode and validate OpenAI request bodies; bad input ends here as an `InvalidRequest` naming the field.

    decode_chat(body, unknown_fields="warn") -> ChatCompletionRequest
    decode_completion(body, unknown_fields="warn") -> CompletionRequest

Field types are in `openai_requests`, rules across fields in `openai_rules`, rules for messages in `openai_messages`
(`reject_media` is for the caller, who knows the model), what workers are told in `openai_wire`:
`stop_conditions(request, eos_token_ids)`, `sampling_options(request)`, `output_options(request)`.

A body is decoded once into its struct. A second, untyped pass lists the top-level names, since duplicates and unknown
names leave no trace in a struct.
"""

from __future__ import annotations

import operator
from typing import Any, Literal, cast

import msgspec

from dynamo.frontend.openai_diagnosis import explain, unsupported
from dynamo.frontend.openai_messages import reject_media
from dynamo.frontend.openai_requests import (
    ChatCompletionRequest,
    CompletionBody,
    CompletionRequest,
    GenerateRequest,
    TokenId,
)
from dynamo.frontend.openai_rules import check_chat, check_completion
from dynamo.shared.errors import InvalidRequest

__all__ = [
    "ChatCompletionRequest",
    "CompletionRequest",
    "GenerateRequest",
    "UnknownFields",
    "decode_chat",
    "decode_completion",
    "reject_media",
]

UnknownFields = Literal["reject", "warn", "ignore"]


class _Name(str):
    """A name equal only to itself, so that a dict keeps both entries of a duplicate."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


_NAMES = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=operator.call)
_CHAT = msgspec.json.Decoder(ChatCompletionRequest)
_CHAT_FIELDS = frozenset(ChatCompletionRequest.__struct_encode_fields__)
_TEXT_PROMPT = msgspec.json.Decoder(CompletionBody[str | list[str]])
_TOKEN_PROMPTS: tuple[msgspec.json.Decoder[Any], ...] = (
    msgspec.json.Decoder(CompletionBody[list[TokenId]]),
    msgspec.json.Decoder(CompletionBody[list[list[TokenId]]]),
)
_COMPLETION_FIELDS = frozenset(CompletionBody.__struct_encode_fields__)


def decode_chat(body: bytes, unknown_fields: UnknownFields = "warn") -> ChatCompletionRequest:
    try:
        request = _CHAT.decode(body)
        names = _NAMES.decode(body)
    except (ValueError, RecursionError) as error:
        raise explain(error, body, ChatCompletionRequest) from None
    _check_names(request, names, _CHAT_FIELDS, unknown_fields)
    check_chat(request)
    return request


def decode_completion(body: bytes, unknown_fields: UnknownFields = "warn") -> CompletionRequest:
    try:
        request = _decode_prompt_of_any_shape(body)
        names = _NAMES.decode(body)
    except (ValueError, RecursionError) as error:
        raise _explain_completion(error, body) from None
    _check_names(request, names, _COMPLETION_FIELDS, unknown_fields)
    check_completion(request)
    return request


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


def _check_names(
    request: GenerateRequest, names: dict[_Name, msgspec.Raw], known: frozenset[str], policy: UnknownFields
) -> None:
    distinct = set(map(str.__str__, names))
    if len(distinct) != len(names):
        raise _duplicate(names)
    if distinct <= known:
        return
    unknown = sorted(distinct - known)
    if policy == "reject":
        raise unsupported(unknown[0], sorted(known))
    if policy == "warn":
        request.__dict__["unknown_fields"] = tuple(unknown)


def _duplicate(names: dict[_Name, msgspec.Raw]) -> InvalidRequest:
    seen: set[str] = set()
    for name in map(str.__str__, names):
        if name in seen:
            return InvalidRequest(f"{name} is given twice.", name, "duplicate_field")
        seen.add(name)
    raise AssertionError("no name is given twice")
