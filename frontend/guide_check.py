"""Whether what a client prescribes can be followed, by kind of guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dynamo.frontend.checked_schemas import check_schema
from dynamo.frontend.grammar_check import grammar_fault
from dynamo.frontend.guided_types import JsonObject
from dynamo.frontend.openai_messages import shown
from dynamo.frontend.regex_check import regex_fault
from dynamo.shared.errors import InvalidRequest

MAX_CHOICES = 4096
MAX_TAG_DEPTH = 64


def check_value(kind: str, value: Any, param: str) -> None:
    """Raises InvalidRequest. `kind` is a key of what workers are told."""
    _CHECKS[kind](value, param)


def check_regex(pattern: str, param: str) -> None:
    if not pattern:
        raise InvalidRequest(f"{param} is empty, which matches nothing but an empty answer.", param, "out_of_range")
    if (fault := regex_fault(pattern)) is not None:
        raise InvalidRequest(f"{param} {fault}.", param)


def _check_json(schema: Any, param: str) -> None:
    """A JSON schema, or the text of one."""
    check_schema(_decoded(schema, param) if isinstance(schema, str) else schema, param)


def _check_choice(choices: list[str], param: str) -> None:
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise InvalidRequest(
            f"{param} has {len(choices)} choices; it must have 1 to {MAX_CHOICES}.", param, "out_of_range"
        )


def _check_grammar(grammar: str, param: str) -> None:
    if (fault := grammar_fault(grammar)) is not None:
        raise InvalidRequest(f"{param} {fault}.", param)


def _check_tag(tag: JsonObject | str, param: str) -> None:
    """An object of type structural_tag with a `format`, or with the older pair `structures` and `triggers`."""
    tag = _decoded(tag, param) if isinstance(tag, str) else tag
    if not isinstance(tag, dict) or tag.get("type", "structural_tag") != "structural_tag":
        raise InvalidRequest(f'{param} must be an object of the type "structural_tag".', param, "invalid_type")
    if isinstance(tag.get("format"), dict):
        _check_format(tag["format"], f"{param}.format", 0)
    elif isinstance(tag.get("structures"), list) and isinstance(tag.get("triggers"), list):
        _check_structures(tag, param)
    else:
        raise InvalidRequest(
            f"{param} needs the object format, or the arrays structures and triggers.", param, "missing_field"
        )


def _check_structures(tag: JsonObject, param: str) -> None:
    for index, structure in enumerate(tag["structures"]):
        path = f"{param}.structures[{index}]"
        texts = [structure.get("begin"), structure.get("end")] if isinstance(structure, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise InvalidRequest(f"{path} needs the strings begin and end, and a schema.", path, "missing_field")
        check_schema(structure.get("schema"), f"{path}.schema")
    if not tag["triggers"] or not all(isinstance(trigger, str) for trigger in tag["triggers"]):
        path = f"{param}.triggers"
        raise InvalidRequest(f"{path} must be an array of at least one string.", path, "invalid_type")


def _check_format(part: Any, path: str, depth: int) -> None:
    """What kinds of formats there are is the worker's to know; what they embed is checked."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f"{path} is {shown(part)}; a format is an object with a type.", path, "invalid_type")
    if depth > MAX_TAG_DEPTH:
        raise InvalidRequest(f"{path} is nested more than {MAX_TAG_DEPTH} formats deep.", path, "out_of_range")
    match part["type"]:
        case "json_schema" if part.get("json_schema") is not True:
            check_schema(part.get("json_schema"), f"{path}.json_schema")
        case "regex":
            check_regex(_text(part, "pattern", path), f"{path}.pattern")
        case "grammar":
            _check_grammar(_text(part, "grammar", path), f"{path}.grammar")
    if "content" in part:
        _check_format(part["content"], f"{path}.content", depth + 1)
    for name in ("elements", "tags"):
        parts = part.get(name)
        for index, each in enumerate(parts if isinstance(parts, list) else ()):
            _check_format(each, f"{path}.{name}[{index}]", depth + 1)


def _text(part: JsonObject, name: str, path: str) -> str:
    value = part.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{path}.{name} is {shown(value)}; it must be a string.", f"{path}.{name}", "invalid_type")
    return value


def _decoded(text: str, param: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} is text that is no JSON: {error}.", param) from None


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "json": _check_json,
    "regex": check_regex,
    "choice": _check_choice,
    "grammar": _check_grammar,
    "structural_tag": _check_tag,
}
