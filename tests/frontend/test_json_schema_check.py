from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend import json_schema_check
from dynamo.frontend.checked_schemas import RememberedSchemas, check_schema
from dynamo.frontend.grammar_check import grammar_fault
from dynamo.frontend.json_schema_check import MAX_DEPTH, MAX_PATTERNS, MAX_SCHEMAS, check_every_keyword
from dynamo.frontend.regex_check import regex_fault
from dynamo.shared.errors import InvalidRequest

STRING = {"type": "string"}


def fault(schema: Any) -> str | None:
    """The place at fault, after the name of the field."""
    try:
        check_schema(schema, "s")
    except InvalidRequest as error:
        return error.param if str(error.param) in str(error) else f"{error.param} is not in: {error}"
    return None


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = STRING
    for _ in range(depth):
        schema = {"items": schema}
    return schema


GOOD: list[Any] = [
    {},
    {"type": ["string", "null"], "title": "t", "x-unknown": {"type": 5}, "nullable": True},
    {"properties": {"a": True, "b": False, "c": {"items": [STRING, {}]}}, "additionalProperties": False},
    {"anyOf": [STRING, {"enum": [1, None, {"$ref": 5}]}], "minLength": 1.0, "multipleOf": 0.5},
    {"$ref": "#/$defs/a~1b", "$defs": {"a/b": STRING}},
    {"$ref": "#/definitions/a%20b", "definitions": {"a b": STRING}},
    {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
    {"items": {"$ref": "#name"}, "$defs": {"a": {"$anchor": "name"}}},
    {"items": {"$ref": "#/x/0"}, "x": [{"items": {"$ref": "#/y"}}], "y": STRING},
    {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True},
    {"dependencies": {"a": ["b"], "c": STRING}, "dependentRequired": {"a": ["b"]}},
    {"patternProperties": {r"^\p{L}+$": STRING}, "pattern": "(?<year>[0-9]{4})-\\k<year>"},
    nested(MAX_DEPTH),
]

BAD: list[tuple[Any, str]] = [
    (True, "s"),
    ("{}", "s"),
    ({"type": "text"}, "s.type"),
    ({"type": ["string", "string"]}, "s.type"),
    ({"type": []}, "s.type"),
    ({"properties": []}, "s.properties"),
    ({"properties": {"a": {"type": 5}}}, "s.properties.a.type"),
    ({"properties": {"a/b.c": 5}}, 's.properties["a/b.c"]'),
    ({"anyOf": []}, "s.anyOf"),
    ({"anyOf": [{}, {"items": 5}]}, "s.anyOf[1].items"),
    ({"required": "a"}, "s.required"),
    ({"required": ["a", "a"]}, "s.required"),
    ({"required": True}, "s.required"),
    ({"enum": []}, "s.enum"),
    ({"enum": "a"}, "s.enum"),
    ({"minLength": -1}, "s.minLength"),
    ({"minLength": 1.5}, "s.minLength"),
    ({"minimum": True}, "s.minimum"),
    ({"exclusiveMinimum": True}, "s.exclusiveMinimum"),
    ({"multipleOf": 0}, "s.multipleOf"),
    ({"description": 5}, "s.description"),
    ({"uniqueItems": 1}, "s.uniqueItems"),
    ({"pattern": "("}, "s.pattern"),
    ({"patternProperties": {"[": {}}}, 's.patternProperties["["]'),
    ({"dependentRequired": {"a": "b"}}, "s.dependentRequired.a"),
    ({"$ref": 5}, "s.$ref"),
    ({"$ref": "http://localhost/schema"}, "s.$ref"),
    ({"$ref": "other.json#/a"}, "s.$ref"),
    ({"items": {"$ref": "#/$defs/a"}}, "s.items.$ref"),
    ({"items": {"$ref": "#name"}}, "s.items.$ref"),
    ({"items": {"$ref": "#/x"}, "x": 5}, "s.items.$ref"),
    ({"$ref": "#"}, "s.$ref"),
    ({"$anchor": "a", "$ref": "#a"}, "s.$ref"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "s.$defs.a.allOf[0].$ref"),
    ({"maximum": 2**64}, "s.maximum"),
    ({"default": [{"a": -(2**63) - 1}]}, "s.default[0].a"),
    ({"anyOf": [{}] * 2, "x": "y" * (1 << 20)}, "s"),
    ({"allOf": [{"pattern": "a"} for _ in range(MAX_PATTERNS + 1)]}, "s"),
    ({"anyOf": [{"type": "null"} for _ in range(MAX_SCHEMAS)]}, "s"),
]


@pytest.mark.parametrize("schema", GOOD, ids=lambda schema: str(schema)[:60])
def test_a_good_schema(schema: Any) -> None:
    assert fault(schema) is None


@pytest.mark.parametrize(("schema", "place"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_schema_is_refused_at_its_place(schema: Any, place: str) -> None:
    assert fault(schema) == place


def test_depth_is_limited() -> None:
    place = fault(nested(MAX_DEPTH + 1))
    assert place is not None
    assert place.startswith("s.items.items")


def test_a_schema_that_was_good_is_not_looked_at_again() -> None:
    remembered = RememberedSchemas(2)
    looked_at = []

    def look(schema: Any, param: str) -> None:
        looked_at.append(schema)
        check_every_keyword(schema, param)

    first, second, third = ({"const": number} for number in range(3))
    for schema in (first, second, dict(first), third, dict(first), second):
        remembered.check(schema, "s", look)
    assert looked_at == [first, second, third, second]
    assert (remembered.num_hits, remembered.num_misses, len(remembered)) == (2, 4, 2)


def test_a_bad_schema_stays_bad() -> None:
    assert fault({"type": "x"}) == fault({"type": "x"}) == "s.type"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)
KEYWORDS = st.sampled_from(sorted(json_schema_check._KEYWORDS))
SCHEMA_LIKE = st.recursive(
    JSON | st.sampled_from(["#", "#/$defs/a", "string", "array", "^a"]),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(KEYWORDS, values, max_size=4)
        | st.dictionaries(st.sampled_from("abc"), values, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, derandomize=True)
@given(SCHEMA_LIKE)
def test_whatever_is_given_only_the_client_is_at_fault(schema: Any) -> None:
    fault(schema)


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(KEYWORDS, SCHEMA_LIKE, max_size=4))
def test_what_is_good_is_good_by_the_metaschema_too(schema: Any) -> None:
    """Of the newest draft; older ones are accepted here as well, and a draft that is named is another metaschema."""
    older = ("definitions", "dependencies", "items", "additionalItems", "$schema", "$id", "$anchor", "$dynamicAnchor")
    if fault(schema) is None and not any(f"'{keyword}'" in str(schema) for keyword in older):
        jsonschema.Draft202012Validator.check_schema(schema)


REGEXES = ["a+", r"\p{L}\P{Lu}", "(?<x>a)\\k<x>", "a(?i:b)(?i)", "(?<=a+)b", r"\z\A\/", r"\u{1F600}\u00e9", "[[a]&&b]"]
NO_REGEXES = ["(", "[a", "a{2,1}", "a**", "\\", r"\1", "a{99999999999999999999}", "(" * 5000, "a" * 20_000]


def test_regular_expressions_of_any_dialect() -> None:
    assert [pattern for pattern in REGEXES if regex_fault(pattern) is not None] == []
    assert [pattern for pattern in NO_REGEXES if regex_fault(pattern) is None] == []


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="ab\\()[]{}?<>=!:*+|^$-,09pPkukzxiP&\u00e9", max_size=20))
def test_reading_a_regular_expression_never_raises(pattern: str) -> None:
    regex_fault(pattern)


