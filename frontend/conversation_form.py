"""The form in which one chat template takes a conversation, found out by rendering tiny ones, and bringing it there.

Asked once per template: does it take a role's content as text, as a list of parts, or as either; does it take the
arguments of tool calls as objects or as JSON text; does it take calls without content, which is empty text for those
that do not; does it know the role `developer`. Messages that already fit are handed over as they are, without a copy.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from typing import Any

from dynamo.frontend.jinja_environment import PythonFloat, with_python_floats

Message = dict[str, Any]
Render = Callable[[list[Message]], str | None]
"""A conversation to its text, with a generation prompt; None if the template refuses it."""

# One reasoning text has three names; templates read one of them, or ask for them in turn.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_PARTS = ("text", "refusal")


class ContentForm(enum.Enum):
    """What a template takes as the content of a message."""

    TEXT = enum.auto()
    PARTS = enum.auto()
    EITHER = enum.auto()


class ConversationForm:
    def __init__(self, render: Render) -> None:
        self._wants_objects = _takes_argument_objects(render)
        arguments: object = {} if self._wants_objects else "{}"
        self._content_forms = {role: _content_form(render, role, arguments) for role in _AROUND}
        self._content_forms["developer"] = self._content_forms["system"]
        self._takes_bare_calls = _takes_bare_calls(render, arguments)
        self._knows_developer = _knows_developer(render)
        self._plain_roles = frozenset(
            role for role in ("system", "user", "assistant") if self._content_forms[role] is not ContentForm.PARTS
        )

    def adapt(self, messages: list[Message]) -> list[Message]:
        return [self._adapt(message) for message in messages]

    def _adapt(self, message: Message) -> Message:
        if len(message) == 2 and message.get("role") in self._plain_roles and type(message.get("content")) is str:
            return message
        message = {name: value for name, value in message.items() if value is not None}
        content = message.get("content")
        if content is None and message.get("tool_calls") and not self._takes_bare_calls:
            content = ""
        if content is not None:
            message["content"] = self._adapt_content(content, message.get("role"))
        if message.get("role") == "developer" and not self._knows_developer:
            message["role"] = "system"
        if message.get("tool_calls"):
            message["tool_calls"] = [self._adapt_call(call) for call in message["tool_calls"]]
        _spread_reasoning(message)
        return message

    def _adapt_content(self, content: Any, role: object) -> Any:
        form = self._content_forms.get(role, ContentForm.TEXT) if isinstance(role, str) else ContentForm.TEXT
        if isinstance(content, str):
            return [{"type": "text", "text": content}] if form is ContentForm.PARTS else content
        return _joined(content) if form is ContentForm.TEXT else content

    def _adapt_call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function")
        if not isinstance(function, dict):
            return call
        arguments = function.get("arguments")
        if self._wants_objects:
            arguments = _as_object(arguments)
        elif isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return call | {"function": function | {"arguments": arguments}}


def _joined(content: Any) -> Any:
    """Text of text-only parts, a line each; other content as it is."""
    if not isinstance(content, list):
        return content
    texts = [_part_text(part) for part in content]
    return content if None in texts else "\n".join(text for text in texts if text is not None)


def _part_text(part: object) -> str | None:
    if not isinstance(part, dict):
        return None
    return next((part[name] for name in _PARTS if isinstance(part.get(name), str)), None)


def _as_object(arguments: Any) -> Any:
    """What is no JSON object stays the text that it is."""
    if not isinstance(arguments, str):
        return with_python_floats(arguments)
    try:
        parsed = json.loads(arguments, parse_float=PythonFloat)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _spread_reasoning(message: Message) -> None:
    reasoning = next((message[name] for name in REASONING_FIELDS if name in message), None)
    if reasoning is not None:
        for name in REASONING_FIELDS:
            message.setdefault(name, reasoning)


# --------------------------------------------------------------------------- questions to a template


def _call(arguments: object) -> Message:
    call = {"id": "call00007", "type": "function", "function": {"name": "f7", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


_USER = {"role": "user", "content": "y7"}
_OF_RESULT = {"tool_call_id": "call00007", "name": "f7"}
# What stands before and after a message of this role.
_AROUND: dict[str, tuple[bool, bool]] = {
    "system": (False, True),
    "user": (False, False),
    "assistant": (True, True),
    "tool": (True, False),
}


def _talk(role: str, content: object, arguments: object) -> list[Message]:
    message: Message = {"role": role, "content": content}
    if role == "tool":
        return [_USER, _call(arguments), message | _OF_RESULT]
    before, after = _AROUND[role]
    return [_USER] * before + [message] + [_USER] * after


def _content_form(render: Render, role: str, arguments: object) -> ContentForm:
    """A template that handles parts writes a single text part as it writes the text itself."""
    text, parts = (render(_talk(role, content, arguments)) for content in ("x7", [{"type": "text", "text": "x7"}]))
    if parts is None or "x7" not in parts:
        return ContentForm.TEXT
    if text is None or "x7" not in text:
        return ContentForm.PARTS
    return ContentForm.EITHER if parts == text else ContentForm.TEXT


def _takes_argument_objects(render: Render) -> bool:
    """False for the few templates that take JSON text: they fail on an object, or print it as Python would."""
    as_object, as_text = (render([_USER, _call(arguments)]) for arguments in ({"x7": 1}, '{"x7": 1}'))
    takes_text = as_text is not None and '{"x7": 1}' in as_text
    takes_object = as_object is not None and "'x7'" not in as_object
    return takes_object or not takes_text


def _takes_bare_calls(render: Render, arguments: object) -> bool:
    """False for the templates that look into the text of a call with which nothing is said."""
    call = {name: value for name, value in _call(arguments).items() if name != "content"}
    return render([_USER, call, {"role": "tool", "content": "x7"} | _OF_RESULT]) is not None


def _knows_developer(render: Render) -> bool:
    """False if the role is refused, dropped, or merely printed like any other name."""
    known, made_up = (render([{"role": role, "content": "x7"}, _USER]) for role in ("developer", "qzjx"))
    if known is None or "x7" not in known:
        return False
    return made_up is None or known.replace("developer", "qzjx") != made_up.replace("developer", "qzjx")
