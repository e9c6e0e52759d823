"""Markers followed by calls, which a reader reads: what JSON formats and those with a name before the JSON share.

The name of a call may be one that was not offered. What follows a marker and is no call is content without the marker,
and so is what stands between and after calls. A call that never closes keeps what went out of it, arguments cut off as
they are; if not even its name was complete, its text is content.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from msgspec import Struct

from dynamo.frontend.parsers.call_reader import CallReader, Reader
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.marked import MAX_SPACE, MarkedParser
from dynamo.frontend.parsers.marker import Markers, end_of
from dynamo.frontend.parsers.parts import Part

_SPACE = re.compile(r"\s*+")


class CallFormat(Struct, frozen=True):
    """`begin` are the markers that calls follow, after `opening`; `markers` are those and all others, which only must
    not be seen. `reader` makes a reader by the first character of a call, None where no call can begin with it.

    `separators` may follow a call, and then another call that begins with a brace if calls are objects. An answer that
    begins with such an object may be a call without a marker (`may_be_bare`)."""

    begin: tuple[str, ...]
    markers: Markers
    reader: Callable[[str], Reader | None]
    opening: re.Pattern[str]
    separators: re.Pattern[str]
    may_be_bare: bool


class MarkedCalls(MarkedParser):
    __slots__ = ("_accepts", "_format", "_prefix", "_reader")

    def __init__(self, call_format: CallFormat, functions: Functions) -> None:
        super().__init__(call_format.markers)
        self._accepts: Callable[[str], bool] | None = None
        self._format = call_format
        self._prefix = ""
        self._reader: Reader = CallReader()
        if call_format.may_be_bare:
            self._accepts = functions.__contains__
            self._state = MarkedCalls._before_calls

    def _after_marker(self, marker: str, rest: str) -> str:
        self._accepts = None
        self._state = MarkedCalls._before_calls if marker in self._format.begin else MarkedParser._content
        return rest

    def _before_calls(self, text: str, parts: list[Part]) -> str:
        at = end_of(self._format.opening, text, 0)
        if at == len(text) <= MAX_SPACE:
            self._held = text
            return ""
        if self._accepts is None and "]" in text[:at]:  # an empty list
            return self._open(text[at:], 0, None)
        return self._open(text, at, self._reader_of(text[at : at + 1]))

    def _after_call(self, text: str, parts: list[Part]) -> str:
        separators = end_of(self._format.separators, text, 0)
        at = end_of(_SPACE, text, separators)
        if at == len(text) <= MAX_SPACE:
            self._held = text
            return ""
        if text[at : at + 1] == "{" and self._format.may_be_bare:
            return self._open(text, at, CallReader(self._accepts))
        return self._open(text[separators:], 0, None)

    def _reader_of(self, first: str) -> Reader | None:
        if self._accepts is not None:
            return CallReader(self._accepts) if first == "{" else None
        return self._format.reader(first)

    def _open(self, text: str, at: int, reader: Reader | None) -> str:
        if reader is None:
            self._state = MarkedParser._content
            return text
        self._prefix, self._reader, self._state = text[:at], reader, MarkedCalls._call
        return text[at:]

    def _call(self, text: str, parts: list[Part]) -> str:
        reader = self._reader
        had_started = reader.has_started
        rest = reader.push(text, parts)
        self._is_in_string = reader.is_in_string
        if reader.has_started and not had_started:
            self._begin_call()
        if reader.is_over and reader.has_started:
            self._state = MarkedCalls._after_call
        elif reader.is_over:
            self._state = MarkedParser._content
            return self._prefix + reader.unread + rest
        return rest

    def _end(self, parts: list[Part]) -> None:
        while self._state is MarkedCalls._call and not self._reader.has_started:
            self._state = MarkedParser._content
            self._read(self._prefix + self._reader.unread, parts)
        is_unmarked = self._state is MarkedCalls._before_calls and self._accepts is not None
        if is_unmarked or self._state is MarkedParser._content:
            self._add_content(self._held, parts)
