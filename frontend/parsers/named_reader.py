"""A call whose name stands before its arguments: a header between markers, then one JSON value."""

from __future__ import annotations

import re

from dynamo.frontend.parsers.call_arguments import NO_ARGUMENTS, ArgumentsReader, arguments_reader
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part

MAX_HEADER = 512
"""Characters up to the arguments; text without a header in them is no call."""


class NamedReader:
    """Reads from the beginning of a header. If a call has no arguments, or a marker in their place, they are `{}`."""

    __slots__ = ("_arguments", "_header", "_held", "_stops", "has_started", "is_over")

    def __init__(self, header: re.Pattern[str], stops: Markers) -> None:
        """`header` has a group `name` or `plain_name` and maybe `id`; it matches up to the first character of the
        arguments or the `<` of a marker, which must be there. No header has any of `stops` in it."""
        self._arguments: ArgumentsReader | None = None
        self._header = header
        self._held = ""
        self._stops = stops
        self.has_started = False
        self.is_over = False

    @property
    def unread(self) -> str:
        return self._held

    @property
    def is_in_string(self) -> bool:
        return self._arguments is not None and self._arguments.is_in_string

    def push(self, text: str, parts: list[Part]) -> str:
        if self._arguments is None:
            text = self._read_header(self._held + text, parts)
        return self._read_arguments(text, parts)

    def _read_header(self, text: str, parts: list[Part]) -> str:
        header = self._header.match(text, 0, MAX_HEADER)
        if header is None:
            return self._hold(text)
        self._held = ""
        self.has_started = True
        groups = header.groupdict()
        parts.append(CallStart(groups["name"] or groups["plain_name"], groups.get("id")))
        if text[header.end()] == "<":
            parts.append(CallArguments(NO_ARGUMENTS))
            self.is_over = True
        else:
            self._arguments = arguments_reader(text[header.end()])
        return text[header.end() :]

    def _hold(self, text: str) -> str:
        self._held = text
        self.is_over = len(text) >= MAX_HEADER or self._stops.find(text) is not None
        return ""

    def _read_arguments(self, text: str, parts: list[Part]) -> str:
        if self._arguments is None or not text:
            return text
        piece, at = self._arguments.push(text, 0)
        if piece:
            parts.append(CallArguments(piece))
        self.is_over = self._arguments.is_over
        return text[at:]
