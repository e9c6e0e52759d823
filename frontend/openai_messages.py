"""Chat messages and tools are checked as the plain dicts they stay, by the rules of their role."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from dynamo.frontend.openai_requests import JsonObject, Message
from dynamo.shared.errors import InvalidRequest

TEXT_PARTS = frozenset({"text"})
ASSISTANT_PARTS = frozenset({"text", "refusal"})
MEDIA_PARTS = frozenset({"image_url", "video_url", "audio_url", "input_audio"})
MIXED_PARTS = TEXT_PARTS | MEDIA_PARTS

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PLAIN_ROLES = ("user", "system", "developer")
_ARGUMENTS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def check_messages(messages: list[Message]) -> None:
    for index, message in enumerate(messages):
        if len(message) == 2 and message.get("role") in _PLAIN_ROLES and type(message.get("content")) is str:
            continue
        check_message(message, f"messages[{index}]")


def check_message(message: Message, path: str) -> None:
    role = message.get("role")
    if role is None:
        raise InvalidRequest(f"{path} has no role.", f"{path}.role", "missing_field")
    check = _CHECKS.get(role) if isinstance(role, str) else None
    if check is None:
        raise InvalidRequest(
            f"{path}.role is {shown(role)}; a role is one of {', '.join(_CHECKS)}.", f"{path}.role", "invalid_value"
        )
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        raise wrong_type(f"{path}.name", "a string", name)
    check(message, path)


def reject_media(messages: list[Message]) -> None:
    """For a model that reads text only: a picture it cannot see is an error, not something to drop."""
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for position, part in enumerate(content):
            if part.get("type") in MEDIA_PARTS:
                raise InvalidRequest(
                    f"The model reads text only; it cannot take a content part of type {part['type']}.",
                    f"messages[{index}].content[{position}]",
                    "unsupported_content",
                )


def check_tools(tools: list[JsonObject]) -> set[str]:
    """Returns the names of the functions."""
    return {_check_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)}


def shown(value: Any) -> str:
    """A value as JSON, short enough for a message."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def wrong_type(path: str, expected: str, value: Any) -> InvalidRequest:
    return InvalidRequest(f"{path} must be {expected}, not {shown(value)}.", path, "invalid_type")


def _check_tool(tool: JsonObject, path: str) -> str:
    if tool.get("type") != "function":
        raise InvalidRequest(f'{path}.type must be "function".', f"{path}.type", "invalid_value")
    function = _required_object(tool, "function", path)
    name = _check_function_name(function, f"{path}.function")
    description, parameters = function.get("description"), function.get("parameters")
    if description is not None and not isinstance(description, str):
        raise wrong_type(f"{path}.function.description", "a string", description)
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong_type(f"{path}.function.parameters", "a JSON schema object", parameters)
    return name


def _check_function_name(function: JsonObject, path: str) -> str:
    name = _required_string(function, "name", path)
    if not FUNCTION_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{path}.name is {shown(name)}; a name has 1 to 128 letters, digits, underscores or dashes.",
            f"{path}.name",
            "invalid_value",
        )
    return name


def _check_instruction(message: Message, path: str) -> None:
    _check_content(message.get("content"), f"{path}.content", TEXT_PARTS)


def _check_user(message: Message, path: str) -> None:
    _check_content(message.get("content"), f"{path}.content", MIXED_PARTS)
    if not message["content"] and message["content"] != "":
        raise InvalidRequest(f"{path}.content must have at least one part.", f"{path}.content", "out_of_range")


def _check_assistant(message: Message, path: str) -> None:
    content, tool_calls = message.get("content"), message.get("tool_calls")
    if content is not None:
        _check_content(content, f"{path}.content", ASSISTANT_PARTS)
    if tool_calls is None:
        return
    if not isinstance(tool_calls, list):
        raise wrong_type(f"{path}.tool_calls", "an array", tool_calls)
    for index, call in enumerate(tool_calls):
        _check_tool_call(call, f"{path}.tool_calls[{index}]")


def _check_tool_call(call: Any, path: str) -> None:
    if not isinstance(call, dict):
        raise wrong_type(path, "an object", call)
    if call.get("type", "function") != "function":
        raise InvalidRequest(f'{path}.type must be "function".', f"{path}.type", "invalid_value")
    _required_string(call, "id", path)
    function = _required_object(call, "function", path)
    _required_string(function, "name", f"{path}.function")
    check_arguments(_required(function, "arguments", f"{path}.function"), f"{path}.function.arguments")


def check_arguments(arguments: Any, path: str) -> None:
    """A JSON object as a string, as OpenAI has it; 1.6.1 also takes the object itself, and "" for no arguments."""
    if isinstance(arguments, dict) or arguments == "":
        return
    if not isinstance(arguments, str):
        raise wrong_type(path, "a JSON object written as a string", arguments)
    try:
        _ARGUMENTS.decode(arguments)
    except ValueError:
        raise InvalidRequest(f"{path} must hold a JSON object written as a string.", path, "invalid_value") from None


def _check_tool_result(message: Message, path: str) -> None:
    _required_string(message, "tool_call_id", path)
    _check_content(message.get("content"), f"{path}.content", MIXED_PARTS)


def _check_function_result(message: Message, path: str) -> None:
    _required_string(message, "name", path)
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise wrong_type(f"{path}.content", "a string or null", content)


_CHECKS: dict[str, Callable[[Message, str], None]] = {
    "developer": _check_instruction,
    "system": _check_instruction,
    "user": _check_user,
    "assistant": _check_assistant,
    "tool": _check_tool_result,
    "function": _check_function_result,
}


def _check_content(content: Any, path: str, part_types: frozenset[str]) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise wrong_type(path, "a string or an array of content parts", content)
    for index, part in enumerate(content):
        _check_part(part, f"{path}[{index}]", part_types)


def _check_part(part: Any, path: str, part_types: frozenset[str]) -> None:
    if not isinstance(part, dict):
        raise wrong_type(path, "an object", part)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in part_types:
        raise InvalidRequest(
            f"{path}.type is {shown(kind)}; it must be one of {', '.join(sorted(part_types))}.",
            f"{path}.type",
            "invalid_value",
        )
    if kind in ("text", "refusal"):
        _required_string(part, kind, path)
    else:
        _check_media(part, kind, path)


def _check_media(part: JsonObject, kind: str, path: str) -> None:
    media = _required_object(part, kind, path)
    if kind.endswith("_url"):
        _required_string(media, "url", f"{path}.{kind}")


def _required_string(container: JsonObject, name: str, path: str) -> str:
    value = _required(container, name, path)
    if not isinstance(value, str):
        raise wrong_type(f"{path}.{name}", "a string", value)
    return value


def _required_object(container: JsonObject, name: str, path: str) -> JsonObject:
    value = _required(container, name, path)
    if not isinstance(value, dict):
        raise wrong_type(f"{path}.{name}", "an object", value)
    return value


def _required(container: JsonObject, name: str, path: str) -> Any:
    if name not in container:
        raise InvalidRequest(f"{path} has no {name}.", f"{path}.{name}", "missing_field")
    return container[name]
