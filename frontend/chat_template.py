"""Conversation to prompt text, as `transformers.apply_chat_template` renders it, by minijinja.

`jinja_environment` computes what Jinja2 would; `conversation_form` brings messages into the form a template takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from dynamo.frontend.conversation_form import ConversationForm, Message
from dynamo.frontend.jinja_environment import ChatTemplateError, Clock, CompiledTemplate, with_python_floats
from dynamo.shared.errors import InternalError, InvalidRequest

__all__ = ["ChatTemplate", "ChatTemplateError", "Message", "parse_special_tokens", "parse_templates"]

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_VARIANTS = 16  # templates that requests bring along, kept compiled per model; the one unused for longest goes
# Marks where the final message ends; the space at its end tells whether the template trims what it prints.
_END = "\U000f0002end of the final message\U000f0002 "


class ChatTemplate:
    """The templates of one model by name: `tool_use` serves requests with tools where there is one, else `default`.

    `special_tokens` are variables of every rendering; `now` is the clock behind `strftime_now`.
    """

    def __init__(
        self, templates: Mapping[str, str], special_tokens: Mapping[str, Any] | None = None, now: Clock = datetime.now
    ) -> None:
        self._constants = dict(special_tokens or {})
        self._now = now
        compiled = {name: _Template(source, self._constants, now) for name, source in templates.items()}
        default = compiled.get("default") or next(iter(compiled.values()), None)
        if default is None:
            raise ChatTemplateError("the list of chat templates is empty")
        self._default = default
        self._tool_use = compiled.get("tool_use", default)
        self._variant = lru_cache(MAX_VARIANTS)(self._compile_variant)

    def with_source(self, source: str) -> ChatTemplate:
        """Another template for the same model, from memory in microseconds or compiled in some milliseconds.

        Raises ChatTemplateError if it does not compile.
        """
        return self._variant(source)

    def _compile_variant(self, source: str) -> ChatTemplate:
        return ChatTemplate({"default": source}, self._constants, self._now)

    def render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt. `kwargs` (`chat_template_kwargs`) come last and may replace anything.

        With `continue_final_message` the prompt ends where the content of the last message ends. Raises InvalidRequest
        with the template's own words when it refuses the messages.
        """
        template = self._tool_use if tools else self._default
        try:
            messages = template.form.adapt(messages)
            tools = with_python_floats([_complete(tool) for tool in tools]) if tools else None
        except RecursionError:
            raise InvalidRequest("The messages or tools are nested too deeply for a template.", "messages") from None
        if continue_final_message:
            messages = [*messages[:-1], _marked(messages[-1])]
        context = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._constants,
        }
        if kwargs:
            context |= kwargs
        text = template.render(context)
        return _cut(text) if continue_final_message else text


def parse_templates(value: object) -> dict[str, str]:
    """`chat_template` of a tokenizer_config.json: one source, a list of `{name, template}`, or an object by name."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair):
        return value
    raise ChatTemplateError("chat_template is neither a string nor named templates")


def parse_special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens as variables; each is written as a string or as an AddedToken object."""
    tokens = {name: _token_text(tokenizer_config.get(name)) for name in SPECIAL_TOKENS}
    return {name: text for name, text in tokens.items() if text is not None}


def _token_text(token: object) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


class _Template:
    """One template and the form in which it takes a conversation."""

    def __init__(self, source: str, constants: Mapping[str, Any], now: Clock) -> None:
        compiled = CompiledTemplate(source, now)

        def render_probe(messages: list[Message]) -> str | None:
            context = {"messages": messages, "tools": None, "add_generation_prompt": True, **constants}
            try:
                return compiled.render(context)
            except (InvalidRequest, InternalError):
                return None

        self.render = compiled.render
        self.form = ConversationForm(render_probe)


def _complete(tool: dict[str, Any]) -> dict[str, Any]:
    """Templates read `type` and `properties` of the parameters without asking whether they are there."""
    function = tool.get("function")
    parameters = function.get("parameters") if isinstance(function, dict) else None
    if (
        not isinstance(function, dict)
        or not isinstance(parameters, dict)
        or parameters.keys() >= {"type", "properties"}
    ):
        return tool
    return tool | {"function": function | {"parameters": {"type": "object", "properties": {}, **parameters}}}


# --------------------------------------------------------------------------- continuing the final message


def _marked(message: Message) -> Message:
    content = message.get("content")
    if isinstance(content, str):
        return message | {"content": content + _END}
    if isinstance(content, list):
        for index in reversed(range(len(content))):
            if isinstance(content[index].get("text"), str):
                part = content[index] | {"text": content[index]["text"] + _END}
                return message | {"content": [*content[:index], part, *content[index + 1 :]]}
    raise InvalidRequest("continue_final_message is set, but the last message has no text to continue.", "messages")


def _cut(text: str) -> str:
    end = text.rfind(_END.rstrip())
    if end < 0:
        raise InvalidRequest(
            "continue_final_message is set, but the chat template of this model does not print the last message.",
            "messages",
        )
    return text[:end] if text.startswith(_END, end) else text[:end].rstrip()
