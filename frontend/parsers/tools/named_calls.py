"""Calls whose name stands before the JSON of their arguments: Mistral, DeepSeek V3 and V3.1, Kimi K2.

    [TOOL_CALLS]get_time[ARGS]{"zone": "UTC"}           newer Mistral; [ARGS] may be missing, [CALL_ID]... be there
    [TOOL_CALLS][{"name": ..., "arguments": ...}]       older Mistral
    <｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time  DeepSeek V3: the JSON follows between fences
    <｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{...}     DeepSeek V3.1
    <|tool_call_begin|>functions.get_time:0<|tool_call_argument_begin|>{...}    Kimi K2; all of the name is the id

Both of DeepSeek are one format that takes either. Sections around calls are not asked for. Dynamo 1.6.1 drops calls
without their end marker, DeepSeek's with a header of the other version, Kimi's without a number and the newer Mistral
format altogether; here they are calls. It also drops what else stands in a section, which is content here, and its
parser `kimi_k25` finds no calls at all.
"""

# ruff: noqa: RUF001, RUF002 (the bars of DeepSeek's markers are full-width)

from __future__ import annotations

import re
from collections.abc import Iterable

from dynamo.frontend.parsers.call_reader import CallReader, Reader
from dynamo.frontend.parsers.context import ToolParserFactory
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.named_reader import NamedReader
from dynamo.frontend.parsers.tools.json_calls import JSON_OPENING, JSON_SEPARATORS
from dynamo.frontend.parsers.tools.marked_calls import CallFormat, MarkedCalls

_NO_OPENING = re.compile("")
_FENCE = re.compile(r"\s*+`{0,3}+")

_MISTRAL_HEADER = re.compile(r"\s*(?P<name>[^\s\[\]{<]+)\s*(?:\[CALL_ID\]\s*(?P<id>\w+)\s*)?(?:\[ARGS\]\s*)?(?=\{)")
_DEEPSEEK_HEADER = re.compile(
    r"\s*(?:function\s*<｜tool▁sep｜>\s*(?P<name>[^\s<`{\[\"]+)\s*(?:```(?:json)?\s*)?"
    r"|(?P<plain_name>[^\s<`{]+)\s*<｜tool▁sep｜>\s*)(?=[{\[\"<])"
)
_KIMI_HEADER = re.compile(
    r"\s*(?:(?P<id>(?:functions\.)?(?P<name>[^\s<]+):\d+)|(?:functions\.)?(?P<plain_name>[^\s<]+))"
    r"\s*<\|tool_call_argument_begin\|>\s*(?=\S)"
)


def _deepseek() -> ToolParserFactory:
    begin = "<｜tool▁call▁begin｜>"
    others = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>")
    return _family(begin, others, "<｜tool▁sep｜>", _DEEPSEEK_HEADER)


def _kimi() -> ToolParserFactory:
    sections = [f"<|tool_{calls}_section_{edge}|>" for calls in ("calls", "call") for edge in ("begin", "end")]
    others = (*sections, "<|tool_call_end|>")
    return _family("<|tool_call_begin|>", others, "<|tool_call_argument_begin|>", _KIMI_HEADER)


def _family(begin: str, others: Iterable[str], separator: str, header: re.Pattern[str]) -> ToolParserFactory:
    stops = Markers([begin, *others])
    call_format = CallFormat(
        (begin,),
        Markers([begin, *others, separator]),
        lambda first: NamedReader(header, stops),
        _NO_OPENING,
        _FENCE,
        may_be_bare=False,
    )
    return lambda functions: MarkedCalls(call_format, functions)


def _mistral() -> ToolParserFactory:
    markers = Markers(["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"])
    stops = Markers(["TOOL_CALLS]"])  # its bracket may have been taken for that of a list

    def reader(first: str) -> Reader | None:
        return CallReader() if first == "{" else NamedReader(_MISTRAL_HEADER, stops)

    call_format = CallFormat(("[TOOL_CALLS]",), markers, reader, JSON_OPENING, JSON_SEPARATORS, may_be_bare=True)
    return lambda functions: MarkedCalls(call_format, functions)


_DEEPSEEK = _deepseek()
_KIMI = _kimi()

NAMED_PARSERS: dict[str, ToolParserFactory] = {
    "mistral": _mistral(),
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v3_1": _DEEPSEEK,
    "kimi_k2": _KIMI,
    "kimi_k25": _KIMI,
}
