"""Answers that a guide wants to be JSON. A worker whose guide leaves no room for thought writes it from the first
character on; where a format takes any answer's beginning for thought, all of it would be."""

from __future__ import annotations

import re

from dynamo.frontend.parsers.marked import MAX_SPACE
from dynamo.frontend.parsers.parts import Parser, Part

_OBJECT_OR_ARRAY = re.compile(r'\s*(?:\{|\[\s*["{\[\]tfn0-9-])').match  # an array, and no marker like [THINK]
_UNDECIDED = re.compile(r"\s*\[?\s*\Z").match


class UnlessJson:
    """What begins with a JSON object or array is content to its end; anything else is for the parser of reasoning, a
    scalar too."""

    __slots__ = ("_held", "_is_json", "_reasoning")

    def __init__(self, reasoning: Parser) -> None:
        self._reasoning = reasoning
        self._held = ""
        self._is_json: bool | None = None  # None until it shows

    def push(self, text: str) -> list[Part]:
        if self._is_json is None:
            text, self._held = self._held + text, ""
            if len(text) < MAX_SPACE and _UNDECIDED(text):
                self._held = text
                return []
            self._is_json = _OBJECT_OR_ARRAY(text, 0, MAX_SPACE) is not None
        if not self._is_json:
            return self._reasoning.push(text)
        return [text] if text else []

    def flush(self) -> list[Part]:
        held, self._held = self._held, ""
        return [*self._reasoning.push(held), *self._reasoning.flush()]
