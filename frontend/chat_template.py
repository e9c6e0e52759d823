"""Conversation to prompt text, as Hugging Face `transformers` renders it with Jinja, by minijinja.

A template is compiled once and asked two questions by rendering a tiny conversation: what it takes as message content
(text, a list of parts, or either), and whether it takes tool-call arguments as objects. Conversations are then handed
over in the form it wants.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import minijinja
from minijinja import TemplateError

from dynamo.shared.errors import InternalError, InvalidRequest

Message = dict[str, Any]

# About a second of rendering: far beyond a full context window, far below a stuck process.
FUEL = 20_000_000
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# The template asks for what this environment lacks: no message can change that.
_OUR_FAULT = {"UnknownFilter", "UnknownFunction", "UnknownTest", "TemplateNotFound"}
# `{% generation %}` marks assistant tokens for training; here it is a block without effect.
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class ChatTemplateError(Exception):
    """A template that cannot be compiled or found; the message says why."""


class ContentForm(enum.Enum):
    """What a template takes as the content of a message."""

    TEXT = enum.auto()
    PARTS = enum.auto()
    EITHER = enum.auto()


class ChatTemplate:
    """The templates of one model by name: `tool_use` serves requests with tools where there is one, else `default`."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, Any] | None = None) -> None:
        self._constants = dict(special_tokens or {})
        compiled = {name: _CompiledTemplate(source, self._constants) for name, source in templates.items()}
        default = compiled.get("default") or next(iter(compiled.values()), None)
        if default is None:
            raise ChatTemplateError("the list of chat templates is empty")
        self._default = default
        self._tool_use = compiled.get("tool_use", default)

    def render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `kwargs` (`chat_template_kwargs`) come last and may replace anything.

        Raises InvalidRequest with the template's own words when it refuses the messages.
        """
        template = self._tool_use if tools else self._default
        context = {
            "messages": template.adapt(messages),
            "tools": [_complete(tool) for tool in tools] if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._constants,
        }
        if kwargs:
            context |= kwargs
        return template.render(context)


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


# --------------------------------------------------------------------------- one template


class _CompiledTemplate:
    def __init__(self, source: str, constants: Mapping[str, Any]) -> None:
        self._environment = _environment()
        try:
            self._environment.add_template("chat_template", _without_generation_blocks(source))
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template does not compile: {_describe(error)}") from None
        self._constants = constants
        self._content_form = self._detect_content_form()
        self._wants_objects = self._detect_argument_objects()

    def render(self, context: dict[str, Any]) -> str:
        try:
            return self._environment.render_template("chat_template", **context)
        except TemplateError as error:
            if error.kind in _OUR_FAULT:
                raise InternalError(f"The chat template of this model cannot be rendered: {_describe(error)}") from None
            message = f"The chat template of this model cannot render these messages: {_describe(error)}"
            raise InvalidRequest(message, param="messages") from None
        except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:  # from a Python object
            message = f"The chat template of this model cannot render these messages: {error}"
            raise InvalidRequest(message, param="messages") from None

    def adapt(self, messages: list[Message]) -> list[Message]:
        """The same conversation in the form this template takes; messages that already fit are passed as they are."""
        return [self._adapt(message) for message in messages]

    def _adapt(self, message: Message) -> Message:
        content = message.get("content")
        if isinstance(content, list):
            if self._content_form is ContentForm.TEXT and _is_text_only(content):
                message = message | {"content": "\n".join(part["text"] for part in content)}
        elif self._content_form is ContentForm.PARTS and isinstance(content, str):
            message = message | {"content": [{"type": "text", "text": content}]}
        if self._wants_objects and message.get("tool_calls"):
            message = message | {"tool_calls": [_with_argument_object(call) for call in message["tool_calls"]]}
        return message

    def _detect_content_form(self) -> ContentForm:
        """A template that handles parts writes a single text part as it writes the text itself."""
        text, parts = (
            self._try([{"role": "user", "content": content}]) for content in ("x7", [{"type": "text", "text": "x7"}])
        )
        if parts is None or "x7" not in parts:
            return ContentForm.TEXT
        if text is None or "x7" not in text:
            return ContentForm.PARTS
        return ContentForm.EITHER if parts == text else ContentForm.TEXT

    def _detect_argument_objects(self) -> bool:
        """False for the few templates that take JSON text: they fail on an object, or print it as Python would."""
        as_object, as_text = (self._try(_tool_conversation(form)) for form in ({"x7": 1}, '{"x7": 1}'))
        takes_text = as_text is not None and '{"x7": 1}' in as_text
        takes_object = as_object is not None and "'x7'" not in as_object
        return takes_object or not takes_text

    def _try(self, messages: list[Message]) -> str | None:
        context = {"messages": messages, "tools": None, "add_generation_prompt": True, **self._constants}
        try:
            return self.render(context)
        except (InvalidRequest, InternalError):
            return None


def _tool_conversation(arguments: object) -> list[Message]:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "user", "content": "x7"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]


def _is_text_only(content: list[Any]) -> bool:
    return all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content)


def _with_argument_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    if not isinstance(arguments, dict):
        return call
    return call | {"function": function | {"arguments": arguments}}


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


# --------------------------------------------------------------------------- environment


def _environment() -> minijinja.Environment:
    return minijinja.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        fuel=FUEL,
        filters={"tojson": _tojson},
        globals={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
    )


def _raise_exception(message: str) -> NoReturn:
    raise InvalidRequest(str(message), param="messages")


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in `transformers`: no HTML escapes, `json.dumps` defaults for the rest."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _without_generation_blocks(source: str) -> str:
    def replace(match: re.Match[str]) -> str:
        left, end, right = match.groups()
        return f"{{%{left} {'endif' if end else 'if true'} {right}%}}"

    return _GENERATION.sub(replace, source)


def _describe(error: TemplateError) -> str:
    detail = "rendering takes too long" if error.kind == "OutOfFuel" else error.detail or error.kind
    return f"{detail} (line {error.line})" if error.line else detail
