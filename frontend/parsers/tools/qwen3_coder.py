"""Calls of Qwen3-Coder and Nemotron Nano.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

The types of parameters are those of the schema; a parameter that it does not know is a string. One line break at
either end of a value is markup, all other white space is the value's own, and so is `&lt;`: models write code here,
and the format escapes nothing. Dynamo 1.6.1 strips and unescapes values, makes false of what is no truth value, and
drops what follows a call without a block, and calls that are cut off.
"""

from __future__ import annotations

from functools import partial

from dynamo.frontend.parsers.argument import Argument, argument_of, types_of
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.markup import Markup, MarkupParser


def _unquoted(tag: str) -> str:
    return tag.strip().strip("\"'")


def _name(tag: str, functions: Functions) -> str:
    del functions
    return _unquoted(tag)


def _parameter(tag: str, function: str, functions: Functions) -> tuple[str, Argument]:
    name = _unquoted(tag)
    types = types_of(functions.schema_of_parameter(function, name))
    return name, argument_of(types, is_padded=True, knows_null=True)


MARKUP = Markup(
    blocks=("<tool_call>",),
    block_end="</tool_call>",
    call="<function=",
    call_end="</function>",
    parameter="<parameter=",
    parameter_end="</parameter>",
    read_name=_name,
    read_parameter=_parameter,
)

qwen3_coder = partial(MarkupParser, MARKUP)
