"""JSON Schema for what stays plain dicts in a decoded request: what `openai_messages` checks, written for readers."""

from __future__ import annotations

from typing import Any

from dynamo.frontend.openai_messages import ASSISTANT_PARTS, FUNCTION_NAME, MIXED_PARTS, TEXT_PARTS

Schema = dict[str, Any]

_ANY_OBJECT: Schema = {"type": "object"}
_STRING: Schema = {"type": "string"}


def _object(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _constant(value: str) -> Schema:
    return {"type": "string", "const": value}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _part(kind: str) -> Schema:
    inside = _STRING
    if kind.endswith("_url"):
        inside = _object("url", url=_STRING)
    elif kind == "input_audio":
        inside = _ANY_OBJECT
    return _object("type", kind, type=_constant(kind), **{kind: inside})


def _content(kinds: frozenset[str], min_parts: int = 0) -> Schema:
    parts: Schema = {"type": "array", "items": {"anyOf": [_part(kind) for kind in sorted(kinds)]}}
    return {"anyOf": [_STRING, parts | ({"minItems": min_parts} if min_parts else {})]}


_NAME = _or_null(_STRING)
_CALL = _object(
    "id",
    "function",
    id=_STRING,
    type=_constant("function"),
    function=_object(
        "name",
        "arguments",
        name=_STRING,
        arguments={"anyOf": [{"type": "string", "description": "A JSON object, or nothing."}, _ANY_OBJECT]},
    ),
)
_INSTRUCTION = {"content": _content(TEXT_PARTS), "name": _NAME}

_BY_ROLE: dict[str, tuple[Schema, list[str]]] = {
    "developer": (_INSTRUCTION, ["content"]),
    "system": (_INSTRUCTION, ["content"]),
    "user": ({"content": _content(MIXED_PARTS, min_parts=1), "name": _NAME}, ["content"]),
    "assistant": (
        {
            "content": _or_null(_content(ASSISTANT_PARTS)),
            "tool_calls": _or_null({"type": "array", "items": _CALL}),
            "name": _NAME,
        },
        [],
    ),
    "tool": ({"content": _content(MIXED_PARTS), "tool_call_id": _STRING, "name": _NAME}, ["content", "tool_call_id"]),
    "function": ({"content": _or_null(_STRING), "name": _STRING}, ["name"]),
}

MESSAGE: Schema = {
    "description": "A message of a chat; which fields it has depends on its role.",
    "oneOf": [
        _object("role", *required, role=_constant(role), **fields) for role, (fields, required) in _BY_ROLE.items()
    ],
}

TOOL: Schema = _object(
    "type",
    "function",
    type=_constant("function"),
    function=_object(
        "name",
        name={"type": "string", "pattern": f"^{FUNCTION_NAME.pattern}$"},
        description=_or_null(_STRING),
        parameters=_or_null({"type": "object", "description": "A JSON schema."}),
    ),
)

TOOL_CHOICE: Schema = _or_null(
    {
        "anyOf": [
            {"enum": ["none", "auto", "required"]},
            _object("type", "function", type=_constant("function"), function=_object("name", name=_STRING)),
        ]
    }
)

TOKEN_ID: Schema = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}

PROMPT: Schema = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        {"type": "array", "items": TOKEN_ID, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": TOKEN_ID, "minItems": 1}, "minItems": 1},
    ]
}
