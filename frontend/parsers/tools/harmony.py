"""Calls of gpt-oss, behind the reasoning parser `gpt_oss` or alone: then thought is told from content here.

A call is complete however its message ends: the token of `<|call|>` often ends the answer and is not shown.
"""

from __future__ import annotations

from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.framed import Frame, Header
from dynamo.frontend.parsers.harmony import FUNCTIONS, MARKERS, HarmonyFrames
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part


class Harmony(HarmonyFrames):
    __slots__ = ()

    def __init__(self, functions: Functions) -> None:
        del functions  # arguments are JSON whatever they are
        super().__init__(MARKERS)

    def _begin_call(self, header: Header, parts: list[Part]) -> None:
        parts.append(CallStart(header.recipient.removeprefix(FUNCTIONS)))
        self._kind = CallArguments

    def _end_call(self, marker: str, parts: list[Part]) -> None:
        if Frame.CALL not in self._written:
            parts.append(CallArguments("{}"))
