"""Deltas of text become deltas of parts, with the reasoning counted."""

from __future__ import annotations

from itertools import count

import pytest

from dynamo.frontend.message_reader import MessageReader
from dynamo.frontend.parsers.context import Functions, ReasoningContext
from dynamo.frontend.parsers.message import MessageParser, ToolCallDelta
from dynamo.frontend.parsers.parts import Reasoning
from dynamo.frontend.parsers.registry import reasoning_parser, tool_parser
from dynamo.frontend.postprocess import Delta

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
WORDS = ["<think>", "one ", "two", "</think>", "three ", "four", '<tool_call>{"name":"f","arguments":{}}</tool_call>']


def reader() -> MessageReader:
    stages = [reasoning_parser("qwen3")(ReasoningContext()), tool_parser("hermes")(Functions(TOOLS))]
    ids = count()
    return MessageReader(MessageParser(stages, lambda: f"call_{next(ids)}"), lambda text: len(text.split()))


def read(size: int, words: list[str]) -> tuple[list[Delta], int]:
    """Deltas of `size` words each, a word being a token."""
    chosen, deltas = reader(), []
    for start in range(0, len(words), size):
        piece = words[start : start + size]
        is_last = start + size >= len(words)
        deltas.append(Delta(0, "".join(piece), len(piece), "stop" if is_last else None))
        chosen.read(deltas[-1])
    return deltas, chosen.take_reasoning_tokens()


@pytest.mark.parametrize("size", range(1, len(WORDS) + 1))
def test_reasoning_tokens_are_counted_however_deltas_are_cut(size: int) -> None:
    deltas, num_reasoning_tokens = read(size, WORDS)
    parts = [part for delta in deltas for part in delta.parts or [delta.text]]
    assert "".join(part.text for part in parts if isinstance(part, Reasoning)) == "one two"
    assert "".join(part for part in parts if isinstance(part, str)) == "three four"
    assert [part.name for part in parts if isinstance(part, ToolCallDelta) and part.name] == ["f"]
    assert deltas[-1].finish_reason == "tool_calls"
    assert num_reasoning_tokens == 4


def test_plain_content_stays_text() -> None:
    deltas, num_reasoning_tokens = read(1, ["three ", "four"])
    assert [(delta.text, delta.parts, delta.finish_reason) for delta in deltas] == [
        ("three ", None, None),
        ("four", None, "stop"),
    ]
    assert num_reasoning_tokens == 0
