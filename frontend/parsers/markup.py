"""Calls that are marked up like XML: tags around each call and each of its arguments, which are plain text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from dynamo.frontend.parsers.argument import Argument, ObjectWriter, TextArgument, is_json
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part

MAX_TAG = 512
"""Characters of a tag; what is longer is none."""

ReadName: TypeAlias = Callable[[str], str]
"""The function's name, from the text of an opening tag; empty where there is none."""

ReadParameter: TypeAlias = Callable[[str, str, Functions], tuple[str, Argument]]
"""A parameter's name and what reads its value, from the text of its opening tag and the function's name."""


_ATTRIBUTE = re.compile(r"""([\w:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")


def attributes(tag: str) -> dict[str, str]:
    """Of an opening tag, in either kind of quotes or in none."""
    return {found[1]: found[2] or found[3] or found[4] or "" for found in _ATTRIBUTE.finditer(tag)}


class Markup:
    """The tags of one format, made once. An opening tag is its beginning, what stands in it, and its end."""

    def __init__(
        self,
        *,
        blocks: tuple[str, ...] = (),
        block_end: str,
        call: str,
        call_tag_end: str = ">",
        call_end: str,
        parameter: str,
        parameter_tag_end: str = ">",
        parameter_end: str,
        read_name: ReadName,
        read_parameter: ReadParameter,
        knows_json: bool = False,
    ) -> None:
        """`blocks` are the ways in which a block of calls may begin. `call_tag_end` is a regular expression. With
        `knows_json`, a call may have one JSON object instead of parameters."""
        self.blocks = blocks
        self.call = call
        self.call_tag_end = re.compile(call_tag_end).search
        self.parameter = parameter
        self.parameter_tag_end = parameter_tag_end
        self.parameter_end = parameter_end
        self.read_name = read_name
        self.read_parameter = read_parameter
        self.knows_json = knows_json
        ends = tuple(dict.fromkeys((block_end, call_end, parameter_end)))
        self.before_call = (*blocks, call)
        self.after_call = (*blocks, call, *ends)
        self.in_content = Markers(self.before_call)
        self.in_later_content = Markers(self.after_call)
        self.in_call = Markers([parameter, call, *ends])
        self.in_value = Markers([parameter_end, call_end])


class MarkupParser:
    """Reads one `Markup`.

    - A call needs no block around it. A block's beginning that no call follows is content, and so is a call without a
      name.
    - What stands in a call beside its parameters is left out, and so are tags that end nothing after the first call,
      and white space that stands alone before, between or after calls.
    - A value ends with its own tag or with that of its call. A call that is cut off ends there: a value is taken for
      whole, and nothing is left of a call whose name is not complete.
    """

    __slots__ = (
        "_argument",
        "_beside",
        "_functions",
        "_has_calls",
        "_held",
        "_markup",
        "_name",
        "_object",
        "_outside",
        "_parts",
        "_raw",
        "_step",
    )

    def __init__(self, markup: Markup, functions: Functions) -> None:
        self._markup = markup
        self._functions = functions
        self._outside = markup.in_content
        self._has_calls = False
        self._held = ""
        self._raw = ""  # what becomes content if no call comes of it
        self._name = ""
        self._beside: list[str] = []  # what stands in a call and is no parameter
        self._object = ObjectWriter()
        self._argument: Argument = TextArgument()
        self._parts: list[Part] = []
        self._step: Callable[[MarkupParser], bool] = MarkupParser._read_gap

    def push(self, text: str) -> list[Part]:
        if not self._held and self._step is MarkupParser._read_content and not self._outside.may_begin(text):
            return [text] if text else []
        self._held += text
        while self._held and self._step(self):
            pass
        parts, self._parts = self._parts, []
        return parts

    def flush(self) -> list[Part]:
        if self._step is MarkupParser._read_content:
            self._write_content(self._held)
        elif self._step is MarkupParser._read_block or not (
            self._has_calls or self._step is MarkupParser._read_call_tag
        ):
            self._write_content(self._raw + self._held)
        elif self._step is MarkupParser._read_value:
            self._end_value()
            self._end_call()
        elif self._step in (MarkupParser._read_call, MarkupParser._read_parameter_tag):
            self._end_call()
        self._held = self._raw = ""
        self._step = MarkupParser._read_content
        parts, self._parts = self._parts, []
        return parts

    # Each step reads from what is held and says whether the next may go on; if not, it waits for more text.

    def _read_content(self) -> bool:
        found = self._outside.find(self._held)
        if found is None:
            self._write_content(self._take(len(self._held) - self._outside.num_held(self._held)))
            return False
        self._write_content(self._take(found.start()))
        self._enter(self._take(len(found[0])))
        return True

    def _read_block(self) -> bool:
        self._raw += self._take_space()
        marker = self._marker_at_start(self._markup.before_call)
        if marker is None:
            return False
        if marker:
            self._enter(self._take(len(marker)))
        else:
            self._give_back()
        return True

    def _read_call_tag(self) -> bool:
        end = self._markup.call_tag_end(self._held, 0, MAX_TAG)
        if end is None and len(self._held) < MAX_TAG:
            return False
        name = self._markup.read_name(self._held[: end.start()]) if end is not None else ""
        if end is None or not name:
            self._give_back()
            return True
        self._take(end.end())
        self._raw = ""
        self._name = name
        self._object = ObjectWriter()
        self._beside = []
        self._outside = self._markup.in_later_content
        self._has_calls = True
        self._parts.append(CallStart(name))
        self._step = MarkupParser._read_call
        return True

    def _read_call(self) -> bool:
        markers = self._markup.in_call
        found = markers.find(self._held)
        if found is None:
            self._beside.append(self._take(len(self._held) - markers.num_held(self._held)))
            return False
        self._beside.append(self._take(found.start()))
        if found[0] == self._markup.parameter:
            self._take(len(found[0]))
            self._step = MarkupParser._read_parameter_tag
        elif found[0] == self._markup.parameter_end:
            self._take(len(found[0]))
        else:
            self._end_call()
        return True

    def _read_parameter_tag(self) -> bool:
        mark = self._markup.parameter_tag_end
        end = self._held.find(mark, 0, MAX_TAG)
        if end < 0 and len(self._held) < MAX_TAG:
            return False
        key = ""
        if end >= 0:
            key, self._argument = self._markup.read_parameter(self._take(end), self._name, self._functions)
            self._take(len(mark))
        if key:
            self._write_arguments(self._object.key(key))
        self._step = MarkupParser._read_value if key else MarkupParser._read_call
        return True

    def _read_value(self) -> bool:
        markers = self._markup.in_value
        found = markers.find(self._held)
        if found is None:
            self._write_arguments(self._argument.push(self._take(len(self._held) - markers.num_held(self._held))))
            return False
        self._write_arguments(self._argument.push(self._take(found.start())))
        self._end_value()
        return True

    def _read_gap(self) -> bool:
        self._raw += self._take_space()
        marker = self._marker_at_start(self._markup.after_call if self._has_calls else self._markup.before_call)
        if marker is None:
            return False
        if marker:
            self._enter(self._take(len(marker)))
        else:
            self._give_back()
        return True

    def _enter(self, marker: str) -> None:
        """Goes where a marker outside of calls leads to."""
        self._raw += marker
        if marker == self._markup.call:
            self._step = MarkupParser._read_call_tag
        elif marker in self._markup.blocks:
            self._step = MarkupParser._read_block
        else:
            self._raw = ""
            self._step = MarkupParser._read_gap

    def _end_value(self) -> None:
        self._write_arguments(self._argument.end())
        self._step = MarkupParser._read_call

    def _end_call(self) -> None:
        self._write_arguments(self._json_body() or self._object.end())
        self._raw = ""
        self._step = MarkupParser._read_gap

    def _json_body(self) -> str:
        """The JSON object that a call has instead of parameters."""
        body = "".join(self._beside).strip() if self._markup.knows_json and self._object.is_empty else ""
        return body if body.startswith("{") and is_json(body) else ""

    def _give_back(self) -> None:
        """What looked like the beginning of a call is content, and reading goes on after it."""
        self._write_content(self._raw)
        self._raw = ""
        self._step = MarkupParser._read_content

    def _marker_at_start(self, markers: tuple[str, ...]) -> str | None:
        """The marker that the held text begins with, empty for none; None if that is not certain yet."""
        if any(marker.startswith(self._held) for marker in markers):
            return self._held if self._held in markers else None
        return next((marker for marker in markers if self._held.startswith(marker)), "")

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def _take_space(self) -> str:
        return self._take(len(self._held) - len(self._held.lstrip()))

    def _write_content(self, text: str) -> None:
        if text:
            self._parts.append(text)

    def _write_arguments(self, json: str) -> None:
        if json:
            self._parts.append(CallArguments(json))
