"""Thought between an opening and a closing marker, as most models write it.

An answer has one block of thought, or several with nothing but space between them. Once content has followed a block,
all is content: a marker in it is talk about markers, or part of a call's arguments. A closing marker without a block
is dropped. A call may begin inside a block that is not closed: for the formats that allow it, it ends the thought.
"""

from __future__ import annotations

from functools import partial

from dynamo.frontend.parsers.context import ReasoningContext, ReasoningParserFactory
from dynamo.frontend.parsers.marker import Markers, State
from dynamo.frontend.parsers.marker_reader import MarkerReader
from dynamo.frontend.parsers.parts import Part, Reasoning
from dynamo.frontend.parsers.reasoning.start import Start, StartRule


class DelimitedFormat:
    """Immutable, made once per family. `calls` open a call inside a block of thought; `label` is a line that models
    write right after the opening marker."""

    def __init__(
        self,
        openers: tuple[str, ...],
        closers: tuple[str, ...],
        rule: StartRule,
        calls: tuple[str, ...] = (),
        label: str = "",
    ) -> None:
        self.openers, self.closers, self.rule, self.label = openers, closers, rule, label
        self.outside = Markers([*openers, *closers, *calls])
        self.inside = Markers([*closers, *calls])
        self.closing = Markers(closers)
        self._open_ends = (*openers, *(opener + label.rstrip() for opener in openers))

    def start(self, context: ReasoningContext) -> Start:
        prompt_end = context.prompt_end.rstrip()
        if prompt_end.endswith(self._open_ends):
            return Start.THINKING
        if prompt_end.endswith(self.closers):
            return Start.OFF
        return self.rule.start(context)


class DelimitedReasoning(MarkerReader):
    __slots__ = ("_format",)

    def __init__(self, form: DelimitedFormat, context: ReasoningContext) -> None:
        start = form.start(context)
        self._format = form
        if start is Start.THINKING:
            super().__init__(DelimitedReasoning._thinking, form.outside, Reasoning)
        else:
            super().__init__(DelimitedReasoning._looking, form.outside)
        self._is_over = start is Start.OFF

    def flush(self) -> list[Part]:
        held, self._held = self._held, ""
        return [self._kind(held)] if held and self._state is not DelimitedReasoning._label else []

    def _looking(self, text: str, parts: list[Part]) -> str:
        before, marker, rest = self._split(text)
        self._add(before, parts)
        if marker in self._format.openers:
            self._open()
        elif marker in self._format.closers:
            self._close(DelimitedReasoning._closed)
        elif marker:
            return self._end(marker + rest, parts)
        return rest

    def _thinking(self, text: str, parts: list[Part]) -> str:
        """An opening marker may still come where the prompt opened the block, or seemed to."""
        before, marker, rest = self._split(text)
        self._add(before, parts)
        if marker in self._format.openers:
            self._open()
        elif marker in self._format.closers:
            self._close(DelimitedReasoning._closed)
        elif marker:
            self._close(DelimitedReasoning._calling)
            self._markers = self._format.closing
            parts.append(marker)
        return rest

    def _label(self, text: str, parts: list[Part]) -> str:
        label = self._format.label
        if len(text) < len(label) and label.startswith(text):
            self._held = text
            return ""
        self._state = DelimitedReasoning._thinking
        return text.removeprefix(label)

    def _closed(self, text: str, parts: list[Part]) -> str:
        """After a block: only space may come before the next one."""
        before, _, _ = self._split(text)
        if before and not before.isspace():
            return self._end(text, parts)
        return self._looking(text, parts)

    def _calling(self, text: str, parts: list[Part]) -> str:
        """A call has ended the thought, and the closing marker may come late."""
        before, marker, rest = self._split(text)
        self._add(before, parts)
        return self._end(rest, parts) if marker else rest

    def _open(self) -> None:
        self._kind, self._markers = Reasoning, self._format.inside
        self._state = DelimitedReasoning._label if self._format.label else DelimitedReasoning._thinking

    def _close(self, state: State) -> None:
        self._kind, self._markers, self._state = str, self._format.outside, state


DelimitedReasoning.plain = frozenset(
    (DelimitedReasoning._looking, DelimitedReasoning._thinking, DelimitedReasoning._calling)
)


def delimited(
    opener: str | tuple[str, ...],
    closer: str | tuple[str, ...],
    rule: StartRule,
    calls: tuple[str, ...] = (),
    label: str = "",
) -> ReasoningParserFactory:
    openers = (opener,) if isinstance(opener, str) else opener
    closers = (closer,) if isinstance(closer, str) else closer
    return partial(DelimitedReasoning, DelimitedFormat(openers, closers, rule, calls, label))
