"""Deltas of text become deltas of parts, with the reasoning counted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from dynamo.frontend.message_reader import MAX_PIECE, MessageReader
from dynamo.frontend.parsers.context import Functions, ReasoningContext
from dynamo.frontend.parsers.message import MessageParser, ToolCallDelta
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part, Reasoning
from dynamo.frontend.parsers.plug_in import checked
from dynamo.frontend.parsers.registry import reasoning_parser, tool_parser
from dynamo.frontend.postprocess import Delta

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
WORDS = ["<think>", "one ", "two", "</think>", "three ", "four", '<tool_call>{"name":"f","arguments":{}}</tool_call>']


def reader() -> MessageReader:
    stages = [reasoning_parser("qwen3")(ReasoningContext()), tool_parser("hermes")(Functions(TOOLS))]
    ids = count()
    parser = MessageParser(stages, lambda: f"call_{next(ids)}")
    return MessageReader(lambda: parser, lambda text: len(text.split()), pytest.fail)


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


def test_a_long_delta_is_read_in_pieces() -> None:
    call = '<tool_call>{"name":"f","arguments":{}}</tool_call>'
    delta = Delta(0, "<think>" + "a" * MAX_PIECE + "</think>" + "b" * MAX_PIECE + call * 1000, 9, "stop")
    reader().read(delta)
    thought, content, *calls = delta.parts or []
    assert (thought, content) == (Reasoning("a" * MAX_PIECE), "b" * MAX_PIECE)
    assert [(call.index, call.name, call.arguments) for call in calls if isinstance(call, ToolCallDelta)] == [
        (index, "f", "{}") for index in range(1000)
    ]


def test_plain_content_stays_text() -> None:
    deltas, num_reasoning_tokens = read(1, ["three ", "four"])
    assert [(delta.text, delta.parts, delta.finish_reason) for delta in deltas] == [
        ("three ", None, None),
        ("four", None, "stop"),
    ]
    assert num_reasoning_tokens == 0


class Failing:
    """Holds one piece of text back, and raises with the text that says so."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> list[Part]:
        if text == "raise":
            raise ValueError(text)
        text, self._held = self._held, text
        return [text] if text else []

    def flush(self) -> list[Part]:
        if self._held == "raise at the end":
            raise ValueError(self._held)
        return [self._held]


def content_of(make_parser: Callable[[], MessageParser], pieces: list[str]) -> tuple[str, bool, int]:
    """With whether the parser failed, and how often that was told."""
    failures: list[None] = []
    chosen, text = MessageReader(make_parser, len, lambda: failures.append(None)), ""
    for number, piece in enumerate(pieces, 1):
        delta = Delta(0, piece, 1, "stop" if number == len(pieces) else None)
        chosen.read(delta)
        assert delta.parts is None
        text += delta.text
    return text, chosen.has_failed, len(failures)


@pytest.mark.parametrize(
    ("pieces", "content"),
    [
        (["a", "b", "raise", "c"], "araisec"),  # "b" was held back
        (["raise", "a", "raise"], "raisearaise"),
        (["a", "raise at the end"], "raise at the end"),
        (["raise"], "raise"),
    ],
)
def test_a_parser_that_raises_is_left_out_from_there(pieces: list[str], content: str) -> None:
    assert content_of(lambda: MessageParser([Failing()], str), pieces) == (content, True, 1)


def test_a_parser_that_cannot_be_made_is_left_out() -> None:
    def make_parser() -> MessageParser:
        raise ValueError("not today")

    assert content_of(make_parser, ["a", "b"]) == ("ab", True, 1)


class Odd:
    """Gives what it is told to give."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def push(self, text: str) -> list[Part]:
        answer: list[Part] = self._answer
        return answer

    def flush(self) -> list[Part]:
        return []


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [None],
        [1, 2],
        [CallArguments("{}")],
        [CallStart("")],
        [CallStart("f", 3)],  # type: ignore[arg-type]  # as all that is not typed
        [Reasoning(b"")],  # type: ignore[arg-type]
        ["\ud83d"],
        [CallStart("f"), CallArguments("\ud83d")],
    ],
)
def test_a_plug_in_that_gives_what_is_no_part(answer: Any) -> None:
    make = checked(lambda _context: Odd(answer))
    assert content_of(lambda: MessageParser([make(None)], str), ["a", "b"]) == ("ab", True, 1)


def test_what_plug_ins_give_is_passed_on() -> None:
    parts = ["a", "", Reasoning(""), Reasoning("b"), CallStart("f", "1"), CallArguments(""), CallArguments("{}")]
    make = checked(lambda _context: Odd(parts))
    assert make(None).push("x") == [part for part in parts if part not in ("", Reasoning(""), CallArguments(""))]
