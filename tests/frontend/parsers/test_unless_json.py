"""Answers that must be JSON, read by formats that take the beginning of any answer for thought, and by others."""

from __future__ import annotations

import pytest

from dynamo.frontend.parsers.context import ReasoningContext
from dynamo.frontend.parsers.marked import MAX_SPACE
from dynamo.frontend.parsers.parts import Parser
from dynamo.frontend.parsers.reasoning.unless_json import UnlessJson
from dynamo.frontend.parsers.registry import reasoning_parser
from tests.frontend.parsers.golden import Golden, check_golden, golden

FORCED = "deepseek_r1"


def parser(family: str, prompt_end: str = "") -> Parser:
    return UnlessJson(reasoning_parser(family)(ReasoningContext(prompt_end)))


GOLDENS = [
    golden("an object", '{"a": "</think>"}', '{"a": "</think>"}'),
    golden("space before", ' \n {"a": 1} ', ' \n {"a": 1} '),
    golden("an array", ' [ \n{"a": 1}]', ' [ \n{"a": 1}]'),
    golden("an empty array", "[]", "[]"),
    golden("an array of numbers", "[-1]", "[-1]"),
    golden("thought", 'hm</think>{"a": 1}', '{"a": 1}', reasoning="hm"),
    golden("thought in a marker", '<think>{</think>{"a": 1}', '{"a": 1}', reasoning="{"),
    golden("thought about brackets", "[Look] {</think>1", "1", reasoning="[Look] {"),
    golden("a scalar", "12", reasoning="12"),
    golden("a bracket alone", " [ ", reasoning=" [ "),
    golden("space without an end", " " * MAX_SPACE + " {", reasoning=" " * MAX_SPACE + " {"),
    golden("nothing", ""),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_messages_do_not_depend_on_cuts(case: Golden) -> None:
    check_golden(lambda: parser(FORCED), case)


def test_a_marker_may_begin_as_an_array_does() -> None:
    check_golden(lambda: parser("mistral"), golden("", "[THINK]a[/THINK][1]", "[1]", reasoning="a"))


def test_a_prompt_may_have_opened_a_block() -> None:
    check_golden(lambda: parser("qwen3", "<think>"), golden("", '{"a": 1}', '{"a": 1}'))


def test_markers_in_strings_are_text() -> None:
    text = '{"a": "<think>x</think>"}'
    check_golden(lambda: parser("qwen3"), golden("", text, text))
