"""MiniMax M2 as its clients like it that read thought from the content: everything is content, and the opening marker
that the prompt has taken is put back."""

from __future__ import annotations

from dynamo.frontend.parsers.context import ReasoningContext
from dynamo.frontend.parsers.parts import Part


class AppendThink:
    __slots__ = ("_opening",)

    def __init__(self, context: ReasoningContext) -> None:
        del context  # whatever a request says, the marker is put back
        self._opening = "<think>"

    def push(self, text: str) -> list[Part]:
        if not text:
            return []
        if self._opening:
            text, self._opening = self._opening + text, ""
        return [text]

    def flush(self) -> list[Part]:
        return []
