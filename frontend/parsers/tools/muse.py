"""Calls of Muse and Muse Glimmer, behind the reasoning parser of that name or alone: then thought is told from content
here.

    to=functions<|message|><atem:function_calls>
    <atem:invoke name="get_weather">
    <atem:parameter name="city">Paris</atem:parameter>
    </atem:invoke>
    </atem:function_calls><|eom|>

A call is one to whomever its message is: behind a reasoning parser that is not to be seen. A value is JSON if it reads
like that, and a string otherwise; what the schema says is a string is one, with or without JSON's quotes, while Dynamo
1.6.1 asks no schema. A name that is doubled, as `a.a`, is that of the function `a`.
"""

from __future__ import annotations

from dynamo.frontend.parsers.argument import ANY, STRING, Argument, TextArgument, TypedArgument, types_of
from dynamo.frontend.parsers.call_parser import name_attribute
from dynamo.frontend.parsers.context import Functions, ReasoningContext
from dynamo.frontend.parsers.markup import Markup, MarkupParser
from dynamo.frontend.parsers.parts import Part
from dynamo.frontend.parsers.reasoning.muse import Muse


class QuotableText:
    """A string that may be in JSON's quotes, which is known by the first."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value: Argument | None = None

    def push(self, text: str) -> str:
        if self._value is None and text:
            self._value = TypedArgument(ANY) if text.startswith('"') else TextArgument()
        return self._value.push(text) if self._value is not None else ""

    def end(self) -> str:
        return self._value.end() if self._value is not None else '""'


def _name(tag: str, functions: Functions) -> str:
    name = name_attribute(tag)
    first, _, second = name.partition(".")
    return first if first == second and name not in functions and first in functions else name


def _parameter(tag: str, function: str, functions: Functions) -> tuple[str, Argument]:
    name = name_attribute(tag)
    is_text = types_of(functions.schema_of_parameter(function, name), ANY) == STRING
    return name, QuotableText() if is_text else TypedArgument(ANY)


MARKUP = Markup(
    blocks=("<atem:function_calls>",),
    block_end="</atem:function_calls>",
    call="<atem:invoke",
    call_end="</atem:invoke>",
    parameter="<atem:parameter",
    parameter_end="</atem:parameter>",
    read_name=_name,
    read_parameter=_parameter,
)


class MuseCalls:
    __slots__ = ("_calls", "_messages")

    def __init__(self, functions: Functions) -> None:
        self._messages = Muse(ReasoningContext())
        self._calls = MarkupParser(MARKUP, functions)

    def push(self, text: str) -> list[Part]:
        return self._read(self._messages.push(text))

    def flush(self) -> list[Part]:
        return [*self._read(self._messages.flush()), *self._calls.flush()]

    def _read(self, parts: list[Part]) -> list[Part]:
        read: list[Part] = []
        for part in parts:
            read += self._calls.push(part) if isinstance(part, str) else [part]
        return read
