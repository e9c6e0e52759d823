"""The arguments of a call, written as JSON while a model writes them as plain text.

A model that marks up its arguments writes `3` for both a number and a string, so the JSON schema of a parameter says
what a text stands for. Text goes out as it comes; all else is kept until it is whole.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, Protocol

import msgspec

STRING = frozenset({"string"})
STRING_OR_NULL = frozenset({"string", "null"})
CONTAINER_OR_STRING = frozenset({"object", "array", "string"})
ANY = frozenset({"any"})

_MAX_DEPTH = 8  # of schemas within schemas
_MAX_LITERAL = 100_000  # characters; Python's own reader of literals is slow
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERAL = re.compile(r"[{\[]|(?:True|False|None)$")
_TYPE_NAMES: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


class ObjectWriter:
    """The text of one JSON object, key by key."""

    __slots__ = ("is_empty",)

    def __init__(self) -> None:
        self.is_empty = True

    def key(self, key: str) -> str:
        opening = "{" if self.is_empty else ", "
        self.is_empty = False
        return f"{opening}{encode_basestring(key)}: "

    def end(self) -> str:
        return "{}" if self.is_empty else "}"


class ArrayWriter:
    """The text of one JSON array, up to each of its items."""

    __slots__ = ("is_empty",)

    def __init__(self) -> None:
        self.is_empty = True

    def item(self) -> str:
        opening = "[" if self.is_empty else ", "
        self.is_empty = False
        return opening

    def end(self) -> str:
        return "[]" if self.is_empty else "]"


class Argument(Protocol):
    """Turns one value into JSON, piece by piece."""

    def push(self, text: str) -> str: ...

    def end(self) -> str: ...


class TextArgument:
    """A string. With `is_padded`, one line break at either end is not part of it; with `knows_null`, the word null in
    any case is no string."""

    __slots__ = ("_held", "_is_open", "_is_padded", "_knows_null")

    def __init__(self, is_padded: bool = False, knows_null: bool = False) -> None:
        self._is_padded = is_padded
        self._knows_null = knows_null
        self._is_open = False
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        if self._is_open or not self._is_undecided(text):
            return self._write(text)
        self._held = text
        return ""

    def end(self) -> str:
        text, self._held = self._held, ""
        if self._is_open:
            return '"'
        if self._is_padded:
            text = without_padding(text)
        return "null" if self._knows_null and text.lower() == "null" else encode_basestring(text)

    def _is_undecided(self, text: str) -> bool:
        if self._is_padded:
            text = text.removeprefix("\n")
        return not text or (self._knows_null and "null\n".startswith(text.lower()))

    def _write(self, text: str) -> str:
        if not self._is_open and self._is_padded:
            text = text.removeprefix("\n")
        self._held = "\n" if self._is_padded and text.endswith("\n") else ""
        opening = "" if self._is_open else '"'
        self._is_open = True
        return opening + encode_basestring(text.removesuffix(self._held))[1:-1]


class TypedArgument:
    """A value of one of `types`, or a string if it is none of them; `is_padded` as of a `TextArgument`."""

    __slots__ = ("_is_padded", "_pieces", "_types")

    def __init__(self, types: frozenset[str], is_padded: bool = False) -> None:
        self._types = types
        self._is_padded = is_padded
        self._pieces: list[str] = []

    def push(self, text: str) -> str:
        self._pieces.append(text)
        return ""

    def end(self) -> str:
        text = "".join(self._pieces)
        return json_of(without_padding(text) if self._is_padded else text, self._types)


def argument_of(types: frozenset[str], *, is_padded: bool = False, knows_null: bool = False) -> Argument:
    if types == STRING or (knows_null and types == STRING_OR_NULL):
        return TextArgument(is_padded, knows_null)
    return TypedArgument(types, is_padded)


def without_padding(text: str) -> str:
    return text.removeprefix("\n").removesuffix("\n")


def types_of(schema: Any, otherwise: frozenset[str] = STRING, depth: int = 0) -> frozenset[str]:
    """Names of the JSON types that a schema allows, `otherwise` where it says nothing of them; ANY where that would
    need more than a look."""
    if not isinstance(schema, dict) or depth == _MAX_DEPTH:
        return otherwise
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list):
            return frozenset().union(*(types_of(option, ANY, depth + 1) for option in options))
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    if values:
        return frozenset(_TYPE_NAMES.get(type(value), "any") for value in values)
    return ANY if {"$ref", "allOf", "properties", "items"} & schema.keys() else otherwise


def json_of(text: str, types: frozenset[str]) -> str:
    """JSON of the value that `text` stands for: the first of the types below that is among `types` and can be read."""
    stripped = text.strip()
    if types != STRING and stripped.lower() == "null":
        return "null"
    if stripped == "None" and "string" not in types:
        return "null"
    for name, read in _READERS.items():
        if name in types and (value := read(stripped)) is not None:
            return value
    if types <= _KNOWN_TYPES or (value := _read_any(stripped)) is None:
        return encode_basestring(text)
    return value


def _read_boolean(text: str) -> str | None:
    lowered = text.lower()
    return lowered if lowered in ("true", "false") else None


def _read_integer(text: str) -> str | None:
    return text if _INTEGER.fullmatch(text) else None


def _read_number(text: str) -> str | None:
    return text if _NUMBER.fullmatch(text) else None


def _read_object(text: str) -> str | None:
    return _read_any(text) if text.startswith("{") else None


def _read_array(text: str) -> str | None:
    return _read_any(text) if text.startswith("[") else None


def _read_any(text: str) -> str | None:
    return text if is_json(text) else _read_literal(text)


def is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_literal(text: str) -> str | None:
    """JSON of what Python would take for a value: models mix the two up. No escapes, since Python warns of unknown
    ones."""
    if not _LITERAL.match(text) or len(text) > _MAX_LITERAL or "\\" in text:
        return None
    try:
        return json.dumps(ast.literal_eval(text), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


_READERS: dict[str, Callable[[str], str | None]] = {
    "boolean": _read_boolean,
    "integer": _read_integer,
    "number": _read_number,
    "object": _read_object,
    "array": _read_array,
}
_KNOWN_TYPES = frozenset(_READERS) | STRING_OR_NULL
