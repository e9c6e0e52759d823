"""Thought of gpt-oss. Calls are passed on as they stand, for the tool-call parser `harmony`."""

from __future__ import annotations

from dynamo.frontend.parsers.context import ReasoningContext
from dynamo.frontend.parsers.framed import START, Header
from dynamo.frontend.parsers.harmony import CALL_END, MARKERS, HarmonyFrames
from dynamo.frontend.parsers.parts import Part

ROLE = START + "assistant"


class GptOss(HarmonyFrames):
    __slots__ = ()

    def __init__(self, context: ReasoningContext) -> None:
        super().__init__(MARKERS, context)

    def _begin_call(self, header: Header, parts: list[Part]) -> None:
        """The header from its channel on, or from its beginning where a recipient comes before that."""
        text = header.text.removeprefix(ROLE)
        parts.append(text if text.startswith("<|") else ROLE + text)

    def _end_call(self, marker: str, parts: list[Part]) -> None:
        parts.append(CALL_END)
