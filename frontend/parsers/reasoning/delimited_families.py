"""Families that differ in their markers, and in how an answer starts."""

from __future__ import annotations

from dynamo.frontend.parsers.context import ReasoningParserFactory
from dynamo.frontend.parsers.reasoning.delimited import delimited
from dynamo.frontend.parsers.reasoning.start import (
    FORCED,
    FORCED_OR_OFF,
    MARKED,
    MARKED_OR_FORCED,
    MARKED_OR_OFF,
    ON_DEMAND,
    StartRule,
)

DSML_CALLS = ("<｜DSML｜tool_calls>",)  # noqa: RUF001
KIMI_CALLS = ("<|tool_calls_section_begin|>",)
MINIMAX_CALLS = ("<minimax:tool_call>",)
NEMOTRON_CALLS = ("<tool_call>",)


def _think(rule: StartRule, calls: tuple[str, ...] = ()) -> ReasoningParserFactory:
    return delimited("<think>", "</think>", rule, calls)


_DEEPSEEK_V4 = _think(MARKED_OR_OFF, DSML_CALLS)
_GEMMA = delimited("<|channel>", "<channel|>", MARKED, label="thought\n")
_MINIMAX_M3 = delimited("<mm:think>", "</mm:think>", MARKED_OR_OFF)
_NEMOTRON_3 = _think(FORCED_OR_OFF, NEMOTRON_CALLS)

DELIMITED_FAMILIES: dict[str, ReasoningParserFactory] = {
    "basic": _think(MARKED),
    "deepseek_r1": _think(FORCED_OR_OFF),
    "deepseek_v3": _think(ON_DEMAND),
    "deepseek_v3_1": _think(ON_DEMAND),
    "deepseek_v3_2": _think(FORCED_OR_OFF),
    "deepseek_v4": _DEEPSEEK_V4,
    "deepseek-v4": _DEEPSEEK_V4,
    "deepseekv4": _DEEPSEEK_V4,
    "deepseek_v41": _DEEPSEEK_V4,
    "gemma4": _GEMMA,
    "gemma-4": _GEMMA,
    "glm45": _think(MARKED),
    "glm47": _think(MARKED),
    "granite": delimited(
        ("Here's my thought process:", "Here is my thought process:"),
        ("Here's my response:", "Here is my response:"),
        MARKED,
    ),
    "kimi": delimited("◁think▷", "◁/think▷", MARKED),
    "kimi_k2": _think(MARKED),
    "kimi_k25": _think(FORCED_OR_OFF, KIMI_CALLS),
    "minimax_m2": _think(FORCED_OR_OFF, MINIMAX_CALLS),
    "minimax_m3": _MINIMAX_M3,
    "minimax-m3": _MINIMAX_M3,
    "mistral": delimited("[THINK]", "[/THINK]", MARKED_OR_FORCED),
    "nemotron3": _NEMOTRON_3,
    "nemotron_v3": _NEMOTRON_3,
    "nemotron_deci": _think(MARKED),
    "nemotron_nano": _think(FORCED_OR_OFF),
    "qwen3": _think(MARKED),
    "qwen3_coder": _think(MARKED),
    "step3": _think(FORCED),
}
