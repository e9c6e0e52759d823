"""Calls of DeepSeek V3.2, V4 and V4.1, which differ in their tags' names. Each | is full-width.

    <|DSML|function_calls>
    <|DSML|invoke name="get_weather">
    <|DSML|parameter name="city" string="true">Paris</|DSML|parameter>
    <|DSML|parameter name="days" string="false">3</|DSML|parameter>
    </|DSML|invoke>
    </|DSML|function_calls>

The two line breaks before a block belong to it. What is no string is JSON; where the model does not say which it is,
the schema does. A call may have one JSON object instead of parameters. All white space of a string is its own. Dynamo
1.6.1 strips strings, reads objects only of V4.1, and V4.1 only behind its reasoning parser, and drops calls that are
cut off.
"""

from __future__ import annotations

from functools import partial

from dynamo.frontend.parsers.argument import ANY, Argument, TextArgument, TypedArgument, argument_of, types_of
from dynamo.frontend.parsers.call_parser import attributes
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.markup import Markup, MarkupParser

DSML = "\N{FULLWIDTH VERTICAL LINE}DSML\N{FULLWIDTH VERTICAL LINE}"


def _parameter(tag: str, function: str, functions: Functions) -> tuple[str, Argument]:
    said = attributes(tag)
    name = said.get("name", "")
    match said.get("string"):
        case "true":
            return name, TextArgument()
        case "false":
            return name, TypedArgument(ANY)
    return name, argument_of(types_of(functions.schema_of_parameter(function, name), ANY))


def _markup(block: str, call: str, parameter: str) -> Markup:
    return Markup(
        blocks=(f"\n\n<{DSML}{block}>", f"<{DSML}{block}>"),
        block_end=f"</{DSML}{block}>",
        call=f"<{DSML}{call}",
        call_end=f"</{DSML}{call}>",
        parameter=f"<{DSML}{parameter}",
        parameter_end=f"</{DSML}{parameter}>",
        read_parameter=_parameter,
        knows_json=True,
    )


deepseek_v3_2 = partial(MarkupParser, _markup("function_calls", "invoke", "parameter"))
deepseek_v4 = partial(MarkupParser, _markup("tool_calls", "invoke", "parameter"))
deepseek_v41 = partial(MarkupParser, _markup(" calls", " invoke", " parameter"))
