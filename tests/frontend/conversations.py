"""Conversations to render, and how `transformers` renders them: Jinja2, configured as it does."""

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

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


def tool_talk(arguments: object) -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        {"role": "tool", "content": "warm", "tool_call_id": "c2"},
    ]


def reference(source: str, messages: list[dict[str, Any]], **context: Any) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    def refuse(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    source = source.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")
    return environment.from_string(source).render(messages=messages, **(TOKENS | context))
