"""Calls guided in the format that the model writes anyway, by xgrammar's structural tags.

A worker's card says whether and when: `scope` "auto" is for calls that must be made, for functions that are `strict`,
and where only one call is allowed; "always" is for all requests with tools. With `schema` "strict" functions are held
to their parameters even where a request says `strict: false`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from msgspec import UNSET, Struct

from dynamo.frontend.forced_calls import forced_functions
from dynamo.frontend.guided_types import JsonObject
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.shared.protocol import RuntimeConfig

DSML = "\N{FULLWIDTH VERTICAL LINE}DSML\N{FULLWIDTH VERTICAL LINE}"

Function: TypeAlias = tuple[str, JsonObject | bool]
"""Name, and what its arguments are held to; True is for anything."""

Builder: TypeAlias = Callable[[list[Function], bool, bool], JsonObject]
"""(functions, a call must be made, only one may be) -> format."""


class StructuralTags(Struct, frozen=True):
    build: Builder
    is_always: bool = False
    is_strict: bool = False

    def tag(self, request: ChatCompletionRequest) -> JsonObject | None:
        """None where the model is left to itself."""
        if not request.tools or request.tool_choice == "none":
            return None
        forced = [function for _, function in forced_functions(request)]
        is_single = request.parallel_tool_calls is False
        functions = forced or [tool["function"] for tool in request.tools]
        if not (forced or self.is_always or is_single or any(function.get("strict") for function in functions)):
            return None
        held = [(function["name"], self._schema(function)) for function in functions]
        return {"type": "structural_tag", "format": self.build(held, bool(forced), is_single)}

    def _schema(self, function: JsonObject) -> JsonObject | bool:
        parameters: JsonObject | None = function.get("parameters")
        if parameters is None or (function.get("strict") is False and not self.is_strict):
            return True
        return parameters


def structural_tags(config: RuntimeConfig) -> StructuralTags | None:
    """None where calls are not to be guided, or are guided as plain JSON because their format cannot be told this way.

    `structural_tag` says it all, None for no; cards of older workers have three fields instead.
    """
    build = _BUILDERS.get(config.tool_call_parser or "")
    policy = config.structural_tag
    if policy is UNSET and config.structural_tag_mode == "on":
        policy = {"scope": config.structural_tag_scope, "schema": config.structural_tag_schema}
    if build is None or not isinstance(policy, dict):
        return None
    return StructuralTags(build, policy.get("scope") == "always", policy.get("schema") == "strict")


def _held_to(schema: JsonObject | bool, style: str) -> JsonObject:
    return {"type": "json_schema", "json_schema": schema, "style": style}


def _tag(begin: str, content: JsonObject, end: str) -> JsonObject:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def _triggered(trigger: str, tags: Iterable[JsonObject], is_forced: bool, is_single: bool) -> JsonObject:
    """Free text until the model writes `trigger`; from there on one of the `tags`."""
    return {
        "type": "triggered_tags",
        "triggers": [trigger],
        "tags": list(tags),
        "at_least_one": is_forced,
        "stop_after_first": is_single,
    }


def _json_in_tags(functions: list[Function], is_forced: bool, is_single: bool) -> JsonObject:
    tags = (
        _tag(f'<tool_call>\n{{"name": "{name}", "arguments": ', _held_to(schema, "json"), "}\n</tool_call>")
        for name, schema in functions
    )
    return _triggered("<tool_call>", tags, is_forced, is_single)


def _qwen_xml(functions: list[Function], is_forced: bool, is_single: bool) -> JsonObject:
    tags = (
        _tag(f"<tool_call>\n<function={name}>\n", _held_to(schema, "qwen_xml"), "\n</function>\n</tool_call>")
        for name, schema in functions
    )
    return _triggered("<tool_call>\n<function=", tags, is_forced, is_single)


def _dsml(block: str) -> Builder:
    """DeepSeek's markup; `block` is the name of what holds all calls."""
    begin, end = f"<{DSML}{block}>", f"</{DSML}{block}>"

    def build(functions: list[Function], is_forced: bool, is_single: bool) -> JsonObject:
        calls: JsonObject = {
            "type": "tags_with_separator",
            "tags": [
                _tag(f'<{DSML}invoke name="{name}">\n', _held_to(schema, "deepseek_xml"), f"</{DSML}invoke>\n")
                for name, schema in functions
            ],
            "separator": "",
            "at_least_one": True,
            "stop_after_first": is_single,
        }
        return _triggered(begin, [_tag(f"{begin}\n", calls, end)], is_forced, is_single)

    return build


_DEEPSEEK_V4 = _dsml("tool_calls")
_BUILDERS: dict[str, Builder] = {
    "hermes": _json_in_tags,
    "qwen25": _json_in_tags,
    "qwen3_coder": _qwen_xml,
    "nemotron_nano": _qwen_xml,
    "deepseek_v3_2": _dsml("function_calls"),
    "deepseek_v4": _DEEPSEEK_V4,
    "deepseek-v4": _DEEPSEEK_V4,
    "deepseekv4": _DEEPSEEK_V4,
}
