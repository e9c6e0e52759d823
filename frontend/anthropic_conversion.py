"""A request to Anthropic's API as the chat completion that it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from dynamo.frontend.anthropic_requests import (
    Block,
    ContentSource,
    CountTokensRequest,
    Document,
    Image,
    Message,
    MessagesRequest,
    PlainTextSource,
    RedactedThinking,
    ResultBlock,
    SearchResult,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolReference,
    ToolResult,
    ToolUse,
)
from dynamo.frontend.guided_types import JsonSchemaFormat, ResponseFormat
from dynamo.frontend.openai_requests import ChatCompletionRequest, JsonObject
from dynamo.frontend.openai_requests import Thinking as ThinkingSwitch
from dynamo.shared.errors import InvalidRequest

BILLING_PREAMBLE = "x-anthropic-billing-header:"
"""Claude Code begins its system prompt so, with text that differs between conversations and would spoil the cache."""


def chat_of(request: MessagesRequest, *, strips_preamble: bool) -> ChatCompletionRequest:
    """Raises InvalidRequest for what has no counterpart here."""
    chat = prompt_of(request, strips_preamble=strips_preamble)
    chat.max_tokens = request.max_tokens
    chat.stream = request.stream
    chat.stop = list(request.stop_sequences) if request.stop_sequences else None
    chat.temperature = request.temperature
    chat.top_k = request.top_k
    chat.top_p = request.top_p or None
    chat.user = (request.metadata.user_id or None) if request.metadata is not None else None
    if request.thinking is not None:
        chat.thinking_token_budget = request.thinking.budget_tokens
    if (schema := request.schema_of_answer) is not None:
        chat.response_format = ResponseFormat("json_schema", JsonSchemaFormat("answer", schema))
    return chat


def prompt_of(request: CountTokensRequest, *, strips_preamble: bool) -> ChatCompletionRequest:
    """The part that decides what the prompt is. A last turn of the assistant is one that the model goes on with."""
    if request.mcp_servers:
        raise _unsupported("This gateway runs no MCP servers; offer their tools as your own.", "mcp_servers")
    is_continued = request.messages[-1].role == "assistant"
    choice = request.tool_choice
    return ChatCompletionRequest(
        model=request.model,
        messages=[*_system(request.system, strips_preamble), *_messages(request.messages)],
        tools=[_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)] or None,
        tool_choice=None if choice is None else _tool_choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        thinking=None if request.thinking is None else ThinkingSwitch(request.thinking.type),
        reasoning_effort=None if request.output_config is None else request.output_config.effort,
        add_generation_prompt=False if is_continued else None,
        continue_final_message=is_continued or None,
        nvext=request.nvext,
    )


# --------------------------------------------------------------------------- messages


def _system(system: str | list[Text] | None, strips_preamble: bool) -> Iterator[JsonObject]:
    texts = [system] if isinstance(system, str) else [block.text for block in system or ()]
    if strips_preamble:
        texts = [_without_preamble(text) for text in texts]
    if text := "\n".join(filter(None, texts)):
        yield {"role": "system", "content": text}


def _without_preamble(text: str) -> str:
    return text.partition("\n")[2].lstrip("\n") if text.startswith(BILLING_PREAMBLE) else text


def _messages(messages: Sequence[Message]) -> Iterator[JsonObject]:
    for index, message in enumerate(messages):
        content = message.content
        if isinstance(content, str):
            yield {"role": message.role, "content": content}
        elif message.role == "assistant":
            yield _assistant(content, f"messages[{index}].content")
        else:
            yield from _turn(message.role, content, f"messages[{index}].content")


def _assistant(blocks: Sequence[Block], path: str) -> JsonObject:
    """Text, thoughts and calls each in one place, as chat messages have them."""
    message: JsonObject = {"role": "assistant"}
    texts, thoughts, calls = [], [], []
    for position, block in enumerate(blocks):
        match block:
            case Text():
                texts.append(block.text)
            case Thinking():
                thoughts.append(block.thinking)
            case RedactedThinking():
                continue
            case ToolUse():
                calls.append(_call(block))
            case _:
                raise _misplaced(block, "assistant", f"{path}[{position}]")
    message["content"] = "".join(texts) if texts or not calls else None
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: ToolUse) -> JsonObject:
    arguments = msgspec.json.encode(block.input).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _turn(role: str, blocks: Sequence[Block], path: str) -> Iterator[JsonObject]:
    """Results of calls become messages of their own; what is between them stays in order."""
    texts: list[str] = []
    for position, block in enumerate(blocks):
        where = f"{path}[{position}]"
        if isinstance(block, ToolResult):
            if texts:
                yield {"role": role, "content": _content(texts)}
                texts = []
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block, where)}
        elif isinstance(block, Text | Image | Document | SearchResult):
            texts.append(_text(block, where))
        else:
            raise _misplaced(block, role, where)
    if texts or not blocks:
        yield {"role": role, "content": _content(texts)}


def _content(texts: list[str]) -> str | list[JsonObject]:
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _result(block: ToolResult, path: str) -> str:
    content = block.content
    if isinstance(content, list):
        return "\n".join(_text(part, f"{path}.content[{index}]") for index, part in enumerate(content))
    return content or ""


def _text(block: ResultBlock, path: str) -> str:
    match block:
        case Text():
            return block.text
        case SearchResult():
            return "\n".join(filter(None, (block.title, block.source, *(part.text for part in block.content))))
        case ToolReference():
            return block.tool_name
        case Document():
            return "\n".join(filter(None, (block.title, block.context, _text_of_document(block, path))))
        case Image():
            raise InvalidRequest(
                "The model reads text only; it cannot take a content block of type image.", path, "unsupported_content"
            )


def _text_of_document(block: Document, path: str) -> str:
    match block.source:
        case PlainTextSource(data):
            return data
        case ContentSource(str(content)):
            return content
        case ContentSource(list(content)):
            return "\n".join(_text(part, f"{path}.source.content[{index}]") for index, part in enumerate(content))
        case source:
            kind = type(source).__struct_config__.tag
            raise InvalidRequest(
                f"A document whose source is of type {kind} cannot be read here; send its text.",
                f"{path}.source",
                "unsupported_content",
            )


def _misplaced(block: Block, role: str, path: str) -> InvalidRequest:
    kind = type(block).__struct_config__.tag
    return InvalidRequest(f"{path} is of type {kind}, which the role {role} cannot have.", path, "invalid_value")


# --------------------------------------------------------------------------- tools


def _tool(tool: Tool, path: str) -> JsonObject:
    if tool.type not in (None, "custom") or tool.input_schema is None:
        raise _unsupported(
            f"{path} is of type {tool.type or 'custom'} without a schema; this gateway runs no tools, so each needs an "
            "input_schema.",
            f"{path}.input_schema",
        )
    function: JsonObject = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> str | JsonObject:
    if choice.type == "tool":
        if not choice.name:
            raise InvalidRequest("tool_choice of type tool needs a name.", "tool_choice.name", "missing_field")
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param, "unsupported_field")
