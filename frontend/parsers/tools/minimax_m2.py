"""Calls of MiniMax-M2.

    <minimax:tool_call>
    <invoke name="get_weather">
    <parameter name="city">Paris</parameter>
    </invoke>
    </minimax:tool_call>

The types of parameters are those of the schema; a parameter that it does not know is a string. All white space of a
string is its own, but for one line break at either end, and so is `&lt;`. Dynamo 1.6.1 strips and unescapes values, and
drops what follows a call without a block, and calls that are cut off.
"""

from __future__ import annotations

from functools import partial

from dynamo.frontend.parsers.argument import Argument, argument_of, types_of
from dynamo.frontend.parsers.call_parser import name_attribute
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.markup import Markup, MarkupParser


def _parameter(tag: str, function: str, functions: Functions) -> tuple[str, Argument]:
    name = name_attribute(tag)
    types = types_of(functions.schema_of_parameter(function, name))
    return name, argument_of(types, is_padded=True, knows_null=True)


MARKUP = Markup(
    blocks=("<minimax:tool_call>",),
    block_end="</minimax:tool_call>",
    call="<invoke",
    call_end="</invoke>",
    parameter="<parameter",
    parameter_end="</parameter>",
    read_parameter=_parameter,
)

minimax_m2 = partial(MarkupParser, MARKUP)
