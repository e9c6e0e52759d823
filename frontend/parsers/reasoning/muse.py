"""Messages of Muse: to itself it writes thought, to the user or a tool content; the tool-call parser finds calls by
their own markup."""

from __future__ import annotations

from dynamo.frontend.parsers.context import ReasoningContext
from dynamo.frontend.parsers.framed import START, Frame, FramedParser, FrameMarkers, Header
from dynamo.frontend.parsers.parts import Part

MARKERS = FrameMarkers([START], ["<|eom|>", "<|eot|>"])


class Muse(FramedParser):
    __slots__ = ()

    def __init__(self, context: ReasoningContext) -> None:
        super().__init__(MARKERS, context)

    def _kind_of(self, header: Header) -> Frame:
        if header.recipient == "self":
            return Frame.THOUGHT
        return Frame.CONTENT if header.recipient in ("", "user") else Frame.CALL

    def _begin_call(self, header: Header, parts: list[Part]) -> None:
        pass

    def _end_call(self, marker: str, parts: list[Part]) -> None:
        pass
