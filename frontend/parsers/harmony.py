"""Messages of gpt-oss: thought on the channel `analysis`, answers on `final`, and on `commentary` what a model says
before it calls. A message to a recipient is a call."""

from __future__ import annotations

from dynamo.frontend.parsers.framed import START, Frame, FramedParser, FrameMarkers, Header

CALL_END = "<|call|>"
FUNCTIONS = "functions."
MARKERS = FrameMarkers([START, "<|channel|>"], ["<|end|>", "<|return|>", CALL_END])
PEOPLE = ("", "user", "assistant")
BUILT_IN_TOOLS = ("python", "browser", "container")
"""What they are told is of no use to a client that did not offer them: it counts as thought."""


class HarmonyFrames(FramedParser):
    __slots__ = ()

    def _kind_of(self, header: Header) -> Frame:
        if header.recipient in PEOPLE:
            return Frame.THOUGHT if header.channel == "analysis" else Frame.CONTENT
        is_built_in = header.recipient.partition(".")[0] in BUILT_IN_TOOLS
        return Frame.THOUGHT if is_built_in else Frame.CALL
