"""What parsers of marked text share: states that read up to the next marker, and a short way for text without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from dynamo.frontend.parsers.marker import Markers, State
from dynamo.frontend.parsers.parts import Part


class MarkerReader:
    """A subclass has states, and knows by `_state` and `_markers` what comes next. `is_over`: that is only content."""

    __slots__ = ("_held", "_is_over", "_is_plain", "_kind", "_markers", "_state")

    plain: ClassVar[frozenset[State]]  # where all text up to a marker is of `_kind`

    def __init__(self, state: State, markers: Markers, kind: Callable[[str], Part] = str) -> None:
        self._held = ""
        self._is_over = False
        self._is_plain = False  # nothing is held in a plain state
        self._kind = kind
        self._markers = markers
        self._state = state

    def push(self, text: str) -> list[Part]:
        if self._is_over:
            return [text] if text else []
        if self._is_plain and self._markers.may_begin(text) is None:
            return [text if self._kind is str else self._kind(text)] if text else []
        parts: list[Part] = []
        rest, self._held = self._held + text, ""
        while rest:
            rest = self._state(self, rest, parts)
        self._is_plain = not self._held and self._state in self.plain
        return parts

    def _split(self, text: str) -> tuple[str, str, str]:
        """Text up to the first marker, that marker, and the rest; without one, what may begin one is held."""
        marker = self._markers.find(text)
        if marker is not None:
            return text[: marker.start()], marker[0], text[marker.end() :]
        end = len(text) - self._markers.num_held(text)
        self._held = text[end:]
        return text[:end], "", ""

    def _end(self, text: str, parts: list[Part]) -> str:
        """This text and all that comes is content."""
        self._is_over = True
        self._held = ""
        if text:
            parts.append(text)
        return ""

    def _add(self, text: str, parts: list[Part]) -> None:
        if text:
            parts.append(self._kind(text))
