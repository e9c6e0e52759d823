"""Decode and validate OpenAI request bodies; bad input ends here as an `InvalidRequest` naming the field.

    decode_chat(body, policy) -> ChatCompletionRequest
    decode_completion(body, policy) -> CompletionRequest

Field types are in `openai_requests`, rules across fields in `openai_rules`, rules for messages in `openai_messages`
(`reject_media` is for the caller, who knows the model), what workers are told in `openai_wire`:
`stop_conditions(request, eos_token_ids)`, `sampling_options(request)`, `output_options(request)`.

Duplicate and unknown names leave no trace in a struct, so a chat's body is decoded into an object that keeps both, and
that is converted; a prompt has many shapes, so the names of a completion's body are listed in a second pass.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct

from dynamo.frontend.openai_compatibility import CHAT, COMPLETIONS, Api
from dynamo.frontend.openai_diagnosis import explain, unsupported
from dynamo.frontend.openai_messages import reject_media
from dynamo.frontend.openai_requests import (
    ChatCompletionRequest,
    CompletionBody,
    CompletionRequest,
    GenerateRequest,
    NvExt,
    TokenId,
)
from dynamo.frontend.openai_rules import check_chat, check_completion, refuse
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

UnknownFields = Literal["reject", "warn", "ignore"]


class RequestPolicy(Struct, frozen=True):
    """What the operator lets requests do. Without `takes_nvext`, `nvext` is its `cache_salt` and no more."""

    unknown_fields: UnknownFields = "warn"
    trusts_chat_templates: bool = False
    takes_nvext: bool = True


DEFAULT_POLICY = RequestPolicy()


class _Name(str):
    """A name equal only to itself, so that a dict keeps both entries of a duplicate."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


_OBJECT = msgspec.json.Decoder(dict[_Name, Any], dec_hook=operator.call)
_NAMES = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=operator.call)
_CHAT = msgspec.json.Decoder(ChatCompletionRequest)
_TEXT_PROMPT = msgspec.json.Decoder(CompletionBody[str | list[str]])
_TOKEN_PROMPTS: tuple[msgspec.json.Decoder[Any], ...] = (
    msgspec.json.Decoder(CompletionBody[list[TokenId]]),
    msgspec.json.Decoder(CompletionBody[list[list[TokenId]]]),
)


class _Fields:
    """Names of one API's fields, and what is to be done about those of a body."""

    def __init__(self, api: Api) -> None:
        self._known = frozenset(api.rows)
        self._refused = frozenset(api.refused)
        self._api = api

    def check(self, request: GenerateRequest, names: Mapping[_Name, object], policy: RequestPolicy) -> None:
        distinct = set(map(str.__str__, names))
        if len(distinct) != len(names):
            raise _duplicate(names)
        if not distinct <= self._known:
            self._note_unknown(request, sorted(distinct - self._known), policy.unknown_fields)
        if not distinct.isdisjoint(self._refused):
            refuse(request, sorted(distinct & self._refused), self._api)
        if request.nvext is not None and not policy.takes_nvext:
            salt = request.nvext.cache_salt
            request.nvext = None if salt is None else NvExt(cache_salt=salt)

    def _note_unknown(self, request: GenerateRequest, unknown: list[str], policy: UnknownFields) -> None:
        if policy == "reject":
            raise unsupported(unknown[0], sorted(self._known))
        if policy == "warn":
            request.__dict__["unknown_fields"] = tuple(unknown)


_CHAT_FIELDS = _Fields(CHAT)
_COMPLETION_FIELDS = _Fields(COMPLETIONS)


def decode_chat(body: bytes, policy: RequestPolicy = DEFAULT_POLICY) -> ChatCompletionRequest:
    try:
        names = _OBJECT.decode(body)
        request = _convert_chat(names, body)
    except (ValueError, RecursionError) as error:
        raise _explain_chat(error, body) from None
    _CHAT_FIELDS.check(request, names, policy)
    check_chat(request, trusts_templates=policy.trusts_chat_templates)
    return request


def _explain_chat(error: Exception, body: bytes) -> InvalidRequest:
    """In the words of a typed decode, which knows where it is."""
    try:
        _CHAT.decode(body)
    except (ValueError, RecursionError) as typed:
        error = typed
    return explain(error, body, ChatCompletionRequest)


def _convert_chat(fields: dict[_Name, Any], body: bytes) -> ChatCompletionRequest:
    """Conversion does not look into strings again, which decoding does; in doubt, decoding has the last word."""
    try:
        return msgspec.convert({str.__str__(name): value for name, value in fields.items()}, ChatCompletionRequest)
    except msgspec.ValidationError:
        return _CHAT.decode(body)


def decode_completion(body: bytes, policy: RequestPolicy = DEFAULT_POLICY) -> CompletionRequest:
    try:
        request = _decode_prompt_of_any_shape(body)
        names = _NAMES.decode(body)
    except (ValueError, RecursionError) as error:
        raise _explain_completion(error, body) from None
    _COMPLETION_FIELDS.check(request, names, policy)
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


def _duplicate(names: Mapping[_Name, object]) -> InvalidRequest:
    seen: set[str] = set()
    for name in map(str.__str__, names):
        if name in seen:
            return InvalidRequest(f"{name} is given twice.", name, "duplicate_field")
        seen.add(name)
    raise AssertionError("no name is given twice")
