"""Calls that are marked up like XML: tags around each call and each of its arguments, which are plain text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from dynamo.frontend.parsers.argument import Argument, TextArgument, is_json
from dynamo.frontend.parsers.call_parser import MAX_TAG, CallParser, CallTags, ReadName, Step, name_as_written
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.marker import Markers

ReadParameter: TypeAlias = Callable[[str, str, Functions], tuple[str, Argument]]
"""A parameter's name and what reads its value, from the text of its opening tag and the function's name."""


class Markup(CallTags):
    """The tags of one format, made once."""

    def __init__(
        self,
        *,
        blocks: tuple[str, ...],
        block_end: str,
        call: str = "",
        call_tag_end: str = ">",
        call_end: str,
        parameter: str,
        parameter_tag_end: str = ">",
        parameter_end: str,
        read_name: ReadName = name_as_written,
        read_parameter: ReadParameter,
        knows_json: bool = False,
    ) -> None:
        """With `knows_json`, a call may have one JSON object instead of parameters."""
        ends = tuple(dict.fromkeys((block_end, call_end, parameter_end)))
        super().__init__(blocks=blocks, call=call, call_tag_end=call_tag_end, ends=ends, read_name=read_name)
        self.parameter = parameter
        self.parameter_tag_end = re.compile(f"({re.escape(parameter_tag_end)})|{re.escape(call_end)}").search
        self.parameter_end = parameter_end
        self.read_parameter = read_parameter
        self.knows_json = knows_json
        self.in_call = Markers([parameter, *self.in_block, *ends])
        self.in_value = Markers([parameter_end, call_end])


class MarkupParser(CallParser):
    """Reads one `Markup`. What stands in a call beside its parameters is left out. A value ends with its own tag or
    with that of its call."""

    __slots__ = ("_argument", "_beside", "_markup")

    def __init__(self, markup: Markup, functions: Functions) -> None:
        super().__init__(markup, functions)
        self._markup = markup
        self._beside: list[str] = []  # what stands in a call and is no parameter
        self._argument: Argument = TextArgument()

    def _begin_call(self) -> Step:
        self._beside = []
        return MarkupParser._read_call

    def _is_whole(self) -> bool:
        """Text instead of parameters may be the beginning of their JSON."""
        if self._step is not MarkupParser._read_call:
            return False
        body = "".join(self._beside).strip() if self._markup.knows_json and self._object.is_empty else ""
        return not body or is_json(body)

    def _read_call(self) -> bool:
        text, marker = self._take_up_to(self._markup.in_call)
        self._beside.append(text)
        if marker == self._markup.parameter:
            self._take(len(marker))
            self._step = MarkupParser._read_parameter_tag
        elif marker == self._markup.parameter_end:
            self._take(len(marker))
        elif marker:
            self._end_call()
        return bool(marker)

    def _read_parameter_tag(self) -> bool:
        end = self._markup.parameter_tag_end(self._held, 0, MAX_TAG)
        if end is None and len(self._held) < MAX_TAG:
            return False
        key = ""
        if end is not None and end[1]:
            key, self._argument = self._markup.read_parameter(self._take(end.start()), self._name, self._functions)
            self._take(len(end[0]))
        if key:
            self._write_arguments(self._object.key(key))
        self._step = MarkupParser._read_value if key else MarkupParser._read_call
        return True

    def _read_value(self) -> bool:
        text, marker = self._take_up_to(self._markup.in_value)
        self._write_arguments(self._argument.push(text))
        if marker:
            self._end_value()
        return bool(marker)

    def _end_value(self) -> None:
        self._write_arguments(self._argument.end())
        self._step = MarkupParser._read_call

    def _end_call(self) -> None:
        if self._markup.knows_json and self._object.is_empty:
            self._write_body("".join(self._beside).strip())
        super()._end_call()

    def _write_body(self, body: str) -> None:
        """The JSON object that a call has instead of parameters."""
        if body.startswith("{") and is_json(body):
            self._write_arguments(body[:-1])
            self._object.is_empty = False
