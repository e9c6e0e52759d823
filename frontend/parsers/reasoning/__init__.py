"""Reasoning formats; `REASONING_PARSERS` are all names that a model card may give."""

from __future__ import annotations

from dynamo.frontend.parsers.context import ReasoningParserFactory

REASONING_PARSERS: dict[str, ReasoningParserFactory] = {}
