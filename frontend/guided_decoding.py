"""One guide for the worker, out of all the fields by which a client may prescribe the output.

A client may prescribe it once: two guides are a conflict. Only a response format gives way, to calls that must be made.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dynamo.frontend.forced_calls import calls_schema, check_tool_choice, forced_functions
from dynamo.frontend.guided_types import JsonObject, ResponseFormat
from dynamo.frontend.openai_requests import ChatCompletionRequest, CompletionRequest
from dynamo.shared.errors import InvalidRequest

GUIDES = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


class Guide(msgspec.Struct, frozen=True):
    """`kind` is its key in what a worker is told, `param` the field it came from."""

    kind: str
    value: Any
    param: str


def check_guide(request: ChatCompletionRequest | CompletionRequest, function_names: set[str] | None = None) -> None:
    """Raises InvalidRequest. `function_names` are those of a chat's tools."""
    guides = _guides_by_name(request)
    if isinstance(request, ChatCompletionRequest):
        if request.tool_choice is not None:
            check_tool_choice(request.tool_choice, function_names or set())
        if request.response_format is not None:
            _check_response_format(request.response_format)
        guides += _more_guides_of_chat(request) if guides else ()
    if not guides:
        return
    if len(guides) > 1:
        names = " and ".join(guide.param for guide in guides)
        raise InvalidRequest(
            f"Only one of {names} may be given: each prescribes the output.", guides[1].param, "conflicting_fields"
        )
    _check(guides[0])


def guided_decoding(request: ChatCompletionRequest | CompletionRequest) -> JsonObject | None:
    """Only the keys that are set; None when the output is free."""
    guide = _guide(request)
    if guide is None:
        return None
    told = {guide.kind: guide.value}
    if request.guided_decoding_backend is not None:
        told["backend"] = request.guided_decoding_backend
    if request.guided_whitespace_pattern is not None:
        told["whitespace_pattern"] = request.guided_whitespace_pattern
    return told


def _guide(request: ChatCompletionRequest | CompletionRequest) -> Guide | None:
    by_name = _guides_by_name(request)
    if by_name or not isinstance(request, ChatCompletionRequest):
        return by_name[0] if by_name else None
    if (schema := calls_schema(request)) is not None:
        return Guide("json", schema, "tool_choice")
    return None if request.response_format is None else _guide_by_format(request.response_format)


def _guides_by_name(request: ChatCompletionRequest | CompletionRequest) -> list[Guide]:
    return [Guide(kind, value, name) for name, kind in GUIDES.items() if (value := getattr(request, name)) is not None]


def _more_guides_of_chat(request: ChatCompletionRequest) -> list[Guide]:
    guides = []
    if request.response_format is not None and (guide := _guide_by_format(request.response_format)) is not None:
        guides.append(guide)
    if forced_functions(request):
        guides.append(Guide("json", None, "tool_choice"))
    return guides


def _guide_by_format(response_format: ResponseFormat) -> Guide | None:
    match response_format.type:
        case "json_schema" if response_format.json_schema is not None:
            return Guide("json", response_format.json_schema.schema, "response_format")
        case "json_object":
            return Guide("json", {"type": "object"}, "response_format")
    return None


def _check(guide: Guide) -> None:
    if guide.kind == "choice" and not guide.value:
        raise InvalidRequest("guided_choice must have at least one choice.", "guided_choice", "out_of_range")
    _check_integers(guide.value, guide.param)


def _check_response_format(response_format: ResponseFormat) -> None:
    if response_format.type == "json_schema" and response_format.json_schema is None:
        raise InvalidRequest(
            "response_format of type json_schema needs the field json_schema.",
            "response_format.json_schema",
            "missing_field",
        )
    if response_format.json_schema is not None:
        _check_integers(response_format.json_schema.schema, "response_format.json_schema.schema")


def _check_integers(schema: Any, param: str) -> None:
    """A schema travels to the worker as msgpack, which ends at 64-bit integers."""
    try:
        msgspec.msgpack.encode(schema)
    except OverflowError:
        raise InvalidRequest(f"{param} holds an integer beyond 64 bits.", param, "out_of_range") from None
