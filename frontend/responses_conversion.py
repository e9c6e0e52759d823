"""A request to the Responses API as the chat completion that it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from dynamo.frontend.guided_types import JsonSchemaFormat, ResponseFormat
from dynamo.frontend.openai_messages import check_arguments, shown, wrong_type
from dynamo.frontend.openai_requests import ChatCompletionRequest, JsonObject
from dynamo.frontend.responses_requests import Format, Input, ResponsesPrompt, ResponsesRequest
from dynamo.frontend.responses_tools import (
    TOOL_LISTS,
    TOOL_SEARCH,
    custom_arguments,
    found_names,
    function_name,
    offered_tools,
)
from dynamo.shared.errors import InvalidRequest

ROLES = ("user", "system", "developer", "assistant")
HOSTED_RESULTS = ("item_reference", "compaction", "web_search_call", "file_search_call", "image_generation_call")
_CALLS = ("function_call", "custom_tool_call", "tool_search_call")
_RESULTS = ("function_call_output", "custom_tool_call_output", "tool_search_output")

_encode = msgspec.json.Encoder().encode


def chat_of(request: ResponsesRequest, past: Iterable[JsonObject] = ()) -> ChatCompletionRequest:
    """`past` are chat messages of the response that this one goes on from. Raises InvalidRequest."""
    chat = prompt_of(request, past)
    chat.max_completion_tokens = request.max_output_tokens
    chat.stream = request.stream
    chat.temperature = request.temperature
    chat.top_p = request.top_p
    chat.user = request.user or None
    if request.wants_logprobs:
        chat.logprobs, chat.top_logprobs = True, request.top_logprobs or 0
    if request.text is not None and request.text.format is not None:
        chat.response_format = _response_format(request.text.format)
    return chat


def prompt_of(request: ResponsesPrompt, past: Iterable[JsonObject] = ()) -> ChatCompletionRequest:
    """The part that decides what the prompt is. Instructions are those of this turn alone."""
    tools = list(_tools(request))
    reasoning, text = request.reasoning, request.text
    messages = [*_instructions(request.instructions), *past, *messages_of(request.input)]
    if not messages:
        raise InvalidRequest("input must not be empty.", "input", "out_of_range")
    return ChatCompletionRequest(
        model=request.model,
        messages=messages,
        tools=tools or None,
        tool_choice=_tool_choice(request.tool_choice) if tools or request.tool_choice not in ("auto", "none") else None,
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=None if reasoning is None else reasoning.effort,
        verbosity=None if text is None else text.verbosity,
        nvext=request.nvext,
    )


def _instructions(instructions: str | None) -> Iterator[JsonObject]:
    if instructions:
        yield {"role": "system", "content": instructions}


# --------------------------------------------------------------------------- input


def messages_of(given: Input) -> list[JsonObject]:
    """Chat messages: reasoning, text and calls of one turn of the assistant become one message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[JsonObject] = []
    for index, item in enumerate(given):
        _add(messages, item, f"input[{index}]")
    return messages


