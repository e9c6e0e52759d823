"""Calls with their name in an opening tag, perhaps in a block of calls; formats differ in how arguments follow."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from dynamo.frontend.parsers.argument import ObjectWriter
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part

MAX_TAG = 512
"""Characters of a tag; what is longer is none."""

Step: TypeAlias = Callable[[Any], bool]
"""A method that reads from what is held and says whether the next step may go on; if not, it waits for more text."""

ReadName: TypeAlias = Callable[[str, Functions], str]
"""The name of a function, from the text of an opening tag; empty where there is none."""

_ATTRIBUTE = re.compile(r"""([\w:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")


def attributes(tag: str) -> dict[str, str]:
    """Of an opening tag, in either kind of quotes or in none."""
    return {found[1]: found[2] or found[3] or found[4] or "" for found in _ATTRIBUTE.finditer(tag)}


def name_attribute(tag: str) -> str:
    return attributes(tag).get("name", "")


def name_as_written(tag: str, functions: Functions) -> str:
    del functions
    return name_attribute(tag)


class CallTags:
    """The tags around calls, made once per format. An opening tag is its beginning, what stands in it, and its end."""

    def __init__(
        self,
        *,
        blocks: tuple[str, ...],
        call: str = "",
        needs_block: bool = False,
        call_tag_end: str = ">",
        ends: Iterable[str],
        read_name: ReadName = name_as_written,
    ) -> None:
        """`blocks` are the ways in which a block of calls may begin, and `ends` those in which anything may end.
        `call_tag_end` is a regular expression. Without `call`, the tag of a call begins with its block."""
        self.blocks = blocks
        self.call = call
        self.call_tag_end = re.compile(call_tag_end).search
        self.read_name = read_name
        calls = (call,) if call else ()
        outside = blocks if needs_block else (*blocks, *calls)
        self.in_block = (*blocks, *calls)
        self.before_calls = outside
        self.after_call = (*outside, *dict.fromkeys(ends))
        self.in_content = Markers(self.before_calls)
        self.in_later_content = Markers(self.after_call)


class CallParser(ABC):
    """Reads all but the arguments.

    - Markers of blocks are left out, whatever follows, and so are ends that end nothing after the first call or block.
      What is in a block and no call is content, and so is a call without a name.
    - White space that stands alone before, between or after calls is left out.
    - A call that is cut off keeps its arguments as they went out, so that nobody runs half a call; they are closed only
      where all values are whole and nothing but ends is missing. Nothing is left of one whose name is not complete.
    """

    __slots__ = (
        "_functions",
        "_has_calls",
        "_held",
        "_is_plain",
        "_name",
        "_object",
        "_outside",
        "_parts",
        "_raw",
        "_step",
        "_tags",
    )

    def __init__(self, tags: CallTags, functions: Functions) -> None:
        self._tags = tags
        self._functions = functions
        self._outside = tags.in_content
        self._has_calls = False
        self._is_plain = False  # nothing is held, and content goes on
        self._held = ""
        self._raw = ""  # what becomes content if no call comes of it
        self._name = ""
        self._object = ObjectWriter()
        self._parts: list[Part] = []
        self._step: Step = CallParser._read_gap

    def push(self, text: str) -> list[Part]:
        if self._is_plain and self._outside.may_begin(text) is None:
            return [text] if text else []
        self._held += text
        while self._held and self._step(self):
            pass
        self._is_plain = not self._held and self._step is CallParser._read_content
        return self._take_parts()

    def flush(self) -> list[Part]:
        if self._step is CallParser._read_content or (self._step is CallParser._read_gap and not self._has_calls):
            self._write_content(self._raw + self._held)
        elif self._step not in _OUTSIDE_OF_CALLS and self._is_whole():
            self._end_call()
        self._held = self._raw = ""
        self._step = CallParser._read_content
        return self._take_parts()

    @abstractmethod
    def _begin_call(self) -> Step:
        """The step that reads arguments, up to `_end_call`."""

    @abstractmethod
    def _is_whole(self) -> bool:
        """Whether nothing but ends is missing of a call that is cut off."""

    def _read_content(self) -> bool:
        text, marker = self._take_up_to(self._outside)
        self._write_content(text)
        if marker:
            self._enter(self._take(len(marker)))
        return bool(marker)

    def _read_gap(self) -> bool:
        return self._read_marker(self._tags.after_call if self._has_calls else self._tags.before_calls)

    def _read_block(self) -> bool:
        return self._read_marker(self._tags.in_block)

    def _read_marker(self, markers: tuple[str, ...]) -> bool:
        self._raw += self._take(len(self._held) - len(self._held.lstrip()))
        if self._held not in markers and any(marker.startswith(self._held) for marker in markers):
            return False
        marker = next(filter(self._held.startswith, markers), "")
        if marker:
            self._enter(self._take(len(marker)))
        else:
            self._give_back()
        return True

    def _enter(self, marker: str) -> None:
        """Goes where a marker outside of calls leads to."""
        if marker == self._tags.call:
            self._raw += marker
            self._step = CallParser._read_call_tag
        elif marker in self._tags.blocks:
            self._outside = self._tags.in_later_content
            self._step = CallParser._read_block if self._tags.call else CallParser._read_call_tag
        else:
            self._raw = ""
            self._step = CallParser._read_gap

    def _give_back(self) -> None:
        """What looked like the beginning of a call is content, and reading goes on after it."""
        self._write_content(self._raw)
        self._raw = ""
        self._step = CallParser._read_content

    def _read_call_tag(self) -> bool:
        end = self._tags.call_tag_end(self._held, 0, MAX_TAG)
        if end is None and len(self._held) < MAX_TAG:
            return False
        name = self._tags.read_name(self._held[: end.start()], self._functions) if end is not None else ""
        if end is None or not name:
            self._give_back()
            return True
        self._take(end.end())
        self._raw = ""
        self._name = name
        self._object = ObjectWriter()
        self._has_calls = True
        self._outside = self._tags.in_later_content
        self._parts.append(CallStart(name))
        self._step = self._begin_call()
        return True

    def _end_call(self) -> None:
        self._write_arguments(self._object.end())
        self._step = CallParser._read_gap

    def _take_up_to(self, markers: Markers) -> tuple[str, str]:
        """Text before the first marker, which is still held, and that marker; an empty one if it is not there yet."""
        if markers.may_begin(self._held) is None:
            return self._take(len(self._held)), ""
        found = markers.find(self._held)
        if found is not None:
            return self._take(found.start()), found[0]
        return self._take(len(self._held) - markers.num_held(self._held)), ""

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def _take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _write_content(self, text: str) -> None:
        if text:
            self._parts.append(text)

    def _write_arguments(self, json: str) -> None:
        if json:
            self._parts.append(CallArguments(json))


_OUTSIDE_OF_CALLS = (CallParser._read_gap, CallParser._read_block, CallParser._read_call_tag)
