"""Tools of the Responses API as functions of a chat, and calls of those functions as the items its clients look for.

Models call functions by name, so all of these become functions:

    function             itself
    in a namespace       `<namespace>__<name>`
    custom               a function of one string, for its input is any text
    tool_search          a function, where the client does the search; what it finds is offered from then on

What OpenAI's servers would run is not offered: no tool that is offered has to be used, and agents list such tools for
every model they talk to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from dynamo.frontend.openai_messages import shown, wrong_type
from dynamo.frontend.openai_requests import MAX_TOOLS, JsonObject
from dynamo.frontend.parsers.message import ToolCallDelta
from dynamo.frontend.responses_requests import Input, ResponsesPrompt
from dynamo.shared.errors import InvalidRequest

log = logging.getLogger("dynamo.http")

CUSTOM_INPUT = "input"
TOOL_SEARCH = "tool_search"
TOOL_LISTS = ("additional_tools", "tool_search_output")
"""Items of an input that bring tools along."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class OfferedTool(Struct, frozen=True):
    """`function` is what the chat's model is offered, `name` and `namespace` are what the client calls it."""

    type: str
    name: Any
    namespace: str | None
    function: JsonObject


SpecialTools = Mapping[str, OfferedTool]
"""Those whose calls are told otherwise than as plain function calls, by the name of the function."""


def offered_tools(request: ResponsesPrompt) -> list[OfferedTool]:
    """Raises InvalidRequest."""
    offered = list(_offered(request.tools or (), "tools"))
    for path, tools in _brought_along(request.input):
        offered += _offered(tools, path)
    if len(offered) > MAX_TOOLS:
        raise InvalidRequest(f"There are {len(offered)} tools; at most {MAX_TOOLS} are allowed.", "tools")
    return offered


def special_tools(request: ResponsesPrompt) -> SpecialTools:
    if all(tool.get("type") == "function" for tool in request.tools or ()) and not any(_brought_along(request.input)):
        return {}
    return {
        tool.function["name"]: tool
        for tool in offered_tools(request)
        if tool.type != "function" or tool.namespace is not None
    }


def function_name(name: str, namespace: Any) -> str:
    return f"{namespace}__{name}" if isinstance(namespace, str) and namespace else name


def custom_arguments(text: str) -> str:
    """Of a call of the function that stands for a custom tool."""
    return _encode({CUSTOM_INPUT: text}).decode()


def found_names(item: JsonObject, path: str) -> str:
    """What a search has found, as the model reads it."""
    names = [tool.function.get("name") for tool in _offered(item.get("tools") or (), f"{path}.tools")]
    return _encode(names).decode()


# --------------------------------------------------------------------------- tools


def _brought_along(given: Input) -> Iterator[tuple[str, list[Any]]]:
    if isinstance(given, str):
        return
    for index, item in enumerate(given):
        if item.get("type") in TOOL_LISTS and (tools := item.get("tools")):
            if not isinstance(tools, list):
                raise wrong_type(f"input[{index}].tools", "an array of tools", tools)
            yield f"input[{index}].tools", tools


def _offered(tools: Iterable[Any], path: str, namespace: str | None = None) -> Iterator[OfferedTool]:
    for index, tool in enumerate(tools):
        at = f"{path}[{index}]"
        if not isinstance(tool, dict):
            raise wrong_type(at, "an object", tool)
        kind = tool.get("type")
        if kind == "namespace" and namespace is None:
            yield from _offered(_members(tool, at), f"{at}.tools", _name(tool, at))
        elif kind == "function" or kind == "custom" or (kind == TOOL_SEARCH and tool.get("execution") == "client"):
            yield _offer(tool, kind, namespace, at)
        else:
            log.info("the tool %s of type %s is not offered: nobody here runs it", at, shown(kind))


def _offer(tool: JsonObject, kind: str, namespace: str | None, path: str) -> OfferedTool:
    if kind == TOOL_SEARCH:
        return OfferedTool(kind, TOOL_SEARCH, None, _search_function(tool))
    name = tool.get("name") if kind == "function" and namespace is None else _name(tool, path)
    function = _custom_function(tool) if kind == "custom" else _plain_function(tool)
    if isinstance(name, str):
        function["name"] = function_name(name, namespace)
    return OfferedTool(kind, name, namespace, function)


def _plain_function(tool: JsonObject) -> JsonObject:
    return {name: value for name, value in tool.items() if name != "type" and value is not None}


def _custom_function(tool: JsonObject) -> JsonObject:
    text: JsonObject = {"type": "string"}
    if isinstance(form := tool.get("format"), dict) and form.get("type") == "grammar":
        text["description"] = f"Text of this {form.get('syntax')} grammar:\n{form.get('definition')}"
    parameters = {"type": "object", "properties": {CUSTOM_INPUT: text}, "required": [CUSTOM_INPUT]}
    return {"name": None, "description": tool.get("description") or "", "parameters": parameters}


def _search_function(tool: JsonObject) -> JsonObject:
    return {
        "name": TOOL_SEARCH,
        "description": tool.get("description") or "",
        "parameters": tool.get("parameters") or {"type": "object", "properties": {}},
    }


def _members(tool: JsonObject, path: str) -> list[Any]:
    tools = tool.get("tools")
    if not isinstance(tools, list):
        raise wrong_type(f"{path}.tools", "an array of tools", tools)
    return tools


def _name(tool: JsonObject, path: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str):
        raise wrong_type(f"{path}.name", "a string", name)
    return name


# --------------------------------------------------------------------------- calls


def call_item(call: ToolCallDelta, tool: OfferedTool | None, id: str, status: str) -> JsonObject:
    """A whole call, or one that has only begun."""
    told = {"id": id, "call_id": call.id, "status": status}
    if tool is None:
        return {"type": "function_call", **told, "name": call.name, "arguments": call.arguments}
    if tool.type == TOOL_SEARCH:
        return {"type": "tool_search_call", **told, "execution": "client", "arguments": _object(call.arguments)}
    named = {"name": tool.name} | ({} if tool.namespace is None else {"namespace": tool.namespace})
    if tool.type == "custom":
        return {"type": "custom_tool_call", **told, **named, "input": custom_input(call.arguments)}
    return {"type": "function_call", **told, **named, "arguments": call.arguments}


def custom_input(arguments: str) -> str:
    """Of a custom tool; a model that has not written the JSON it was to write has written the text itself."""
    text = _object(arguments).get(CUSTOM_INPUT)
    return text if isinstance(text, str) else arguments


def _object(arguments: str) -> JsonObject:
    try:
        value = _decode(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
