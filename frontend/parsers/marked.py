"""What formats share that set calls apart with markers: content up to a marker, and what comes after a call."""

from __future__ import annotations

from dynamo.frontend.parsers.json_scanner import SPECIAL_IN_STRING
from dynamo.frontend.parsers.marker import Markers, State
from dynamo.frontend.parsers.parts import CallArguments, Part

MAX_SPACE = 4096
"""Characters of space that wait for what comes after them; more are content."""


class MarkedParser:
    """Content until one of the markers, which are never part of it; a subclass says what a marker begins.

    Space that stands alone before, between or after markers and calls is dropped, other space is content. So is what
    may be the beginning of a marker, if the text ends with it.
    """

    __slots__ = (
        "_has_calls",
        "_held",
        "_is_in_string",
        "_is_plain",
        "_markers",
        "_may_begin",
        "_space",
        "_state",
    )

    def __init__(self, markers: Markers) -> None:
        self._has_calls = False
        self._held = ""
        self._is_in_string = False  # a subclass is inside a string of arguments, where nearly all goes out as it is
        self._is_plain = False  # nothing is held, and the last that came was content
        self._markers = markers
        self._may_begin = markers.may_begin
        self._space = ""
        self._state: State = MarkedParser._content

    def push(self, text: str) -> list[Part]:
        if self._is_plain and self._may_begin(text) is None:
            return [text] if text else []
        if self._is_in_string and SPECIAL_IN_STRING(text) is None:
            return [CallArguments(text)] if text else []
        parts: list[Part] = []
        self._read(self._held + text, parts)
        return parts

    def flush(self) -> list[Part]:
        parts: list[Part] = []
        self._end(parts)
        if self._space and not self._has_calls:
            parts.append(self._space)
        return parts

    def _read(self, text: str, parts: list[Part]) -> None:
        self._held = ""
        while text:
            text = self._state(self, text, parts)

    def _content(self, text: str, parts: list[Part]) -> str:
        marker = self._markers.find(text)
        if marker is not None:
            self._add_content(text[: marker.start()], parts)
            self._is_plain = False
            self._space = ""
            return self._after_marker(marker[0], text[marker.end() :])
        end = len(text) - self._markers.num_held(text)
        self._add_content(text[:end], parts)
        self._held = text[end:]
        self._is_plain = not self._held and not self._space
        return ""

    def _add_content(self, text: str, parts: list[Part]) -> None:
        if self._is_plain or not (text := self._space + text).isspace() or len(text) > MAX_SPACE:
            self._space = ""
            if text:
                parts.append(text)
        else:
            self._space = text

    def _begin_call(self) -> None:
        self._has_calls = True
        self._space = ""

    def _after_marker(self, marker: str, rest: str) -> str:
        """Chooses the state that follows a marker; returns what that is to read."""
        raise NotImplementedError

    def _end(self, parts: list[Part]) -> None:
        """What is held when the text ends."""
        raise NotImplementedError
