from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend.guided_decoding import guided_decoding
from dynamo.frontend.openai import decode_chat, decode_completion
from dynamo.frontend.structural_tags import structural_tags
from dynamo.shared.errors import InvalidRequest
from dynamo.shared.protocol import RuntimeConfig

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TAG = {"type": "structural_tag", "format": {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "b"}}
OLD_TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<a>", "schema": SCHEMA, "end": "</a>"}],
    "triggers": ["<a"],
}
NAMED = {"type": "function", "function": {"name": "f"}}


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def told(**fields: Any) -> Any:
    return guided_decoding(decode_chat(json.dumps({**CHAT, **fields}).encode()))


def refusal(**fields: Any) -> tuple[str | None, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        told(**fields)
    return caught.value.param, caught.value.code


STRUCTURED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"json": SCHEMA}, {"json": SCHEMA}),
    ({"json": json.dumps(SCHEMA)}, {"json": json.dumps(SCHEMA)}),
    ({"json_object": True}, {"json": {"type": "object"}}),
    ({"regex": "a+", "json_object": False}, {"regex": "a+"}),
    ({"choice": ["a", "b"], "disable_fallback": False}, {"choice": ["a", "b"]}),
    ({"grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
    ({"structural_tag": TAG}, {"structural_tag": TAG}),
    ({"structural_tag": json.dumps(OLD_TAG)}, {"structural_tag": json.dumps(OLD_TAG)}),
    ({"json": {}, "whitespace_pattern": "[ ]"}, {"json": {}, "whitespace_pattern": "[ ]"}),
]


@pytest.mark.parametrize(("outputs", "expected"), STRUCTURED, ids=str)
def test_structured_outputs_are_guides_by_other_names(outputs: dict[str, Any], expected: dict[str, Any]) -> None:
    assert told(structured_outputs=outputs) == expected
    body = {"model": "m", "prompt": "hi", "structured_outputs": outputs}
    assert guided_decoding(decode_completion(json.dumps(body).encode())) == expected


@pytest.mark.parametrize("tag", [TAG, OLD_TAG], ids=["format", "structures"])
def test_response_formats_of_vllm(tag: dict[str, Any]) -> None:
    assert told(response_format=tag) == {"structural_tag": tag}
    assert told(response_format={"type": "grammar", "grammar": "start: A"}) == {"grammar": "start: A"}


def in_tag(content: Any) -> dict[str, Any]:
    return {"response_format": {"type": "structural_tag", "format": {"type": "sequence", "elements": [content]}}}


def formatted(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


BAD_TYPE = {"properties": {"a": {"type": "text"}}}
TAGGED = "response_format.format.elements[0]"
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (formatted(BAD_TYPE), "response_format.json_schema.schema.properties.a.type", "invalid_value"),
    (formatted(True), "response_format.json_schema.schema", "invalid_type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_field"),
    ({"response_format": {"type": "grammar"}}, "response_format.grammar", "missing_field"),
    ({"response_format": {"type": "grammar", "grammar": "("}}, "response_format.grammar", "invalid_value"),
    ({"response_format": {"type": "structural_tag"}}, "response_format", "missing_field"),
    (
        in_tag({"type": "json_schema", "json_schema": BAD_TYPE}),
        f"{TAGGED}.json_schema.properties.a.type",
        "invalid_value",
    ),
    (in_tag({"type": "regex", "pattern": "("}), f"{TAGGED}.pattern", "invalid_value"),
    (in_tag({"type": "regex"}), f"{TAGGED}.pattern", "invalid_type"),
    (in_tag({"type": "tag", "content": 5}), f"{TAGGED}.content", "invalid_type"),
    (
        {"response_format": {**OLD_TAG, "structures": [{"begin": "a", "end": "b", "schema": BAD_TYPE}]}},
        "response_format.structures[0].schema.properties.a.type",
        "invalid_value",
    ),
    ({"response_format": {**OLD_TAG, "triggers": []}}, "response_format.triggers", "invalid_type"),
    ({"guided_json": BAD_TYPE}, "guided_json.properties.a.type", "invalid_value"),
    ({"guided_json": "{"}, "guided_json", "invalid_value"),
    ({"guided_json": "[]"}, "guided_json", "invalid_type"),
    ({"guided_json": True}, "guided_json", "invalid_type"),
    ({"guided_regex": ""}, "guided_regex", "out_of_range"),
    ({"guided_regex": "["}, "guided_regex", "invalid_value"),
    ({"guided_choice": []}, "guided_choice", "out_of_range"),
    ({"guided_choice": [1]}, "guided_choice[0]", "invalid_type"),
    ({"guided_choice": ["a"] * 5000}, "guided_choice", "out_of_range"),
    ({"guided_grammar": " "}, "guided_grammar", "invalid_value"),
    ({"guided_whitespace_pattern": "("}, "guided_whitespace_pattern", "invalid_value"),
    ({"structured_outputs": {}}, "structured_outputs", "missing_field"),
    ({"structured_outputs": {"json": BAD_TYPE}}, "structured_outputs.json.properties.a.type", "invalid_value"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "missing_field"),
    (
        {"structured_outputs": {"regex": "a", "disable_any_whitespace": True}},
        "structured_outputs.disable_any_whitespace",
        "unsupported_field",
    ),
    (
        {"structured_outputs": {"json": {}, "whitespace_pattern": "("}},
        "structured_outputs.whitespace_pattern",
        "invalid_value",
    ),
    (
        {"tools": [tool(), tool("g", parameters=BAD_TYPE)], "tool_choice": "required"},
        "tools[1].function.parameters.properties.a.type",
        "invalid_value",
    ),
    (
        {"tools": [tool("g", parameters={"x": 2**70}), tool(parameters={"$ref": "#/a"})], "tool_choice": NAMED},
        "tools[1].function.parameters.$ref",
        "invalid_value",
    ),
    ({"tools": [tool(strict="yes")]}, "tools[0].function.strict", "invalid_type"),
    ({"tools": [tool(strict=True, parameters=SCHEMA)]}, "tools[0].function.parameters", "missing_field"),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_no_engine_could_follow_is_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    assert refusal(**fields) == (param, code)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"guided_json": {}, "guided_regex": "a"}, ("guided_json", "guided_regex")),
        ({"guided_json": {}, **formatted({})}, ("guided_json", "response_format.json_schema.schema")),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, ("guided_regex", "structured_outputs.regex")),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            ("structured_outputs.regex", "structured_outputs.choice"),
        ),
        (
            {"structured_outputs": {"regex": "a"}, "tools": [tool()], "tool_choice": NAMED},
            ("structured_outputs.regex", "tool_choice"),
        ),
    ],
    ids=str,
)
def test_two_guides_are_a_conflict_that_names_both(fields: dict[str, Any], names: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        told(**fields)
    assert (caught.value.param, caught.value.code) == (names[1], "conflicting_fields")
    assert all(name in str(caught.value) for name in names)


def test_schemas_of_tools_that_guide_nothing_are_not_looked_at() -> None:
    assert told(tools=[tool(parameters=BAD_TYPE)]) is None


def test_cards_of_older_workers_have_three_fields() -> None:
    request = decode_chat(json.dumps({**CHAT, "tools": [tool()], "tool_choice": NAMED}).encode())
    told_by: dict[str, dict[str, Any]] = {
        "a policy": {"structural_tag": {"scope": "auto"}},
        "three fields": {"structural_tag_mode": "on"},
        "nothing": {},
        "no policy": {"structural_tag": None, "structural_tag_mode": "on"},
        "another parser": {"structural_tag": {}, "tool_call_parser": "mistral"},
    }
    guides = {
        name: guided_decoding(
            request, structural_tags(msgspec.convert({"tool_call_parser": "hermes", **fields}, RuntimeConfig))
        )
        for name, fields in told_by.items()
    }
    assert {name: list(guide or ()) for name, guide in guides.items()} == {
        "a policy": ["structural_tag"],
        "three fields": ["structural_tag"],
        "nothing": ["json"],
        "no policy": ["json"],
        "another parser": ["json"],
    }


def test_the_library_that_the_tests_check_schemas_with_is_not_loaded() -> None:
    code = "import sys, dynamo.frontend.openai; sys.exit('jsonschema' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


NAMES = (
    "type json_schema schema name format content tags structures begin end properties $ref items enum function"
    " parameters strict anyOf triggers json regex choice grammar structural_tag json_object whitespace_pattern"
)
FIELDS = (
    "response_format structured_outputs guided_json guided_regex guided_choice guided_grammar"
    " guided_whitespace_pattern tools tool_choice parallel_tool_calls"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["object", "#", "(", "auto"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), values, max_size=4),
    max_leaves=10,
)
FORMATS = st.builds(
    lambda kind, rest: {**rest, "type": kind},
    st.sampled_from(["json_object", "json_schema", "structural_tag", "grammar"]),
    st.dictionaries(st.sampled_from(["json_schema", "format", "structures", "triggers", "grammar"]), JSON, max_size=3),
)
TOOLS = st.lists(st.builds(lambda schema, strict: tool(parameters=schema, strict=strict), JSON, st.booleans()))


@settings(deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(FIELDS.split()), JSON, max_size=3)
    | st.builds(lambda schema: formatted(schema), JSON)
    | st.builds(lambda form: {"response_format": form}, FORMATS)
    | st.builds(
        lambda tools, choice: {"tools": tools, "tool_choice": choice}, TOOLS, st.sampled_from(["required", NAMED])
    )
)
def test_whatever_a_client_sends_only_the_client_is_at_fault(fields: dict[str, Any]) -> None:
    try:
        told(**fields)
    except InvalidRequest as error:
        assert error.param  # noqa: PT017  # most of what is generated is refused, and some is not
