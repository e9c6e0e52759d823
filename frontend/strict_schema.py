"""What the parameters of a function may be that is `strict`: those schemas that a model can be held to exactly.

All objects are closed and name all their properties as required, references stay within the schema, and there are
limits to size and depth. The rules are those of 1.6.1, found by asking it.
"""

from __future__ import annotations

from typing import Any

from dynamo.frontend.checked_schemas import RememberedSchemas, check_schema
from dynamo.frontend.guided_types import JsonObject
from dynamo.frontend.json_schema_check import Code, Path, spelled
from dynamo.frontend.openai_messages import wrong_type
from dynamo.shared.errors import InvalidRequest

MAX_OBJECT_DEPTH = 10
MAX_PROPERTIES = 5000
MAX_ENUM_VALUES = 1000
MAX_NAME_CHARACTERS = 120_000  # of properties, definitions and string values
MAX_LONG_ENUM_VALUES = 250  # with more, an enum of strings alone is limited in characters
MAX_LONG_ENUM_CHARACTERS = 15_000

UNSUPPORTED = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "allOf",
        "contains",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "oneOf",
        "patternProperties",
        "then",
        "unevaluatedItems",
        "uniqueItems",
    }
)
_SCHEMA = frozenset(
    {"additionalItems", "contentSchema", "items", "propertyNames", "unevaluatedProperties", "additionalProperties"}
)
_SCHEMAS = frozenset({"anyOf", "items", "prefixItems"})
_SCHEMA_MAPS = frozenset({"$defs", "definitions", "dependencies", "properties"})

remembered = RememberedSchemas()


def check_strict_tools(tools: list[JsonObject]) -> None:
    """Raises InvalidRequest."""
    for index, tool in enumerate(tools):
        function = tool["function"]
        strict = function.get("strict")
        if strict is None:
            continue
        path = f"tools[{index}].function"
        if not isinstance(strict, bool):
            raise wrong_type(f"{path}.strict", "a boolean", strict)
        if strict and function.get("parameters") is not None:
            remembered.check(function["parameters"], f"{path}.parameters", _check_strict)


def _check_strict(schema: JsonObject, param: str) -> None:
    check_schema(schema, param)
    _check_root(schema, param)
    StrictWalk(schema, param).run()


def _check_root(schema: JsonObject, param: str) -> None:
    """An object and nothing else, be it by reference. References have been checked: they lead somewhere."""
    root = schema
    while "$ref" in root and "type" not in root:
        root = _target(schema, root["$ref"])
    if root.get("type") not in ("object", ["object"]) or "anyOf" in schema:
        raise InvalidRequest(
            f'{param} must have the type "object", and no anyOf beside it, as the function is strict.', param
        )


def _target(schema: Any, reference: str) -> JsonObject:
    for token in reference[1:].split("/")[1:]:
        schema = schema[token.replace("~1", "/").replace("~0", "~")] if isinstance(schema, dict) else {}
    return schema if isinstance(schema, dict) else {}


class StrictWalk:
    """Visits every schema within one that is well-formed."""

    def __init__(self, root: JsonObject, param: str) -> None:
        self._param = param
        self._pending: list[tuple[Any, Path, int]] = [(root, None, 0)]
        self._num_properties = 0
        self._num_enum_values = 0
        self._num_characters = 0

    def run(self) -> None:
        while self._pending:
            schema, path, depth = self._pending.pop()
            if isinstance(schema, dict):
                self._visit(schema, path, depth)

    def _visit(self, schema: JsonObject, path: Path, depth: int) -> None:
        for keyword in UNSUPPORTED & schema.keys():
            raise self._fault((path, keyword), "is a keyword that a strict function cannot have")
        reference = schema.get("$ref")
        if reference is not None and reference != "#" and not reference.startswith("#/"):
            raise self._fault((path, "$ref"), "must lead to a place, as in #/$defs/name, since the function is strict")
        if self._is_object(schema):
            depth += 1
            self._check_object(schema, path, depth)
        self._count(schema, path)
        self._add_parts(schema, path, depth)

    @staticmethod
    def _is_object(schema: JsonObject) -> bool:
        kind = schema.get("type")
        return kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in schema

    def _check_object(self, schema: JsonObject, path: Path, depth: int) -> None:
        if depth > MAX_OBJECT_DEPTH + 1:
            raise self._fault(path, f"is nested more than {MAX_OBJECT_DEPTH} objects deep", "out_of_range")
        if schema.get("additionalProperties") is not False:
            raise self._fault(path, "needs additionalProperties: false, as the function is strict", "missing_field")
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if (optional := properties.keys() - set(required)) != set():
            names = ", ".join(sorted(optional)[:3])
            raise self._fault((path, "required"), f"must name all properties, as the function is strict; not {names}")
        if unknown := set(required) - properties.keys():
            raise self._fault((path, "required"), f"names {min(unknown)}, which is not among the properties")

    def _count(self, schema: JsonObject, path: Path) -> None:
        properties = schema.get("properties", ())
        values = schema.get("enum", ())
        self._num_properties += len(properties)
        self._num_enum_values += len(values)
        self._num_characters += sum(map(len, properties)) + _num_characters([*values, schema.get("const")])
        for name in ("$defs", "definitions"):
            self._num_characters += sum(map(len, schema.get(name, ())))
        if self._num_properties > MAX_PROPERTIES:
            raise self._fault(None, f"has more than {MAX_PROPERTIES} properties", "out_of_range")
        if self._num_enum_values > MAX_ENUM_VALUES:
            raise self._fault(None, f"has more than {MAX_ENUM_VALUES} values in enums", "out_of_range")
        if self._num_characters > MAX_NAME_CHARACTERS:
            what = f"has more than {MAX_NAME_CHARACTERS} characters in names and values"
            raise self._fault(None, what, "out_of_range")
        if len(values) > MAX_LONG_ENUM_VALUES and all(isinstance(value, str) for value in values):
            self._check_long_enum(values, path)

    def _check_long_enum(self, values: list[str], path: Path) -> None:
        if _num_characters(values) > MAX_LONG_ENUM_CHARACTERS:
            what = f"has more than {MAX_LONG_ENUM_VALUES} strings of more than {MAX_LONG_ENUM_CHARACTERS} characters"
            raise self._fault((path, "enum"), what, "out_of_range")

    def _add_parts(self, schema: JsonObject, path: Path, depth: int) -> None:
        for keyword, value in schema.items():
            place = (path, keyword)
            if keyword in _SCHEMA_MAPS:
                self._pending += [(part, (place, name), depth) for name, part in value.items()]
            elif keyword in _SCHEMAS and isinstance(value, list):
                self._pending += [(part, (place, index), depth) for index, part in enumerate(value)]
            elif keyword in _SCHEMA:
                self._pending.append((value, place, depth))

    def _fault(self, path: Path, what: str, code: Code = "invalid_value") -> InvalidRequest:
        param = self._param + spelled(path)
        return InvalidRequest(f"{param} {what}.", param, code)


def _num_characters(values: list[Any]) -> int:
    return sum(len(value) for value in values if isinstance(value, str))
