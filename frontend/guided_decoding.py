"""One guide for the worker, out of all the fields by which a client may prescribe the output.

A client may prescribe it once: two guides are a conflict. Only a response format gives way, to calls that must be made.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from msgspec import Struct

from dynamo.frontend.forced_calls import calls_schema, check_tool_choice, forced_functions, parameters_of
from dynamo.frontend.guide_check import check_regex, check_value
from dynamo.frontend.guided_types import JsonObject, ResponseFormat, StructuredOutputs
from dynamo.frontend.openai_requests import ChatCompletionRequest, CompletionRequest
from dynamo.frontend.structural_tags import StructuralTags
from dynamo.shared.errors import InvalidRequest

GUIDED = (
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
)
STRUCTURED = ("json", "regex", "choice", "grammar", "structural_tag")
NOT_TOLD = ("disable_fallback", "disable_any_whitespace", "disable_additional_properties")
_PRESCRIBED = attrgetter(*(name for name, _ in GUIDED), "structured_outputs")
_NOTHING = (None,) * (len(GUIDED) + 1)

ANY_OBJECT: JsonObject = {"type": "object"}


class Guide(Struct, frozen=True):
    """`kind` is its key in what a worker is told, `param` the field it came from."""

    kind: str
    value: Any
    param: str


def check_guide(request: ChatCompletionRequest | CompletionRequest, function_names: set[str] | None = None) -> None:
    """Raises InvalidRequest. `function_names` are those of a chat's tools."""
    guides = _guides_by_name(request)
    if isinstance(request, ChatCompletionRequest):
        if request.tool_choice is not None:
            _check_tool_choice(request, function_names or set(), guides)
        if request.response_format is not None:
            guides += _guides_by_format(request.response_format)
    if len(guides) > 1:
        raise _conflict(guides[0].param, guides[1].param)
    for guide in guides:
        check_value(guide.kind, guide.value, guide.param)
    if guides or request.guided_whitespace_pattern is not None:
        _check_whitespace_pattern(request)


def guided_decoding(
    request: ChatCompletionRequest | CompletionRequest, tags: StructuralTags | None = None
) -> JsonObject | None:
    """What a worker is told, of a request that has been checked: only the keys that are set, or None when the output
    is free. With `tags` calls are guided in the model's own format."""
    guide = _guide(request, tags)
    if guide is None:
        return None
    told = {guide.kind: guide.value}
    if request.guided_decoding_backend is not None:
        told["backend"] = request.guided_decoding_backend
    if (pattern := _whitespace_pattern(request)[0]) is not None:
        told["whitespace_pattern"] = pattern
    return told


def _guide(request: ChatCompletionRequest | CompletionRequest, tags: StructuralTags | None) -> Guide | None:
    """Calls that must be made go before all else, calls that may be made behind it."""
    guides = _guides_by_name(request)
    if isinstance(request, ChatCompletionRequest):
        if request.response_format is not None:
            guides += _guides_by_format(request.response_format)
        if request.tools is not None and (not guides or forced_functions(request)):
            return _guide_by_tools(request, tags)
    return guides[0] if guides else None


def _guide_by_tools(request: ChatCompletionRequest, tags: StructuralTags | None) -> Guide | None:
    if tags is not None and (tag := tags.tag(request)) is not None:
        return Guide("structural_tag", tag, "tool_choice")
    schema = calls_schema(request)
    return None if schema is None else Guide("json", schema, "tool_choice")


def _guides_by_name(request: ChatCompletionRequest | CompletionRequest) -> list[Guide]:
    if _PRESCRIBED(request) == _NOTHING:
        return []
    guides = [Guide(kind, value, name) for name, kind in GUIDED if (value := getattr(request, name)) is not None]
    if request.structured_outputs is not None:
        guides += _structured_guides(request.structured_outputs)
    return guides


def _structured_guides(outputs: StructuredOutputs) -> list[Guide]:
    for name in NOT_TOLD:
        if getattr(outputs, name):
            param = f"structured_outputs.{name}"
            raise InvalidRequest(f"{param} is not something that workers can be told.", param, "unsupported_field")
    guides = [
        Guide(kind, value, f"structured_outputs.{kind}")
        for kind in STRUCTURED
        if (value := getattr(outputs, kind)) is not None
    ]
    if outputs.json_object:
        guides.append(Guide("json", ANY_OBJECT, "structured_outputs.json_object"))
    if not guides:
        names = ", ".join((*STRUCTURED, "json_object"))
        raise InvalidRequest(
            f"structured_outputs prescribes nothing; set one of {names}.", "structured_outputs", "missing_field"
        )
    return guides


def _guides_by_format(response_format: ResponseFormat) -> list[Guide]:
    """At most one. Raises InvalidRequest where the type's own field is missing."""
    match response_format.type:
        case "text":
            return []
        case "json_object":
            return [Guide("json", ANY_OBJECT, "response_format")]
        case "json_schema":
            if response_format.json_schema is None:
                raise _missing(response_format.type, "json_schema")
            return [Guide("json", response_format.json_schema.schema, "response_format.json_schema.schema")]
        case "grammar":
            if response_format.grammar is None:
                raise _missing(response_format.type, "grammar")
            return [Guide("grammar", response_format.grammar, "response_format.grammar")]
        case "structural_tag":
            return [Guide("structural_tag", _tag(response_format), "response_format")]


def _tag(response_format: ResponseFormat) -> JsonObject:
    parts = {name: getattr(response_format, name) for name in ("format", "structures", "triggers")}
    return {"type": "structural_tag"} | {name: part for name, part in parts.items() if part is not None}


def _check_tool_choice(request: ChatCompletionRequest, function_names: set[str], guides: list[Guide]) -> None:
    check_tool_choice(request.tool_choice, function_names)
    forced = forced_functions(request)
    if forced and guides:
        raise _conflict(guides[0].param, "tool_choice")
    for index, function in forced:
        check_value("json", parameters_of(function), f"tools[{index}].function.parameters")


def _whitespace_pattern(request: ChatCompletionRequest | CompletionRequest) -> tuple[str | None, str]:
    """And the field it came from."""
    if request.guided_whitespace_pattern is None and request.structured_outputs is not None:
        return request.structured_outputs.whitespace_pattern, "structured_outputs.whitespace_pattern"
    return request.guided_whitespace_pattern, "guided_whitespace_pattern"


def _check_whitespace_pattern(request: ChatCompletionRequest | CompletionRequest) -> None:
    pattern, param = _whitespace_pattern(request)
    if pattern is not None:
        check_regex(pattern, param)


def _conflict(one: str, other: str) -> InvalidRequest:
    message = f"{one} and {other} both prescribe the output; leave one of them out."
    return InvalidRequest(message, other, "conflicting_fields")


def _missing(kind: str, name: str) -> InvalidRequest:
    message = f"response_format of type {kind} needs the field {name}."
    return InvalidRequest(message, f"response_format.{name}", "missing_field")
