"""Which parsers a chat template implies: it writes past calls and thought with the very markers that the model uses."""

from __future__ import annotations

import re
from typing import NamedTuple

_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


class Detected(NamedTuple):
    """None where a template shows nothing, or what could be read in more than one way."""

    tool_parser: str | None
    reasoning_parser: str | None


NOTHING = Detected(None, None)


class _Rule(NamedTuple):
    """Holds for a template with all of `marks` and none of `without`."""

    parser: str
    marks: tuple[str, ...]
    without: tuple[str, ...] = ()

    def holds(self, source: str) -> bool:
        return all(mark in source for mark in self.marks) and not any(mark in source for mark in self.without)


_DEEPSEEK = "<｜Assistant｜>"  # noqa: RUF001
_DEEPSEEK_CALLS = "<｜tool▁calls▁begin｜>"  # noqa: RUF001
_DSML = "｜DSML｜"  # noqa: RUF001
_THINK = ("<think>", "</think>")

_TOOL_RULES = (
    _Rule("deepseek_v3", (_DEEPSEEK_CALLS, "```json")),
    _Rule("deepseek_v3_1", (_DEEPSEEK_CALLS,), ("```json",)),
    _Rule("deepseek_v3_2", (_DSML, "function_calls>")),
    _Rule("deepseek_v4", (_DSML, "tool_calls>"), ("function_calls>",)),
    _Rule("gemma4", ("<|tool_call>", "<tool_call|>")),
    _Rule("glm45", ("<tool_call>", "<arg_key>")),
    _Rule("harmony", ("<|channel|>", "functions.")),
    _Rule("hermes", ("<tool_call>",), ("<function=", "<arg_key>")),
    _Rule("inkling", ("<|content_invoke_tool_json|>",)),
    _Rule("jamba", ("<tool_calls>[",)),
    _Rule("kimi_k2", ("<|tool_calls_section_begin|>",)),
    _Rule("kimi_k3", ("<|open|>", "<|close|>", "tools")),
    _Rule("llama3_json", ("<|start_header_id|>", '"parameters"')),
    _Rule("minimax_m2", ("<minimax:tool_call>",)),
    _Rule("minimax_m3", ("]<]minimax[>[",)),
    _Rule("mistral", ("[TOOL_CALLS]",)),
    _Rule("muse", ("<atem:invoke",)),
    _Rule("nemotron_deci", ("<TOOLCALL>",)),
    _Rule("phi4", ("functools[",)),
    _Rule("qwen3_coder", ("<tool_call>", "<function=")),
)
_REASONING_RULES = (
    _Rule("deepseek_r1", (*_THINK, _DEEPSEEK), ("set thinking",)),
    _Rule("deepseek_v3_1", (*_THINK, _DEEPSEEK, "set thinking")),
    _Rule("gemma4", ("<|channel>", "<channel|>")),
    _Rule("glm45", (*_THINK, "<arg_key>")),
    _Rule("gpt_oss", ("<|channel|>", "analysis")),
    _Rule("granite", ("Here is my thought process",)),
    _Rule("inkling", ("<|content_thinking|>",)),
    _Rule("kimi", ("◁think▷",)),
    _Rule("kimi_k2", (*_THINK, "<|im_middle|>")),
    _Rule("kimi_k3", ("<|open|>", "<|close|>", "think")),
    _Rule("minimax_m2", (*_THINK, "<minimax:tool_call>")),
    _Rule("minimax_m3", ("<mm:think>",)),
    _Rule("mistral", ("[THINK]", "[/THINK]")),
    _Rule("muse", ("<|eom|>", "to=self")),
    _Rule(
        "qwen3",
        (*_THINK, "<|im_start|>"),
        # Those that think in the same way and answer in another, and the families above.
        ("<response>", "<|im_middle|>", "<minimax:tool_call>", "<arg_key>", _DEEPSEEK),
    ),
)


def detect(template_source: str) -> Detected:
    """Parsers for the model of this chat template, which has several joined into one text where it has several."""
    source = _COMMENT.sub("", template_source)
    return Detected(_only(_TOOL_RULES, source), _only(_REASONING_RULES, source))


def _only(rules: tuple[_Rule, ...], source: str) -> str | None:
    parsers = [rule.parser for rule in rules if rule.holds(source)]
    return parsers[0] if len(parsers) == 1 else None
