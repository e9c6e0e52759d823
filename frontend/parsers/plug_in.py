"""Parsers of other packages, whose results are checked: renderers trust that they are what they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from dynamo.frontend.parsers.parts import CallArguments, CallStart, Parser, Part, Reasoning

C = TypeVar("C")


def checked(factory: Callable[[C], Parser]) -> Callable[[C], Parser]:
    """The same parsers; they raise TypeError or ValueError where they would give what is no part of a message."""
    return lambda context: _CheckedParser(factory(context))


class _CheckedParser:
    __slots__ = ("_has_calls", "_parser")

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._has_calls = False

    def push(self, text: str) -> list[Part]:
        return self._checked(self._parser.push(text))

    def flush(self) -> list[Part]:
        return self._checked(self._parser.flush())

    def _checked(self, parts: Iterable[Any]) -> list[Part]:
        return [part for part in parts if self._says_something(part)]

    def _says_something(self, part: object) -> bool:
        match part:
            case str(text) | Reasoning(text=str(text)):
                return bool(text.encode())  # half a surrogate pair could not be sent
            case CallStart(name=str(name), id=str() | None as id) if name:
                self._has_calls = True
                return bool(f"{name}{id}".encode())
            case CallArguments(json=str(json)) if self._has_calls:
                return bool(json.encode())
            case CallArguments():
                raise TypeError("arguments before the start of a call")
            case _:
                raise TypeError(f"{part!r:.200} is no part of a message")