def _add(messages: list[JsonObject], item: JsonObject, path: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        _add_message(messages, item, path)
    elif kind == "reasoning":
        if text := _reasoning_text(item, path):
            turn = _turn(messages)
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text
    elif kind in _CALLS:
        _turn(messages).setdefault("tool_calls", []).append(_call(item, path))
    elif kind in _RESULTS:
        messages.append(
            {"role": "tool", "tool_call_id": _string(item, "call_id", path), "content": _result(item, path)}
        )
    elif kind not in TOOL_LISTS:
        raise InvalidRequest(
            f"{path}.type is {shown(kind)}; an item is a message, reasoning, a call of a function, a custom tool or a "
            "tool search, or the output of one.",
            f"{path}.type",
            "unsupported_content" if kind in HOSTED_RESULTS else "invalid_value",
        )


def _add_message(messages: list[JsonObject], item: JsonObject, path: str) -> None:
    role = item.get("role")
    if role not in ROLES:
        raise InvalidRequest(
            f"{path}.role is {shown(role)}; a role is one of {', '.join(ROLES)}.", f"{path}.role", "invalid_value"
        )
    text = _text(item.get("content"), f"{path}.content")
    if role != "assistant":
        messages.append({"role": role, "content": text})
        return
    turn = _turn(messages)
    turn["content"] = (turn["content"] or "") + text


def _turn(messages: list[JsonObject]) -> JsonObject:
    """The assistant's message that is being put together, begun if there is none."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _call(item: JsonObject, path: str) -> JsonObject:
    kind = item["type"]
    if kind == "tool_search_call":
        name, arguments = TOOL_SEARCH, _encode(item.get("arguments") or {}).decode()
    else:
        name = function_name(_string(item, "name", path), item.get("namespace"))
        is_custom = kind == "custom_tool_call"
        arguments = custom_arguments(_string(item, "input", path)) if is_custom else _string(item, "arguments", path)
        check_arguments(arguments, f"{path}.arguments")
    function = {"name": name, "arguments": arguments or "{}"}
    return {"id": _string(item, "call_id", path), "type": "function", "function": function}


def _result(item: JsonObject, path: str) -> str:
    if item["type"] == "tool_search_output":
        return found_names(item, path)
    return _text(item.get("output"), f"{path}.output")


def _reasoning_text(item: JsonObject, path: str) -> str:
    """What was thought; where only a summary came back, that."""
    for field in ("content", "summary"):
        if item.get(field):
            return _text(item[field], f"{path}.{field}")
    return ""


def _text(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(path, "a string or an array of parts", content)
    return "".join(_part(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part(part: Any, path: str) -> str:
    if not isinstance(part, dict):
        raise wrong_type(path, "an object", part)
    kind = part.get("type")
    if kind in ("input_image", "input_file", "input_audio", "computer_screenshot"):
        raise InvalidRequest(
            f"The model reads text only; it cannot take a content part of type {kind}.", path, "unsupported_content"
        )
    if kind not in ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"):
        raise InvalidRequest(
            f"{path}.type is {shown(kind)}; a part is input_text, output_text or refusal.",
            f"{path}.type",
            "invalid_value",
        )
    return _string(part, "refusal" if kind == "refusal" else "text", path)


def _string(container: JsonObject, name: str, path: str) -> str:
    value = container.get(name)
    if value is None:
        raise InvalidRequest(f"{path} has no {name}.", f"{path}.{name}", "missing_field")
    if not isinstance(value, str):
        raise wrong_type(f"{path}.{name}", "a string", value)
    return value


# --------------------------------------------------------------------------- options


def _tools(request: ResponsesPrompt) -> Iterator[JsonObject]:
    """Functions of the chat; see `responses_tools` for what becomes one."""
    allowed = _allowed(request.tool_choice)
    for tool in offered_tools(request):
        if allowed is None or (isinstance(tool.name, str) and tool.name in allowed):
            yield {"type": "function", "function": tool.function}


def _allowed(tool_choice: str | JsonObject | None) -> set[str] | None:
    """Names to which a choice of type allowed_tools restricts the tools; None: all."""
    if not isinstance(tool_choice, dict) or tool_choice.get("type") != "allowed_tools":
        return None
    tools = tool_choice.get("tools")
    if not isinstance(tools, list):
        raise wrong_type("tool_choice.tools", "an array of tools", tools)
    return {tool["name"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("name"), str)}


def _tool_choice(choice: str | JsonObject | None) -> str | JsonObject | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools":
        mode = choice.get("mode", "auto")
        return mode if isinstance(mode, str) else "auto"
    if choice.get("type") not in ("function", "custom"):
        raise InvalidRequest(
            f"tool_choice is of type {shown(choice.get('type'))}; only functions can be called here.",
            "tool_choice.type",
            "unsupported_field",
        )
    name = choice.get("name")
    if isinstance(name, str):
        name = function_name(name, choice.get("namespace"))
    return {"type": "function", "function": {"name": name}}


def _response_format(format: Format) -> ResponseFormat:
    if format.type != "json_schema":
        return ResponseFormat(format.type)
    if format.schema is None:
        raise InvalidRequest("text.format of type json_schema needs a schema.", "text.format.schema", "missing_field")
    schema = JsonSchemaFormat(format.name or "answer", format.schema, format.description, format.strict)
    return ResponseFormat("json_schema", schema)


def message_of_answer(text: str, reasoning: str, calls: list[JsonObject]) -> JsonObject:
    """What a later turn reads of an answer."""
    message: JsonObject = {"role": "assistant", "content": text if text or not calls else None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


encode_messages = _encode
decode_messages = msgspec.json.Decoder(list[JsonObject]).decode
