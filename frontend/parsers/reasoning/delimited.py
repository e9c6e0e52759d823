"""Thought between an opening and a closing marker, as most models write it.

An answer has one block of thought, or several with nothing but space between them. Once content has followed a block,
all is content: a marker in it is talk about markers, or part of a call's arguments. A closing marker without a block
is dropped. A call may begin inside a block that is not closed: for the formats that allow it, it ends the thought.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from dynamo.frontend.parsers.context import ReasoningContext, ReasoningParserFactory
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.parts import Parser, Part, Reasoning
from dynamo.frontend.parsers.reasoning.start import Start, StartRule

State: TypeAlias = Callable[[Any, str, list[Part]], str]
"""A method. It reads a text that is not empty, appends to the parts, and returns what is left for the next state."""


class DelimitedFormat:
    """Immutable, made once per family. `label` is a line that models write right after the opening marker."""

    def __init__(
        self,
        openers: tuple[str, ...],
        closers: tuple[str, ...],
        rule: StartRule,
        calls: tuple[str, ...] = (),
        label: str = "",
    ) -> None:
        """`calls` open a call inside a block of thought."""
        self.openers, self.closers, self.rule, self.label = frozenset(openers), frozenset(closers), rule, label
        self.outside = Markers([*openers, *closers, *calls])
        self.inside = Markers([*closers, *calls])
        self.closing = Markers(closers)
        self._open_ends = tuple(opener + label.rstrip() for opener in openers) + openers
        self._closed_ends = closers

    def start(self, context: ReasoningContext) -> Start:
        prompt_end = context.prompt_end.rstrip()
        if prompt_end.endswith(self._open_ends):
            return Start.THINKING
        if prompt_end.endswith(self._closed_ends):
            return Start.OFF
        return self.rule.start(context)


class DelimitedReasoning:
    """`is_over`: no more thought is to come."""

    __slots__ = ("_format", "_held", "_is_over", "_markers", "_state")

    def __init__(self, form: DelimitedFormat, context: ReasoningContext) -> None:
        start = form.start(context)
        self._format = form
        self._held = ""
        self._is_over = start is Start.OFF
        self._markers = form.outside  # those of the present state
        self._state: State = DelimitedReasoning._thinking if start is Start.THINKING else DelimitedReasoning._looking

    def push(self, text: str) -> list[Part]:
        if self._is_over:
            return [text] if text else []
        parts: list[Part] = []
        rest, self._held = self._held + text, ""
        while rest:
            rest = self._state(self, rest, parts)
        return parts

    def flush(self) -> list[Part]:
        held, self._held = self._held, ""
        if not held or self._state is DelimitedReasoning._label:
            return []
        return [Reasoning(held) if self._state is DelimitedReasoning._thinking else held]

    def _looking(self, text: str, parts: list[Part]) -> str:
        before, marker, rest = self._split(text)
        if before:
            parts.append(before)
        if marker in self._format.openers:
            self._open()
        elif marker in self._format.closers:
            self._state = DelimitedReasoning._closed
        elif marker:
            return self._end(marker + rest, parts)
        return rest

    def _closed(self, text: str, parts: list[Part]) -> str:
        """After a block: only space may come before the next one."""
        before, _, _ = self._split(text)
        if before and not before.isspace():
            return self._end(text, parts)
        return self._looking(text, parts)

    def _thinking(self, text: str, parts: list[Part]) -> str:
        """An opening marker may still come where the prompt opened the block, or seemed to."""
        before, marker, rest = self._split(text)
        if before:
            parts.append(Reasoning(before))
        if marker in self._format.openers:
            self._open()
        elif marker in self._format.closers:
            self._markers = self._format.outside
            self._state = DelimitedReasoning._closed
        elif marker:
            self._markers = self._format.closing
            self._state = DelimitedReasoning._unclosed
            parts.append(marker)
        return rest

    def _label(self, text: str, parts: list[Part]) -> str:
        label = self._format.label
        if len(text) < len(label) and label.startswith(text):
            self._held = text
            return ""
        self._state = DelimitedReasoning._thinking
        return text.removeprefix(label)

    def _unclosed(self, text: str, parts: list[Part]) -> str:
        """A call has ended the thought; its closing marker may come late."""
        before, marker, rest = self._split(text)
        if before:
            parts.append(before)
        return self._end(rest, parts) if marker else rest

    def _open(self) -> None:
        self._markers = self._format.inside
        self._state = DelimitedReasoning._label if self._format.label else DelimitedReasoning._thinking

    def _end(self, text: str, parts: list[Part]) -> str:
        self._is_over = True
        if text:
            parts.append(text)
        return ""

    def _split(self, text: str) -> tuple[str, str, str]:
        """Text up to the first marker, that marker, and the rest; without one, what may begin one is held."""
        marker = self._markers.find(text)
        if marker is not None:
            return text[: marker.start()], marker[0], text[marker.end() :]
        end = len(text) - self._markers.num_held(text)
        self._held = text[end:]
        return text[:end], "", ""


def delimited(
    opener: str | tuple[str, ...],
    closer: str | tuple[str, ...],
    rule: StartRule,
    calls: tuple[str, ...] = (),
    label: str = "",
) -> ReasoningParserFactory:
    openers = (opener,) if isinstance(opener, str) else opener
    closers = (closer,) if isinstance(closer, str) else closer
    factory: Callable[[ReasoningContext], Parser] = partial(
        DelimitedReasoning, DelimitedFormat(openers, closers, rule, calls, label)
    )
    return factory
