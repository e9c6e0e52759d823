"""Calls that are JSON objects: hermes and all who differ from it in markers only.

A marker is followed by one object or by a list of them; `CallReader` says what an object looks like. A call whose last
brackets are missing or too many is read like any other.

Dynamo 1.6.1 reads these formats alike, with these differences. It wants strict JSON and drops what is not; here the
name is enough for a call, and what is no call is content. It finds objects without a marker anywhere; here only at the
beginning of an answer and for functions that are offered, since an object in the midst of prose is an example. It adds
brackets to a call that was cut off; here the arguments stay as they are, so that nobody runs half a call. Arguments
that are a string are decoded, where it quotes them once more; null stands for none. Space around calls is dropped.
Its parser `qwen3` finds no calls at all.
"""

from __future__ import annotations

import re

from dynamo.frontend.parsers.call_reader import CallReader, Reader
from dynamo.frontend.parsers.context import ToolParserFactory
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.tools.marked_calls import CallFormat, MarkedCalls

JSON_OPENING = re.compile(r"[\s\[\]]*+")
JSON_SEPARATORS = re.compile(r"(?:\s*[,;\]}])*+")


def _object_reader(first: str) -> Reader | None:
    return CallReader() if first == "{" else None


def _family(begin: tuple[str, ...], end: tuple[str, ...] = ()) -> ToolParserFactory:
    markers = Markers([*begin, *end])
    call_format = CallFormat(begin, markers, _object_reader, JSON_OPENING, JSON_SEPARATORS, may_be_bare=True)
    return lambda functions: MarkedCalls(call_format, functions)


_HERMES = _family(("<tool_call>",), ("</tool_call>",))

JSON_PARSERS: dict[str, ToolParserFactory] = {
    "hermes": _HERMES,
    "qwen25": _HERMES,
    "qwen3": _HERMES,
    "jamba": _family(("<tool_calls>",), ("</tool_calls>",)),
    "nemotron_deci": _family(("<TOOLCALL>",), ("</TOOLCALL>",)),
    "phi4": _family(("functools[",)),
    "llama3_json": _family(("<|python_tag|>",)),
    "default": _family(
        ("<TOOLCALL>", "<tool_call>", "<tool_calls>", "<|python_tag|>", "[TOOL_CALLS]", "functools["),
        ("</TOOLCALL>", "</tool_call>", "</tool_calls>"),
    ),
}