GRAMMARS = [
    'root ::= "a" | [^"(] b # ( "\nb ::= ("c" root)* "\\""',
    '?start: "a" (NAME | /[("]/)* // "(\nNAME: /[a-z]+/',
    'start: "a"',
]
NO_GRAMMARS = {
    "": "empty",
    " \n": "empty",
    "g": "no rule",
    'a ::= "b"': "no rule",
    '# root ::= "b"\na ::= "c"': "no rule",
    'root ::= "a': "quote in line 1",
    'root ::= "a"\nb ::= ("c"': "( in line 2 that is not closed",
    'root ::= "a")': ") in line 1 that closes nothing",
    'start: "a" [NAME)': ") in line 1",
    "root ::= a" * 100_000: "characters",
}


def test_grammars_of_both_kinds() -> None:
    assert [grammar for grammar in GRAMMARS if grammar_fault(grammar) is not None] == []


@pytest.mark.parametrize(("grammar", "what"), NO_GRAMMARS.items(), ids=lambda text: text[:20])
def test_what_is_no_grammar(grammar: str, what: str) -> None:
    assert what in str(grammar_fault(grammar))


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet='root:= start"[]()/#\\\n|ab', max_size=40))
def test_reading_a_grammar_never_raises(grammar: str) -> None:
    grammar_fault(grammar)
