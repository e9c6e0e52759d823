"""Reasoning formats; `REASONING_PARSERS` are all names that a model card may give."""

from __future__ import annotations

from dynamo.frontend.parsers.context import ReasoningParserFactory
from dynamo.frontend.parsers.reasoning.append_think import AppendThink
from dynamo.frontend.parsers.reasoning.delimited_families import DELIMITED_FAMILIES

REASONING_PARSERS: dict[str, ReasoningParserFactory] = {
    **DELIMITED_FAMILIES,
    "minimax_append_think": AppendThink,
}
