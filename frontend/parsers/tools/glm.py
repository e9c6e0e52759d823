"""Calls of GLM-4.5 to GLM-4.7, with or without line breaks between the tags.

    <tool_call>get_weather
    <arg_key>city</arg_key>
    <arg_value>Paris</arg_value>
    </tool_call>

The types of parameters are those of the schema. A parameter that it does not know is an object or an array if it reads
like one, and a string otherwise. All white space of a string is its own. Dynamo 1.6.1 finds no arguments between line
breaks, no calls at all by the name `glm45`, and drops calls that are cut off.
"""

from __future__ import annotations

from functools import partial

from dynamo.frontend.parsers.argument import CONTAINER_OR_STRING, Argument, argument_of, types_of
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.markup import Markup, MarkupParser


def _name(tag: str, functions: Functions) -> str:
    """One word; anything else is not the name of a function."""
    del functions
    words = tag.split()
    return words[0] if len(words) == 1 and "<" not in tag else ""


def _parameter(tag: str, function: str, functions: Functions) -> tuple[str, Argument]:
    name = tag.partition("</arg_key>")[0].strip()
    schema = functions.schema_of_parameter(function, name)
    return name, argument_of(types_of(schema) if schema is not None else CONTAINER_OR_STRING)


MARKUP = Markup(
    blocks=("<tool_call>",),
    block_end="</tool_call>",
    call_tag_end=r"(?=<arg_key>|</tool_call>)|^\s*[^\s<]+\s+[^\s<]",  # two words are no tag
    call_end="</tool_call>",
    parameter="<arg_key>",
    parameter_tag_end="<arg_value>",
    parameter_end="</arg_value>",
    read_name=_name,
    read_parameter=_parameter,
)

glm = partial(MarkupParser, MARKUP)
