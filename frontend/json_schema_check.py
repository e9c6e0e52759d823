"""Whether a JSON schema is one, so that a bad schema is the client's error and never a worker's crash.

A table says what each keyword takes, by the drafts from 4 to 2020-12; a keyword that no draft knows is nobody's error.
All references must lead to a place inside of the schema, and following them must lead somewhere: nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote

from dynamo.frontend.guided_types import JsonObject
from dynamo.frontend.openai_messages import shown
from dynamo.frontend.regex_check import regex_fault
from dynamo.shared.errors import InvalidRequest

MAX_SCHEMAS = 10_000
MAX_DEPTH = 128
MAX_PATTERNS = 500

TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})

Code: TypeAlias = Literal["invalid_value", "invalid_type", "missing_field", "out_of_range"]

Path: TypeAlias = tuple[Any, str | int] | None
"""Where something is: the way to its container, and its place there. None is the schema itself."""


def check_every_keyword(schema: Any, param: str) -> None:
    """Raises InvalidRequest naming the place inside of the schema that is given as `param`."""
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{param} is {shown(schema)}; a JSON schema is an object.", param, "invalid_type")
    SchemaWalk(schema, param).run()


class SchemaWalk:
    """Visits every schema within `root` once. All checks raise InvalidRequest."""

    def __init__(self, root: JsonObject, param: str) -> None:
        self._root = root
        self._param = param
        self._pending: list[tuple[JsonObject, Path, int]] = [(root, None, 0)]
        self._seen = {id(root)}
        self._anchors: dict[str, JsonObject] = {}
        self._in_place: dict[int, list[int]] = {}  # schemas that apply to the very value another one applies to
        self._references: dict[int, tuple[str, Path]] = {}
        self._unresolved: list[int] = []
        self._num_patterns = 0
        self._is_draft_4 = "draft-04" in str(root.get("$schema"))

    def run(self) -> None:
        while self._pending:
            while self._pending:
                self._visit(*self._pending.pop())
            self._resolve_references()
        if self._references:
            self._check_for_circles()

    def _visit(self, schema: JsonObject, path: Path, depth: int) -> None:
        for keyword, value in schema.items():
            check = _KEYWORDS.get(keyword)
            if check is not None:
                check(self, schema, value, (path, keyword), depth)

    def fault(self, path: Path, what: str, code: Code = "invalid_value") -> InvalidRequest:
        """`what` follows the name of the place."""
        param = self._param + spelled(path)
        return InvalidRequest(f"{param} {what}.", param, code)

    def _add(self, schema: Any, path: Path, depth: int) -> None:
        if schema is True or schema is False:
            return
        if not isinstance(schema, dict):
            raise self.fault(path, f"is {shown(schema)}; a schema is an object or a boolean", "invalid_type")
        if id(schema) in self._seen:
            return
        if depth >= MAX_DEPTH:
            raise self.fault(path, f"is nested more than {MAX_DEPTH} schemas deep", "out_of_range")
        if len(self._seen) >= MAX_SCHEMAS:
            raise self.fault(None, f"holds more than {MAX_SCHEMAS} schemas", "out_of_range")
        self._seen.add(id(schema))
        self._pending.append((schema, path, depth + 1))

    # ------------------------------------------------------------------ what keywords take

    def schema(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        self._add(value, path, depth)

    def schema_or_schemas(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        """`items`: before draft 2020-12 also one for each place."""
        if isinstance(value, list):
            for index, schema in enumerate(value):
                self._add(schema, (path, index), depth)
        else:
            self._add(value, path, depth)

    def schemas(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        if not isinstance(value, list) or not value:
            raise self.fault(path, f"is {shown(value)}; it must be an array of at least one schema", "invalid_type")
        for index, schema in enumerate(value):
            self._add(schema, (path, index), depth)

    def schemas_in_place(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        self.schemas(parent, value, path, depth)
        self._in_place.setdefault(id(parent), []).extend(map(id, value))

    def schema_in_place(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        self._add(value, path, depth)
        self._in_place.setdefault(id(parent), []).append(id(value))

    def schema_map(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        for name, schema in self._map(value, path).items():
            self._add(schema, (path, name), depth)

    def schema_map_by_pattern(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        for pattern in self._map(value, path):
            self.pattern(parent, pattern, (path, pattern), depth)
        self.schema_map(parent, value, path, depth)

    def dependencies(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        for name, dependency in self._map(value, path).items():
            if isinstance(dependency, list):
                self.names(parent, dependency, (path, name), depth)
            else:
                self._add(dependency, (path, name), depth)

    def name_lists(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        for name, names in self._map(value, path).items():
            self.names(parent, names, (path, name), depth)

    def _map(self, value: Any, path: Path) -> JsonObject:
        if not isinstance(value, dict):
            raise self.fault(path, f"is {shown(value)}; it must be an object", "invalid_type")
        return value

    def names(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.fault(path, f"is {shown(value)}; it must be an array of strings", "invalid_type")
        if len(set(value)) != len(value):
            raise self.fault(path, f"is {shown(value)}; it may name nothing twice")

    def type_names(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name in TYPES for name in names):
            raise self.fault(path, f"is {shown(value)}; a type is one or more of {', '.join(sorted(TYPES))}")
        if len(set(names)) != len(names):
            raise self.fault(path, f"is {shown(value)}; it may name nothing twice")

    def values(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        if not isinstance(value, list) or not value:
            raise self.fault(path, f"is {shown(value)}; it must be an array of at least one value", "invalid_type")

    def array(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        if not isinstance(value, list):
            raise self.fault(path, f"is {shown(value)}; it must be an array", "invalid_type")

    def string(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        if not isinstance(value, str):
            raise self.fault(path, f"is {shown(value)}; it must be a string", "invalid_type")

    def boolean(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        if not isinstance(value, bool):
            raise self.fault(path, f"is {shown(value)}; it must be a boolean", "invalid_type")

    def number(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fault(path, f"is {shown(value)}; it must be a number", "invalid_type")

    def exclusive_bound(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        if not (self._is_draft_4 and isinstance(value, bool)):
            self.number(parent, value, path, depth)

    def positive_number(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        self.number(parent, value, path, depth)
        if value <= 0:
            raise self.fault(path, f"is {shown(value)}; it must be above 0", "out_of_range")

    def count(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        if not is_whole or value < 0:
            raise self.fault(path, f"is {shown(value)}; it must be a whole number of at least 0")

    def pattern(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        self.string(parent, value, path, depth)
        self._num_patterns += 1
        if self._num_patterns > MAX_PATTERNS:
            raise self.fault(None, f"holds more than {MAX_PATTERNS} regular expressions", "out_of_range")
        if (what := regex_fault(value)) is not None:
            raise self.fault(path, what)

    # ------------------------------------------------------------------ references

    def anchor(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        self.string(parent, value, path, depth)
        self._anchors["#" + value] = parent

    def identifier(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        """Until draft 7, one that is only a fragment is an anchor."""
        self.string(parent, value, path, depth)
        if value.startswith("#"):
            self._anchors[value] = parent

    def reference(self, parent: JsonObject, value: Any, path: Path, depth: int) -> None:
        self.string(parent, value, path, depth)
        if not value.startswith("#"):
            raise self.fault(
                path,
                f"is {shown(value)}; a reference must begin with # and lead into the same schema, nothing is fetched",
            )
        self._references[id(parent)] = (value, path)
        self._unresolved.append(id(parent))

    def _resolve_references(self) -> None:
        """What is referred to is a schema wherever it stands."""
        while self._unresolved:
            source = self._unresolved.pop()
            reference, path = self._references[source]
            target = self._anchors[reference] if reference in self._anchors else self._target(reference, path)
            if isinstance(target, dict):
                self._in_place.setdefault(source, []).append(id(target))
            self._add(target, path, reference.count("/"))

    def _target(self, reference: str, path: Path) -> Any:
        target: Any = self._root
        pointer = unquote(reference[1:])
        if pointer and not pointer.startswith("/"):
            raise self._unresolvable(reference, path)
        for token in pointer.split("/")[1:]:
            key = token.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isascii() and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise self._unresolvable(reference, path)
        return target

    def _unresolvable(self, reference: str, path: Path) -> InvalidRequest:
        what = f"is {shown(reference)}, and there is no such place in the schema"
        return self.fault(path, what)

    def _check_for_circles(self) -> None:
        """A schema that is met again without a step into the value would be followed for ever."""
        try:
            TopologicalSorter(self._in_place).prepare()
        except CycleError as error:
            place = next(node for node in error.args[1] if node in self._references)
            reference, path = self._references[place]
            what = f"is {shown(reference)}, which leads back to itself without an array or object between"
            raise self.fault(path, what, "invalid_value") from None


Check: TypeAlias = Callable[[SchemaWalk, JsonObject, Any, Path, int], None]
_CHECKS: dict[Check, tuple[str, ...]] = {
    SchemaWalk.schema: (
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    ),
    SchemaWalk.schema_in_place: ("else", "if", "not", "then"),
    SchemaWalk.schemas_in_place: ("allOf", "anyOf", "oneOf"),
    SchemaWalk.schemas: ("prefixItems",),
    SchemaWalk.schema_or_schemas: ("items",),
    SchemaWalk.schema_map: ("$defs", "definitions", "dependentSchemas", "properties"),
    SchemaWalk.schema_map_by_pattern: ("patternProperties",),
    SchemaWalk.dependencies: ("dependencies",),
    SchemaWalk.name_lists: ("dependentRequired",),
    SchemaWalk.names: ("required",),
    SchemaWalk.type_names: ("type",),
    SchemaWalk.values: ("enum",),
    SchemaWalk.array: ("examples",),
    SchemaWalk.string: (
        "$comment",
        "$dynamicRef",
        "$recursiveRef",
        "$schema",
        "contentEncoding",
        "contentMediaType",
        "description",
        "format",
        "title",
    ),
    SchemaWalk.boolean: ("deprecated", "readOnly", "uniqueItems", "writeOnly"),
    SchemaWalk.number: ("maximum", "minimum"),
    SchemaWalk.exclusive_bound: ("exclusiveMaximum", "exclusiveMinimum"),
    SchemaWalk.positive_number: ("multipleOf",),
    SchemaWalk.count: (
        "maxContains",
        "maxItems",
        "maxLength",
        "maxProperties",
        "minContains",
        "minItems",
        "minLength",
        "minProperties",
    ),
    SchemaWalk.pattern: ("pattern",),
    SchemaWalk.anchor: ("$anchor", "$dynamicAnchor"),
    SchemaWalk.identifier: ("$id",),
    SchemaWalk.reference: ("$ref",),
}
_KEYWORDS: dict[str, Check] = {keyword: check for check, keywords in _CHECKS.items() for keyword in keywords}

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_$-]+")


def spelled(path: Path) -> str:
    """As in `.properties.a.anyOf[0]`; a name that would be misread stands in brackets."""
    steps: list[str] = []
    while path is not None:
        path, place = path
        if isinstance(place, int):
            steps.append(f"[{place}]")
        else:
            steps.append(f".{place}" if _PLAIN_NAME.fullmatch(place) else f"[{shown(place)}]")
    return "".join(reversed(steps))
