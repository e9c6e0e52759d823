"""Answers written as messages: a header that says for whom or on which channel a message is, a marker, and its text.

The prompt has begun the first header, so it may come without a marker of its own; text without any header is content.
A message ends at its end marker, at the next header, or with the answer. Two messages of one kind are a line apart.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

from msgspec import Struct

from dynamo.frontend.parsers.context import ReasoningContext
from dynamo.frontend.parsers.marked import MAX_SPACE
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.marker_reader import MarkerReader
from dynamo.frontend.parsers.parts import Part, Reasoning

MAX_HEADER = 1_000
"""Characters; what is longer without its end is content."""
START, TEXT = "<|start|>", "<|message|>"
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class Frame(enum.Enum):
    """Kinds of messages; BARE is text outside of all."""

    BARE = enum.auto()
    CONTENT = enum.auto()
    THOUGHT = enum.auto()
    CALL = enum.auto()


class Header(Struct, frozen=True):
    """`text` is all of it, up to and with the marker of the message's text."""

    text: str
    recipient: str
    channel: str

    @classmethod
    def read(cls, text: str) -> Header:
        recipient, channel = _RECIPIENT.search(text), _CHANNEL.search(text)
        return cls(text, recipient[1] if recipient else "", channel[1] if channel else "")


class FrameMarkers:
    """Immutable, made once per format. `starts` begin a header, `ends` end a message."""

    def __init__(self, starts: Iterable[str], ends: Iterable[str]) -> None:
        self.starts, self.ends = frozenset(starts), frozenset(ends)
        self.of_text = Markers([*self.starts, *self.ends, TEXT])
        self.of_header = Markers([START, *self.ends, TEXT])


class FramedParser(MarkerReader):
    """A subclass tells which kind a message is, and what becomes of calls."""

    __slots__ = ("_frame", "_header", "_marks", "_written")

    def __init__(self, marks: FrameMarkers, context: ReasoningContext | None = None) -> None:
        super().__init__(FramedParser._beginning, marks.of_text)
        self._frame = Frame.BARE
        self._header = ""
        self._marks = marks
        self._written: set[Frame] = set()  # those of which some text has come; of calls, the present one
        if context is not None:
            self._continue_prompt(context.prompt_end)

    def flush(self) -> list[Part]:
        """A header that has a marker and no end is no text."""
        parts: list[Part] = []
        held, self._held = self._held, ""
        if self._state is FramedParser._in_header:
            held = "" if self._header.startswith("<|") else self._header + held
            self._frame, self._kind = Frame.BARE, str
        if self._state is not FramedParser._between or not held.isspace():
            self._add(held, parts)
        if self._frame is Frame.CALL:
            self._end_call("", parts)
        return parts

    def _kind_of(self, header: Header) -> Frame:
        raise NotImplementedError

    def _begin_call(self, header: Header, parts: list[Part]) -> None:
        """May set the kind that the call's text is of, which is content."""
        raise NotImplementedError

    def _end_call(self, marker: str, parts: list[Part]) -> None:
        raise NotImplementedError

    def _continue_prompt(self, prompt_end: str) -> None:
        """Takes the header that the prompt has begun for the answer."""
        _, start, header = prompt_end.rpartition(START)
        if start and TEXT in header and not header.partition(TEXT)[2].strip():
            self._begin_message(Header.read(header), [])
        elif start and TEXT not in header and ("to=" in header or "<|channel|>" in header):
            self._begin_header(start + header)

    def _beginning(self, text: str, parts: list[Part]) -> str:
        """A header may come without a marker before it, and then it says for whom the message is."""
        stripped = text.lstrip()
        if len(text) - len(stripped) > MAX_SPACE:
            self._state = FramedParser._in_text
            return text
        if "to=".startswith(stripped):
            self._held = text
        elif stripped.startswith("to="):
            self._begin_header()
            return text
        else:
            self._state = FramedParser._in_text
            return text
        return ""

    def _between(self, text: str, parts: list[Part]) -> str:
        """After a message: space before the next header is dropped, up to MAX_SPACE of it."""
        before, marker, _ = self._split(text)
        if before.strip() or len(before) > MAX_SPACE:
            self._held = ""
            self._state = FramedParser._in_text
            return text
        if not marker:
            self._held = text
            return ""
        return self._in_text(text[len(before) :], parts)

    def _first_text(self, text: str, parts: list[Part]) -> str:
        before, _, _ = self._split(text)
        if not before:
            return self._in_text(text, parts)
        if self._frame in self._written and self._frame is not Frame.CALL:
            parts.append(self._kind("\n"))
        self._written.add(self._frame)
        self._held = ""
        self._state = FramedParser._in_text
        return text

    def _in_text(self, text: str, parts: list[Part]) -> str:
        before, marker, rest = self._split(text)
        self._add(before, parts)
        if marker in self._marks.starts:
            self._end_message("", parts)
            self._begin_header(marker)
        elif marker in self._marks.ends:
            self._end_message(marker, parts)
        return rest

    def _in_header(self, text: str, parts: list[Part]) -> str:
        before, marker, rest = self._split(text)
        self._header += before
        if len(self._header) > MAX_HEADER:
            return self._give_up_header(marker + rest, parts)
        if marker == TEXT:
            self._begin_message(Header.read(self._header + TEXT), parts)
        elif marker == START:
            self._header = START
        elif marker:
            self._end_message(marker, parts)
        return rest

    def _give_up_header(self, rest: str, parts: list[Part]) -> str:
        self._end_message("", parts)
        self._state = FramedParser._in_text
        self._add(self._header[:MAX_HEADER], parts)
        held, self._held = self._held, ""
        return self._header[MAX_HEADER:] + held + rest

    def _begin_header(self, marker: str = "") -> None:
        self._header = marker
        self._markers, self._state = self._marks.of_header, FramedParser._in_header

    def _begin_message(self, header: Header, parts: list[Part]) -> None:
        self._frame = self._kind_of(header)
        self._kind = Reasoning if self._frame is Frame.THOUGHT else str
        self._markers, self._state = self._marks.of_text, FramedParser._first_text
        if self._frame is Frame.CALL:
            self._written.discard(Frame.CALL)
            self._begin_call(header, parts)

    def _end_message(self, marker: str, parts: list[Part]) -> None:
        if self._frame is Frame.CALL:
            self._end_call(marker, parts)
        self._frame, self._kind = Frame.BARE, str
        self._markers, self._state = self._marks.of_text, FramedParser._between


FramedParser.plain = frozenset((FramedParser._in_text,))
