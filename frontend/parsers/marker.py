"""The markers of a format, found in text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from dynamo.frontend.parsers.parts import Part

State: TypeAlias = Callable[[Any, str, list[Part]], str]
"""A method. It reads a text that is not empty, appends to the parts, and returns what is left for the next state. What
it cannot tell before more comes, it leaves in `_held`."""


class Markers:
    """Immutable, made once per format. No marker may be the beginning of another."""

    __slots__ = ("_beginnings", "_longest", "find", "may_begin")

    def __init__(self, markers: Iterable[str]) -> None:
        """`find` searches for the first whole marker; `may_begin` for a character that one begins with, which nearly
        all text lacks. Both are `re.Pattern.search`."""
        markers = list(markers)
        self.find = re.compile("|".join(map(re.escape, markers))).search
        self.may_begin = re.compile(f"[{re.escape(''.join(sorted({marker[0] for marker in markers})))}]").search
        self._beginnings = frozenset(marker[:length] for marker in markers for length in range(1, len(marker)))
        self._longest = max(map(len, self._beginnings), default=0)

    def num_held(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a marker."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


def end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """`pattern` must match an empty text too."""
    return pattern.match(text, at).end()  # type: ignore[union-attr]
