"""`tool_choice`, and the guide by which a model cannot but call: the bare arguments of a named function, or for
`required` an array of `{"name", "parameters"}`."""

from __future__ import annotations

from typing import Any

from dynamo.frontend.guided_types import JsonObject
from dynamo.frontend.openai_messages import shown, wrong_type
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.shared.errors import InvalidRequest

TOOL_CHOICES = ("none", "auto", "required")
NO_PARAMETERS: JsonObject = {"type": "object", "properties": {}}


def check_tool_choice(tool_choice: str | JsonObject, names: set[str]) -> None:
    """`names` are those of the functions among `tools`."""
    if isinstance(tool_choice, str):
        if tool_choice not in TOOL_CHOICES:
            raise InvalidRequest(
                f"tool_choice is {shown(tool_choice)}; it must be one of {', '.join(TOOL_CHOICES)} or name a function.",
                "tool_choice",
            )
        if tool_choice == "required" and not names:
            raise InvalidRequest('tool_choice "required" needs tools.', "tool_choice", "conflicting_fields")
        return
    function = tool_choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if tool_choice.get("type") != "function" or not isinstance(name, str):
        raise wrong_type("tool_choice", 'an object such as {"type":"function","function":{"name":...}}', tool_choice)
    if name not in names:
        raise InvalidRequest(
            f"tool_choice names the function {shown(name)}, which is not among tools.", "tool_choice.function.name"
        )


def forced_functions(request: ChatCompletionRequest) -> list[tuple[int, JsonObject]]:
    """The functions of which one must be called, each with its index among `tools`; none where the model may choose."""
    if request.tool_choice is None or not request.tools:
        return []
    functions = [(index, tool["function"]) for index, tool in enumerate(request.tools)]
    if isinstance(request.tool_choice, dict):
        name = request.tool_choice["function"]["name"]
        return [next(each for each in functions if each[1]["name"] == name)]
    return functions if request.tool_choice == "required" else []


def calls_schema(request: ChatCompletionRequest) -> JsonObject | None:
    """JSON schema of what the model must write; None where it may choose."""
    functions = [function for _, function in forced_functions(request)]
    if not functions:
        return None
    if isinstance(request.tool_choice, dict):
        return _parameters(functions[0])
    schema = _array_schema(functions)
    return schema if request.parallel_tool_calls is not False else schema | {"maxItems": 1}


def _array_schema(functions: list[JsonObject]) -> JsonObject:
    """An array of at least one call, each of one of the `functions`."""
    calls = [
        {
            "properties": {"name": {"type": "string", "enum": [function["name"]]}, "parameters": _parameters(function)},
            "required": ["name", "parameters"],
        }
        for function in functions
    ]
    return {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}


def _parameters(function: JsonObject) -> JsonObject:
    """A function that says nothing of its parameters has none."""
    parameters: Any = function.get("parameters")
    return NO_PARAMETERS if parameters is None else parameters
