"""Whether the first token of an answer is already thought."""

from __future__ import annotations

import enum

from msgspec import Struct

from dynamo.frontend.parsers.context import ReasoningContext


class Start(enum.Enum):
    """THINKING: what comes is thought, with or without an opening marker. LOOKING: it is content until an opening
    marker. OFF: all of it is content, markers too."""

    THINKING = enum.auto()
    LOOKING = enum.auto()
    OFF = enum.auto()


class StartRule(Struct, frozen=True):
    """How answers start where the prompt does not show it: when a request says nothing of thinking, wants it, or does
    not want it."""

    unsaid: Start
    wanted: Start
    unwanted: Start

    def start(self, context: ReasoningContext) -> Start:
        if context.is_thinking is None:
            return self.unsaid
        return self.wanted if context.is_thinking else self.unwanted


MARKED = StartRule(Start.LOOKING, Start.LOOKING, Start.LOOKING)
MARKED_OR_OFF = StartRule(Start.LOOKING, Start.LOOKING, Start.OFF)
FORCED = StartRule(Start.THINKING, Start.THINKING, Start.THINKING)
FORCED_OR_OFF = StartRule(Start.THINKING, Start.THINKING, Start.OFF)
ON_DEMAND = StartRule(Start.OFF, Start.THINKING, Start.OFF)
MARKED_OR_FORCED = StartRule(Start.LOOKING, Start.THINKING, Start.OFF)
