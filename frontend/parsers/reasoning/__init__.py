"""Reasoning formats; `REASONING_PARSERS` are all names that a model card may give."""

from __future__ import annotations

from dynamo.frontend.parsers.context import ReasoningParserFactory
from dynamo.frontend.parsers.reasoning.append_think import AppendThink
from dynamo.frontend.parsers.reasoning.delimited_families import DELIMITED_FAMILIES
from dynamo.frontend.parsers.reasoning.gpt_oss import GptOss
from dynamo.frontend.parsers.reasoning.muse import Muse
from dynamo.frontend.parsers.reasoning.sectioned import SECTIONED_FAMILIES

REASONING_PARSERS: dict[str, ReasoningParserFactory] = {
    **DELIMITED_FAMILIES,
    **SECTIONED_FAMILIES,
    "gpt_oss": GptOss,
    "minimax_append_think": AppendThink,
    "muse": Muse,
    "muse_glimmer": Muse,
}
