"""`tool_choice`, and the JSON a model must then write: the bare arguments of a named function, or for `required` an
array of `{"name", "parameters"}`."""

from __future__ import annotations

from typing import Any, TypeAlias

from dynamo.frontend.guided_types import JsonObject
from dynamo.frontend.openai_messages import shown, wrong_type
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.shared.errors import InvalidRequest

TOOL_CHOICES = ("none", "auto", "required")
NO_PARAMETERS: JsonObject = {"type": "object", "properties": {}}
DEFINITIONS = "#/$defs/"

Indexed: TypeAlias = tuple[int, JsonObject]
"""A function, after its index among `tools`."""


def check_tool_choice(tool_choice: str | JsonObject | None, names: set[str]) -> None:
    """Raises InvalidRequest. `names` are those of the functions among `tools`."""
    if isinstance(tool_choice, dict):
        _check_named(tool_choice, names)
        return
    if tool_choice is not None and tool_choice not in TOOL_CHOICES:
        raise InvalidRequest(
            f"tool_choice is {shown(tool_choice)}; it must be one of {', '.join(TOOL_CHOICES)} or name a function.",
            "tool_choice",
        )
    if tool_choice == "required" and not names:
        raise InvalidRequest('tool_choice "required" needs tools.', "tool_choice", "conflicting_fields")


def offer_allowed_tools(request: ChatCompletionRequest) -> None:
    """A choice of type allowed_tools becomes its mode, with the tools that it leaves. Raises InvalidRequest."""
    choice = request.tool_choice
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return
    path = "tool_choice.allowed_tools"
    allowed = choice.get("allowed_tools")
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
        raise wrong_type(path, 'an object such as {"mode":"auto","tools":[...]}', allowed)
    if allowed.get("mode", "auto") not in ("auto", "required"):
        raise wrong_type(f"{path}.mode", "auto or required", allowed["mode"])
    names = {_name_of(tool) for tool in allowed["tools"]}
    request.tools = [tool for tool in request.tools or () if _name_of(tool) in names - {None}] or None
    if request.tools is None:
        raise InvalidRequest(f"{path}.tools names none of tools.", f"{path}.tools", "conflicting_fields")
    request.tool_choice = allowed.get("mode", "auto")


def _name_of(tool: Any) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _check_named(tool_choice: JsonObject, names: set[str]) -> None:
    function = tool_choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if tool_choice.get("type") != "function" or not isinstance(name, str):
        raise wrong_type(
            "tool_choice",
            f'one of {", ".join(TOOL_CHOICES)} or an object {{"type":"function","function":{{"name":...}}}}',
            tool_choice,
        )
    if name not in names:
        raise InvalidRequest(
            f"tool_choice names the function {shown(name)}, which is not among tools.", "tool_choice.function.name"
        )


def forced_functions(request: ChatCompletionRequest) -> list[Indexed]:
    """The functions of which one must be called; none where the model may choose."""
    if request.tool_choice is None or not request.tools:
        return []
    functions = [(index, tool["function"]) for index, tool in enumerate(request.tools)]
    if isinstance(request.tool_choice, dict):
        name = request.tool_choice["function"]["name"]
        return [next(each for each in functions if each[1]["name"] == name)]
    return functions if request.tool_choice == "required" else []


def parameters_of(function: JsonObject) -> JsonObject:
    """A function that says nothing of its parameters has none."""
    parameters: JsonObject | None = function.get("parameters")
    return NO_PARAMETERS if parameters is None else parameters


def calls_schema(request: ChatCompletionRequest) -> JsonObject | None:
    """JSON schema of what the model must write; None where it may choose."""
    functions = [function for _, function in forced_functions(request)]
    if not functions:
        return None
    if isinstance(request.tool_choice, dict):
        return parameters_of(functions[0])
    schema = _array_schema(functions)
    return schema if request.parallel_tool_calls is not False else schema | {"maxItems": 1}


def _array_schema(functions: list[JsonObject]) -> JsonObject:
    """An array of at least one call, each of one of the `functions`. Its `$defs` are those of all of them."""
    definitions: JsonObject = {}
    calls = [
        {
            "properties": {
                "name": {"type": "string", "enum": [function["name"]]},
                "parameters": _within(definitions, function),
            },
            "required": ["name", "parameters"],
        }
        for function in functions
    ]
    schema: JsonObject = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}
    return schema | {"$defs": definitions} if definitions else schema


def _within(definitions: JsonObject, function: JsonObject) -> JsonObject:
    """Its parameters as part of a schema with these `definitions`, to which its own are added.

    References count from the root. Where all lead to `$defs`, these move there as they are; else, and where another
    function has other `$defs` of the same name, the parameters move there whole and are referred to.
    """
    parameters = parameters_of(function)
    references = _references(parameters)
    own = parameters.get("$defs")
    if not references and own is None:
        return parameters
    own = own or {}
    if all(reference.startswith(DEFINITIONS) for reference in references) and all(
        definitions.get(name, schema) == schema for name, schema in own.items()
    ):
        definitions.update(own)
        return {keyword: value for keyword, value in parameters.items() if keyword != "$defs"}
    name = _unused(function["name"], definitions)
    definitions[name] = _rebased(parameters, DEFINITIONS + name)
    return {"$ref": DEFINITIONS + name}


def _unused(name: str, definitions: JsonObject) -> str:
    while name in definitions:
        name += "_"
    return name


def _references(schema: Any) -> list[str]:
    pending, found = [schema], []
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                found.append(reference)
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


def _rebased(value: Any, root: str) -> Any:
    """With all references to what `root` refers to now."""
    if isinstance(value, list):
        return [_rebased(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: root + item[1:] if key == "$ref" and isinstance(item, str) else _rebased(item, root)
        for key, item in value.items()
    }
