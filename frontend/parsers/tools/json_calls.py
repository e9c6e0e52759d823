"""Calls that are JSON objects between markers: hermes and all who differ from it in markers only.

A marker is followed by one object or by a list of them; `CallReader` says what an object looks like. The name may be
one that was not offered. What follows a marker and is no call is content without the marker.

A call that never closes keeps what went out of it; without a name it is content. A call whose last brackets are
missing or too many is read like any other.
"""

from __future__ import annotations

import re

from msgspec import Struct

from dynamo.frontend.parsers.call_reader import CallReader
from dynamo.frontend.parsers.context import Functions, ToolParserFactory
from dynamo.frontend.parsers.marked import MarkedParser
from dynamo.frontend.parsers.marker import Markers, end_of
from dynamo.frontend.parsers.parts import Part

_SEPARATORS = re.compile(r"(?:\s*[,;\]}])*+")
_SPACE = re.compile(r"\s*+")
_BEFORE_CALLS = re.compile(r"\s*+\[?+\s*+")


class JsonFormat(Struct, frozen=True):
    """`begin` goes before calls, `end` after them. `may_be_bare`: an answer that begins with an object may be a call
    without a marker, if it has arguments and the name of a function that is offered."""

    begin: tuple[str, ...]
    end: tuple[str, ...] = ()
    may_be_bare: bool = False


class JsonCalls(MarkedParser):
    __slots__ = ("_format", "_functions", "_prefix", "_reader")

    def __init__(self, json_format: JsonFormat, markers: Markers, functions: Functions) -> None:
        super().__init__(markers)
        self._format = json_format
        self._functions = functions
        self._prefix = ""
        self._reader = CallReader()
        if json_format.may_be_bare:
            self._state = JsonCalls._bare

    def _after_marker(self, marker: str, rest: str) -> str:
        self._state = JsonCalls._before_calls if marker in self._format.begin else MarkedParser._content
        return rest

    def _bare(self, text: str, parts: list[Part]) -> str:
        return self._open(text, CallReader(self._functions.__contains__))

    def _before_calls(self, text: str, parts: list[Part]) -> str:
        return self._open(text, CallReader())

    def _open(self, text: str, reader: CallReader) -> str:
        """A list or an object, else content."""
        at = end_of(_BEFORE_CALLS, text, 0)
        if at == len(text):
            self._held = text
        elif text[at] == "{":
            self._prefix, self._reader, self._state = text[:at], reader, JsonCalls._call
            return text[at:]
        else:
            self._state = MarkedParser._content
            return text
        return ""

    def _call(self, text: str, parts: list[Part]) -> str:
        reader = self._reader
        had_started = reader.has_started
        at = reader.push(text, 0, parts)
        if reader.has_started and not had_started:
            self._begin_call()
        if reader.is_over and reader.has_started:
            self._state = JsonCalls._after_call
        elif reader.is_over:
            self._add_content(self._prefix + reader.unread, parts)
            self._state = MarkedParser._content
        return text[at:]

    def _after_call(self, text: str, parts: list[Part]) -> str:
        separators = end_of(_SEPARATORS, text, 0)
        at = end_of(_SPACE, text, separators)
        if at == len(text):
            self._held = text
            return ""
        if text[at] == "{":
            self._prefix, self._reader, self._state = text[:at], CallReader(), JsonCalls._call
            return text[at:]
        self._state = MarkedParser._content
        return text[separators:]

    def _end(self, parts: list[Part]) -> None:
        if self._state is JsonCalls._call:
            if not self._reader.has_started:
                self._add_content(self._prefix + self._reader.unread, parts)
        elif self._state is not JsonCalls._after_call:
            self._add_content(self._held, parts)


def _family(json_format: JsonFormat) -> ToolParserFactory:
    markers = Markers([*json_format.begin, *json_format.end])
    return lambda functions: JsonCalls(json_format, markers, functions)


_HERMES = _family(JsonFormat(("<tool_call>",), ("</tool_call>",)))

JSON_PARSERS: dict[str, ToolParserFactory] = {
    "hermes": _HERMES,
    "qwen25": _HERMES,
    "qwen3": _HERMES,
    "jamba": _family(JsonFormat(("<tool_calls>",), ("</tool_calls>",))),
    "nemotron_deci": _family(JsonFormat(("<TOOLCALL>",), ("</TOOLCALL>",))),
    "phi4": _family(JsonFormat(("functools[",))),
    "llama3_json": _family(JsonFormat(("<|python_tag|>",), may_be_bare=True)),
    "default": _family(
        JsonFormat(
            ("<TOOLCALL>", "<tool_call>", "<tool_calls>", "<|python_tag|>", "[TOOL_CALLS]", "functools["),
            ("</TOOLCALL>", "</tool_call>", "</tool_calls>"),
            may_be_bare=True,
        )
    ),
}
