"""The parsers of one answer in a row, and its calls numbered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, groupby
from typing import Any, TypeAlias

from msgspec import Struct

from dynamo.frontend.parsers.parts import CallArguments, CallStart, Parser, Part, Reasoning


class ToolCallDelta(Struct, gc=False):
    """News of the call `index` of a message: the first of a call has its `id` and `name`, all may have `arguments`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


MessagePart: TypeAlias = str | Reasoning | ToolCallDelta


class MessageParser:
    """Text in, parts of a message out: first reasoning is told from content, then calls are."""

    __slots__ = ("_new_id", "_num_calls", "_stages")

    def __init__(self, stages: Sequence[Parser], new_id: Callable[[], str]) -> None:
        """`new_id` makes the id of a call for which the model writes none."""
        self._stages = stages
        self._new_id = new_id
        self._num_calls = 0

    @property
    def has_calls(self) -> bool:
        return self._num_calls > 0

    def push(self, text: str) -> list[MessagePart]:
        """Plain content, which nearly all text is, takes the short way."""
        parts: list[Part] = [text]
        for stage in self._stages:
            if len(parts) == 1 and type(parts[0]) is str:
                parts = stage.push(parts[0])
            else:
                parts = list(chain.from_iterable(_pass(stage, part) for part in parts))
        if len(parts) == 1 and type(part := parts[0]) is not CallStart and type(part) is not CallArguments:
            return parts  # type: ignore[return-value]  # content or reasoning, which both unions have
        return self._numbered(parts)

    def flush(self) -> list[MessagePart]:
        parts: list[Part] = []
        for stage in self._stages:
            parts = [*chain.from_iterable(_pass(stage, part) for part in parts), *stage.flush()]
        return self._numbered(parts)

    def _numbered(self, parts: list[Part]) -> list[MessagePart]:
        return merged([self._number(part) for part in parts]) if parts else []

    def _number(self, part: Part) -> MessagePart:
        if isinstance(part, CallStart):
            self._num_calls += 1
            return ToolCallDelta(self._num_calls - 1, part.id or self._new_id(), part.name)
        if isinstance(part, CallArguments):
            return ToolCallDelta(self._num_calls - 1, arguments=part.json)
        return part


def merged(parts: list[MessagePart]) -> list[MessagePart]:
    """Neighbours of one kind as one part, so that a call is whole if all of it is there; without empty text."""
    if len(parts) == 1:
        return parts if parts[0] else []
    whole = (_join(kind, list(group)) for kind, group in groupby(parts, kind_of))
    return [part for part in whole if part]


def kind_of(part: MessagePart) -> type | int:
    """Equal for parts that belong together; of a call its index."""
    return part.index if isinstance(part, ToolCallDelta) else type(part)


def text_of(part: MessagePart) -> str:
    """What is added to by parts that follow: of a call its arguments."""
    if isinstance(part, str):
        return part
    return part.text if isinstance(part, Reasoning) else part.arguments


def _join(kind: type | int, group: list[Any]) -> MessagePart:
    if kind is str:
        return "".join(group)
    if kind is Reasoning:
        return Reasoning("".join(part.text for part in group))
    first = group[0]
    return ToolCallDelta(first.index, first.id, first.name, "".join(part.arguments for part in group))


def _pass(stage: Parser, part: Part) -> list[Part]:
    return stage.push(part) if isinstance(part, str) else [part]
