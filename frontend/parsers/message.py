"""The parsers of one answer in a row, and its calls numbered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeAlias

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
        parts: list[Part] = [text]
        for stage in self._stages:
            parts = list(chain.from_iterable(_pass(stage, part) for part in parts))
        return self._numbered(parts)

    def flush(self) -> list[MessagePart]:
        parts: list[Part] = []
        for stage in self._stages:
            parts = [*chain.from_iterable(_pass(stage, part) for part in parts), *stage.flush()]
        return self._numbered(parts)

    def _numbered(self, parts: list[Part]) -> list[MessagePart]:
        """Neighbours of one kind become one part."""
        numbered: list[MessagePart] = []
        for part in parts:
            last = numbered[-1] if numbered else None
            if isinstance(part, CallStart):
                numbered.append(ToolCallDelta(self._num_calls, part.id or self._new_id(), part.name))
                self._num_calls += 1
            elif isinstance(part, CallArguments):
                if isinstance(last, ToolCallDelta):
                    last.arguments += part.json
                else:
                    numbered.append(ToolCallDelta(self._num_calls - 1, arguments=part.json))
            elif isinstance(part, str) and isinstance(last, str):
                numbered[-1] = last + part
            elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
                numbered[-1] = Reasoning(last.text + part.text)
            else:
                numbered.append(part)
        return numbered


def _pass(stage: Parser, part: Part) -> list[Part]:
    return stage.push(part) if isinstance(part, str) else [part]
