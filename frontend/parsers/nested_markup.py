"""Objects and arrays that are written as tags within tags, made JSON by their schema."""

from __future__ import annotations

from collections import Counter
from json.encoder import encode_basestring
from typing import Any

from dynamo.frontend.parsers.argument import json_of, types_of

ITEM = "item"
"""The tag of an array's elements."""


class Element:
    """One tag. Its children's values are JSON already, by their tags; a tag that is repeated has several."""

    __slots__ = ("children", "schema", "tag", "text")

    def __init__(self, tag: str, schema: Any) -> None:
        self.tag = tag
        self.schema = schema
        self.text = ""
        self.children: dict[str, list[str]] = {}

    def json(self) -> str:
        types = types_of(self.schema)
        if self.children:
            is_array = "array" in types and list(self.children) == [ITEM] and not self.text.strip()
            return _array(self.children[ITEM]) if is_array else self._object()
        if not self.text.strip() and "string" not in types:
            for name, empty in (("object", "{}"), ("array", "[]")):
                if name in types:
                    return empty
        return json_of(self.text, types)

    def _object(self) -> str:
        members = [(tag, values[0] if len(values) == 1 else _array(values)) for tag, values in self.children.items()]
        if self.text.strip():
            members.append(("$text", encode_basestring(self.text)))
        return "{" + ", ".join(f"{encode_basestring(key)}: {value}" for key, value in members) + "}"


def nested_json(text: str, prefix: str, schema: Any) -> str:
    """JSON of a value in which `prefix` stands before each tag, which has no more than a name. Tags that were never
    begun are left out, and those that never end do so with what they stand in."""
    value, *pieces = text.split(prefix)
    open_elements = [Element("", schema)]
    open_elements[0].text = value
    num_open: Counter[str] = Counter()
    for piece in pieces:
        tag, _, value = piece.removeprefix("<").partition(">")
        if not tag.startswith("/"):
            open_elements.append(Element(tag, _schema_of_child(open_elements[-1].schema, tag)))
            num_open[tag] += 1
        elif num_open[tag[1:]]:
            closed = ""
            while closed != tag[1:]:
                closed = _close_last(open_elements)
                num_open[closed] -= 1
        open_elements[-1].text += value
    while len(open_elements) > 1:
        _close_last(open_elements)
    return open_elements[0].json()


def _close_last(open_elements: list[Element]) -> str:
    element = open_elements.pop()
    open_elements[-1].children.setdefault(element.tag, []).append(element.json())
    return element.tag


def _schema_of_child(schema: Any, tag: str) -> Any:
    for option in _options(schema):
        if tag == ITEM and "items" in option:
            return option["items"]
        properties = option.get("properties")
        if isinstance(properties, dict) and tag in properties:
            return properties[tag]
        if isinstance(option.get("additionalProperties"), dict):
            return option["additionalProperties"]
    return None


def _options(schema: Any) -> list[dict[str, Any]]:
    """The schema, and those that it chooses between."""
    if not isinstance(schema, dict):
        return []
    chosen = [each for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list) for each in schema[key]]
    return [schema, *(each for each in chosen if isinstance(each, dict))]


def _array(values: list[str]) -> str:
    return "[" + ", ".join(values) + "]"
