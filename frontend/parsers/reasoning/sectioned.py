"""Answers in sections: each begins with a marker that says what it is. Calls are passed on as they stand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from dynamo.frontend.parsers.context import ReasoningContext, ReasoningParserFactory
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.marker_reader import MarkerReader
from dynamo.frontend.parsers.parts import Part, Reasoning

MAX_HEADER = 1_000  # characters


class SectionFormat:
    """Immutable, made once per family. `thought` begins a section of thought, `neutral` one of content, or ends one;
    `calls` are the markers that begin a section of calls, and the one that ends it. `header` is one of the neutral
    markers: what stands between it and the next marker is left out."""

    def __init__(self, thought: str, neutral: tuple[str, ...], calls: Mapping[str, str], header: str = "") -> None:
        self.thought, self.calls, self.header = thought, calls, header
        self.markers = Markers([thought, *neutral, *calls])
        self.call_ends = {end: Markers([end]) for end in calls.values()}


class SectionedReasoning(MarkerReader):
    __slots__ = ("_first_header", "_format")

    def __init__(self, form: SectionFormat, context: ReasoningContext) -> None:
        prompt_end = context.prompt_end.rstrip()
        is_thinking = prompt_end.endswith(form.thought)
        super().__init__(SectionedReasoning._in_text, form.markers, Reasoning if is_thinking else str)
        self._format = form
        self._first_header = ""
        if form.header and prompt_end.endswith(form.header):
            self._state = SectionedReasoning._in_first_header

    def flush(self) -> list[Part]:
        parts: list[Part] = []
        held, self._held = self._held, ""
        if self._state is not SectionedReasoning._in_header:
            self._add(self._first_header + held, parts)
        return parts

    def _in_text(self, text: str, parts: list[Part]) -> str:
        before, marker, rest = self._split(text)
        self._add(before, parts)
        if marker:
            self._begin_section(marker, parts)
        return rest

    def _in_first_header(self, text: str, parts: list[Part]) -> str:
        """The prompt has begun it. What has no marker, or one that comes too late, is an answer and no header."""
        before, marker, rest = self._split(text)
        self._first_header += before
        if len(self._first_header) <= MAX_HEADER and not marker:
            return rest
        if len(self._first_header) > MAX_HEADER:
            self._add(self._first_header, parts)
            self._state, rest = SectionedReasoning._in_text, marker + rest
        else:
            self._begin_section(marker, parts)
        self._first_header = ""
        return rest

    def _in_header(self, text: str, parts: list[Part]) -> str:
        _, marker, rest = self._split(text)
        if marker:
            self._begin_section(marker, parts)
        return rest

    def _begin_section(self, marker: str, parts: list[Part]) -> None:
        self._kind = Reasoning if marker == self._format.thought else str
        self._state = SectionedReasoning._in_header if marker == self._format.header else SectionedReasoning._in_text
        if marker in self._format.calls:
            parts.append(marker)
            self._markers = self._format.call_ends[self._format.calls[marker]]
            self._state = SectionedReasoning._in_calls

    def _in_calls(self, text: str, parts: list[Part]) -> str:
        before, marker, rest = self._split(text)
        self._add(before + marker, parts)
        if marker:
            self._markers, self._state = self._format.markers, SectionedReasoning._in_text
        return rest


SectionedReasoning.plain = frozenset((SectionedReasoning._in_text, SectionedReasoning._in_calls))


def _sectioned(
    thought: str, neutral: tuple[str, ...], calls: Mapping[str, str], header: str = ""
) -> ReasoningParserFactory:
    return partial(SectionedReasoning, SectionFormat(thought, neutral, calls, header))


_KIMI_K3 = _sectioned(
    "<|open|>think<|sep|>",
    (
        "<|close|>think<|sep|>",
        "<|open|>response<|sep|>",
        "<|close|>response<|sep|>",
        "<|close|>message<|sep|>",
        "<|end_of_msg|>",
    ),
    {"<|open|>tools<|sep|>": "<|close|>tools<|sep|>"},
)

SECTIONED_FAMILIES: dict[str, ReasoningParserFactory] = {
    "inkling": _sectioned(
        "<|content_thinking|>",
        ("<|message_model|>", "<|content_text|>", "<|end_message|>", "<|content_model_end_sampling|>"),
        {"<|content_invoke_tool_json|>": "<|end_message|>"},
        header="<|message_model|>",
    ),
    "kimi_k3": _KIMI_K3,
    "kimi-k3": _KIMI_K3,
}
