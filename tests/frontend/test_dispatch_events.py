"""Calls and reasoning in one piece, beside the chunks of a stream."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from dynamo.frontend.dispatch_events import Dispatches
from dynamo.frontend.message_reader import MessageReader
from dynamo.frontend.openai_answers import JsonObject
from dynamo.frontend.parsers.context import Functions, ReasoningContext
from dynamo.frontend.parsers.message import MessageParser
from dynamo.frontend.parsers.registry import reasoning_parser, tool_parser
from dynamo.frontend.postprocess import Delta
from dynamo.shared.errors import DynamoError

ALL = Dispatches(calls=True, reasoning=True)
TEXT = (
    "<think>hm, let me</think>Let me see. "
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
)
WEATHER = {"index": 0, "id": "call_0", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
PING = {"index": 1, "id": "call_1", "function": {"name": "ping", "arguments": "{}"}}


class Chunks:
    """A renderer whose chunks say only of which choice they are."""

    def of(self, delta: Delta) -> bytes:
        return b"data: %d\n\n" % delta.index

    def last(self) -> bytes:
        return b"data: last\n\n"

    def failed(self, error: DynamoError) -> bytes:
        return b"data: failed\n\n"

    def unanswered(self, nvext: JsonObject) -> bytes:
        return b"data: unanswered\n\n"


def events(dispatches: Dispatches, text: str, size: int, finish_reason: str = "stop", index: int = 0) -> list[Any]:
    """Of a text in pieces of `size` characters: (name, data) or the number of a choice."""
    ids = count()
    stages = [reasoning_parser("qwen3")(ReasoningContext()), tool_parser("hermes")(Functions([]))]
    parser = MessageParser(stages, lambda: f"call_{next(ids)}")
    reader = MessageReader(lambda: parser, len, pytest.fail)
    renderer = dispatches.wrap(Chunks())
    stream = b""
    for start in range(0, len(text), size):
        is_last = start + size >= len(text)
        delta = Delta(index, text[start : start + size], 1, finish_reason if is_last else None)
        reader.read(delta)
        stream += renderer.of(delta)
    return [_event(block) for block in stream.decode().split("\n\n") if block]


def _event(block: str) -> Any:
    name, _, data = block.rpartition("data: ")
    return (name.strip().removeprefix("event: "), json.loads(data)) if name else int(data)


def dispatched(found: list[Any]) -> list[Any]:
    return [event for event in found if isinstance(event, tuple)]


def thought(text: str, index: int = 0) -> tuple[str, JsonObject]:
    return "reasoning_dispatch", {"index": index, "reasoning_content": text}


def call(told: JsonObject, choice_index: int = 0) -> tuple[str, JsonObject]:
    return "tool_call_dispatch", {"choice_index": choice_index, "tool_call": told | {"type": "function"}}


@pytest.mark.parametrize("size", [1, 2, 7, 31, len(TEXT)])
def test_each_is_told_once_and_whole(size: int) -> None:
    found = events(ALL, TEXT, size)
    assert dispatched(found) == [thought("hm, let me"), call(WEATHER), call(PING)]
    assert found[-1] == 0  # the finish reason comes after all of them


def test_what_is_whole_is_told_at_once() -> None:
    found = events(ALL, "<think>a</think>b" + "c" * 20, 1)
    assert found.index(thought("a")) < found.index(0, found.index(thought("a"))) < len(found) - 20


def test_each_can_be_switched_off() -> None:
    assert dispatched(events(Dispatches(calls=True), TEXT, 5)) == [call(WEATHER), call(PING)]
    assert dispatched(events(Dispatches(reasoning=True), TEXT, 5)) == [thought("hm, let me")]
    chunks = Chunks()
    assert Dispatches().wrap(chunks) is chunks


def test_blocks_of_thought_with_nothing_between_are_one() -> None:
    found = events(ALL, "<think>a</think>\n<think>b</think>c", 1, index=3)
    assert dispatched(found) == [thought("ab", 3)]


def test_what_is_cut_off() -> None:
    """Thought without an end is still all there is; of a call a half is nothing that could be run."""
    assert dispatched(events(ALL, "<think>a", 1, "length")) == [thought("a")]
    cut = '<tool_call>{"name": "weather", "arguments": {"city": "Kö'
    assert dispatched(events(ALL, cut, 1, "length")) == []
