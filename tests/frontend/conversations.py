"""Conversations to render, and how `transformers` renders them."""

import copy
import json
from datetime import datetime
from typing import Any
from unittest import mock

import transformers.utils.chat_template_utils as chat_template_utils

Message = dict[str, Any]
Conversation = list[Message]

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
NOW = datetime(2026, 2, 3, 4, 5, 6)

TALK = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": 'Wie groß ist 中国? "quoted"\n'},
    {"role": "assistant", "content": "<think>hm</think>\n\nVery."},
    {"role": "user", "content": "Thanks 👍"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "It's <b>weather</b> & more",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "default": "Köln"},
                    "days": {"type": "integer", "maximum": 1e-7},
                },
                "required": [],
            },
        },
    }
]
MANY_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'It\'s <b>weather</b> & "more"',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where 🌍", "default": "Köln", "enum": ["Köln", "北京"]},
                    "days": {"type": "integer", "maximum": 1e-7, "minimum": 1},
                    "flags": {"type": ["array", "null"], "items": {"type": "string"}},
                    "names": {"type": "array", "items": {"type": "string"}},
                    "other": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "sub": {
                        "type": "object",
                        "properties": {"x": {"type": "number", "default": 1.0}},
                        "required": ["x"],
                        "additionalProperties": False,
                    },
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "clock", "description": "Time", "parameters": {"type": "object", "properties": {}}},
    },
]


def tool_talk(arguments: object) -> Conversation:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        {"role": "tool", "content": "warm", "tool_call_id": "c2"},
    ]


# --------------------------------------------------------------------------- a matrix of conversations

ARGUMENTS = {"city": "Köln", "days": 2, "deep": {"a": [1.5, 2.0, None, True]}, "tiny": 1e-7}


def _user(content: object) -> Message:
    return {"role": "user", "content": content}


def _system(content: object) -> Message:
    return {"role": "system", "content": content}


def _developer(content: object) -> Message:
    return {"role": "developer", "content": content}


def _assistant(content: object, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def _calls(*names: str) -> list[Message]:
    """Ids of nine letters and digits, since Mistral takes no others."""
    arguments = {"weather": ARGUMENTS, "clock": {}}
    return [
        {
            "id": f"{name}00001"[-9:],
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments[name], ensure_ascii=False)},
        }
        for name in names
    ]


def _result(content: object, name: str = "weather") -> Message:
    return {"role": "tool", "content": content, "tool_call_id": f"{name}00001"[-9:], "name": name}


def _parts(*texts: str) -> list[Message]:
    return [{"type": "text", "text": text} for text in texts]


_ODD = "e\u0301 👨\u200d👩\u200d👧 \x00\x01\x7f\u2028 \ufeff عربي हिन्दी \U0001d4b3 \r\n\t\\n {{ x }} {% y %} \x1f"

CONVERSATIONS: dict[str, Conversation] = {
    "one turn": [_user("Hi")],
    "system": [_system("Be brief & <kind>."), _user("Hi")],
    "developer": [_developer("Rules"), _user("Hi")],
    "system and developer": [_system("Sys"), _developer("Rules"), _user("Hi")],
    "turns": [
        _system(" Be brief.\n"),
        _user('Wie groß ist 中国? "quoted"\n'),
        _assistant("Very."),
        _user("  Thanks 👍 "),
        _assistant("np"),
        _user("bye"),
    ],
    "thoughts in the text": [
        _user("a"),
        _assistant("<think>\nhm\n</think>\n\nVery."),
        _user("b"),
        _assistant("<think>x</think>y"),
        _user("c"),
    ],
    "unicode": [_user(_ODD), _assistant("İıß ŉ"), _user("\x1cΩ\x85")],
    "empty": [_user(""), _assistant(""), _user("")],
    "ends with the assistant": [_user("a"), _assistant("partial answer ")],
    "call": [_user("weather?"), _assistant("", tool_calls=_calls("weather")), _result("sunny")],
    "call without content": [
        _user("weather?"),
        _assistant(None, tool_calls=_calls("weather")),
        _result('{"a": [1, 2.50, "é"]}'),
        _assistant("It is sunny."),
        _user("thx"),
    ],
    "parallel calls": [
        _system("sys"),
        _user("weather?"),
        _assistant("Let me see.", tool_calls=_calls("weather", "clock")),
        _result("sunny"),
        _result('{"time": "12:00"}', "clock"),
        _assistant("Noon & sun"),
        _user("and?"),
    ],
    "reasoning_content": [_user("a"), _assistant("b", reasoning_content="because\nof 中"), _user("c")],
    "reasoning": [_user("a"), _assistant("b", reasoning="because"), _user("c")],
    "reasoning and calls": [
        _user("a"),
        _assistant("", reasoning_content="let me look", tool_calls=_calls("weather")),
        _result("sunny"),
        _assistant("ok", reasoning_content="so"),
        _user("c"),
    ],
    "reasoning and an open call": [
        _user("a"),
        _assistant("", reasoning_content="let me look", tool_calls=_calls("weather")),
        _result("sunny"),
    ],
    "parts": [_system(_parts("s1")), _user(_parts("one ", "two")), _assistant(_parts("ans")), _user("x")],
    "parts of a result": [_user("a"), _assistant("", tool_calls=_calls("weather")), _result(_parts("sunny", "x"))],
    "begins with the assistant": [_assistant("hello"), _user("hi")],
    "two users": [_user("a"), _user("b")],
    "late system": [_user("a"), _system("late"), _user("b")],
    "name": [{"role": "user", "name": "Bob", "content": "hi"}],
    "unknown role": [{"role": "critic", "content": "x"}],
}

VARIABLES: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False, "thinking": False},
    {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
]


# --------------------------------------------------------------------------- transformers


def reference(source: str, messages: Conversation, **context: Any) -> str:
    """As `tokenizer.apply_chat_template` calls it, which first drops what is None."""
    given = [{name: value for name, value in message.items() if value is not None} for message in messages]
    with mock.patch.object(chat_template_utils, "datetime", _Clock):  # the only way to its clock
        rendered: Any = chat_template_utils.render_jinja_template(
            [copy.deepcopy(given)], chat_template=source, **(TOKENS | context)
        )
    text: str = rendered[0][0]
    return text


class _Clock(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return NOW
