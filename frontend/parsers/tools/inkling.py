"""Calls of Inkling, behind the reasoning parser of that name or alone: then thought is told from content here.

    <|message_model|>get_weather<|content_invoke_tool_json|>{"name": "get_weather", "args": {...}}<|end_message|>

What stands between the marker of a message and that of its kind is left out, and the name is that of the JSON. Dynamo
1.6.1 shows some of the markers, and drops what is no call after the marker of one.
"""

from __future__ import annotations

import re

from dynamo.frontend.parsers.call_reader import CallReader
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.parts import Part, Reasoning
from dynamo.frontend.parsers.tools.marked_calls import CallFormat, MarkedCalls

CALL = "<|content_invoke_tool_json|>"
MESSAGE = "<|message_model|>"
THOUGHT = "<|content_thinking|>"
MARKERS = Markers([CALL, MESSAGE, THOUGHT, "<|content_text|>", "<|end_message|>", "<|content_model_end_sampling|>"])
_SPACE = re.compile(r"\s*+")
_FORMAT = CallFormat(
    begin=(CALL,),
    markers=MARKERS,
    reader=lambda first: CallReader() if first == "{" else None,
    opening=_SPACE,
    separators=_SPACE,
    may_be_bare=False,
)


class Inkling(MarkedCalls):
    __slots__ = ()

    def __init__(self, functions: Functions) -> None:
        super().__init__(_FORMAT, functions)

    def _after_marker(self, marker: str, rest: str) -> str:
        rest = super()._after_marker(marker, rest)
        if marker in (MESSAGE, THOUGHT):
            self._state = Inkling._header if marker == MESSAGE else Inkling._thought
        return rest

    def _header(self, text: str, parts: list[Part]) -> str:
        return self._up_to_marker(text)[1]

    def _thought(self, text: str, parts: list[Part]) -> str:
        thought, rest = self._up_to_marker(text)
        if thought:
            parts.append(Reasoning(thought))
        return rest

    def _up_to_marker(self, text: str) -> tuple[str, str]:
        """Text before the next marker and what is left after it, in the state that this begins."""
        marker = MARKERS.find(text)
        if marker is not None:
            return text[: marker.start()], self._after_marker(marker[0], text[marker.end() :])
        end = len(text) - MARKERS.num_held(text)
        self._held = text[end:]
        return text[:end], ""
