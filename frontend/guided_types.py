"""Fields by which a client prescribes the form of the output, besides `guided_*` and `tool_choice`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

JsonObject: TypeAlias = dict[str, Any]


class JsonSchemaFormat(Struct):
    name: Annotated[str, Meta(min_length=1)]
    schema: JsonObject
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """`structural_tag` and `grammar` are vLLM's; a structural tag has a `format`, or the older pair `structures` and
    `triggers`."""

    type: Literal["text", "json_object", "json_schema", "structural_tag", "grammar"]
    json_schema: JsonSchemaFormat | None = None
    grammar: str | None = None
    format: JsonObject | None = None
    structures: list[JsonObject] | None = None
    triggers: list[str] | None = None


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's one object for all guides. A structural tag is an object, or the text of one."""

    json: JsonObject | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: JsonObject | str | None = None
    whitespace_pattern: str | None = None
    disable_fallback: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
