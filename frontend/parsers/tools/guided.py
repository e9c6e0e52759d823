"""Answers that follow the JSON guide of `tool_choice`.

For `required` an array of `{"name": ..., "parameters": {...}}`, or one such object alone; for a named function the bare
object of its arguments. A worker that cannot be guided may write anything: what does not begin with a call is content,
or goes to the parser of the model's own format.
"""

from __future__ import annotations

from dynamo.frontend.parsers.call_reader import CallReader
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.json_scanner import JsonScanner
from dynamo.frontend.parsers.marked import MAX_SPACE
from dynamo.frontend.parsers.marker import State
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Parser, Part


def required_calls(functions: Functions, otherwise: Parser | None = None) -> Parser:
    """`otherwise` reads an answer that does not begin with a call of one of the `functions`."""
    return _RequiredCalls(functions, otherwise or _Content())


def named_call(name: str, otherwise: Parser | None = None) -> Parser:
    """`otherwise` reads an answer that does not begin with an object."""
    return _NamedCall(name, otherwise or _Content())


class _Content:
    def push(self, text: str) -> list[Part]:
        return [text] if text else []

    def flush(self) -> list[Part]:
        return []


class _GuidedCalls:
    """What comes before the first call is held until that begins; a subclass says in `begin` how."""

    __slots__ = ("_has_calls", "_held", "_otherwise", "_state")

    def __init__(self, begin: State, otherwise: Parser) -> None:
        self._has_calls = False
        self._held = ""
        self._otherwise = otherwise
        self._state = begin

    def push(self, text: str) -> list[Part]:
        parts: list[Part] = []
        while text:
            text = self._state(self, text, parts)
        return parts

    def flush(self) -> list[Part]:
        parts: list[Part] = []
        if not self._has_calls and self._held:
            parts += self._otherwise.push(self._held)
        return [*parts, *self._otherwise.flush()]

    def _begin_call(self) -> None:
        self._has_calls = True
        self._held = ""

    def _give_up(self, text: str) -> str:
        """The answer does not begin with a call."""
        text, self._held = self._held + text, ""
        self._state = _GuidedCalls._not_guided
        return text

    def _not_guided(self, text: str, parts: list[Part]) -> str:
        parts += self._otherwise.push(text)
        return ""

    def _after(self, text: str, parts: list[Part]) -> str:
        """Behind the calls all is content, but space alone is nothing, up to MAX_SPACE of it."""
        self._held += text
        if self._held.isspace() and len(self._held) <= MAX_SPACE:
            return ""
        text, self._held = self._held, ""
        self._state = _GuidedCalls._content
        return text

    def _content(self, text: str, parts: list[Part]) -> str:
        parts.append(text)
        return ""


class _NamedCall(_GuidedCalls):
    __slots__ = ("_name", "_scanner")

    def __init__(self, name: str, otherwise: Parser) -> None:
        super().__init__(_NamedCall._begin, otherwise)
        self._name = name
        self._scanner = JsonScanner()

    def _begin(self, text: str, parts: list[Part]) -> str:
        rest = text.lstrip()
        if not rest:
            self._held += text
        elif rest[0] == "{":
            self._begin_call()
            self._state = _NamedCall._arguments
            parts.append(CallStart(self._name))
        else:
            return self._give_up(text)
        return rest

    def _arguments(self, text: str, parts: list[Part]) -> str:
        end = self._scanner.push(text)
        if end:
            parts.append(CallArguments(text[:end]))
        if self._scanner.is_done or self._scanner.is_broken:
            self._state = _GuidedCalls._after
        return text[end:]


class _RequiredCalls(_GuidedCalls):
    __slots__ = ("_accepts", "_is_array", "_reader")

    def __init__(self, functions: Functions, otherwise: Parser) -> None:
        super().__init__(_RequiredCalls._begin, otherwise)
        self._accepts = functions.__contains__
        self._is_array = False
        self._reader = CallReader(self._accepts)

    def flush(self) -> list[Part]:
        """An object that was cut before it was known for a call."""
        parts: list[Part] = []
        if self._state is _RequiredCalls._call and not self._reader.has_started:
            self._end_call(parts)
        return [*parts, *super().flush()]

    def _begin(self, text: str, parts: list[Part]) -> str:
        """The bracket of the array, and space."""
        rest = text.lstrip()
        if rest[:1] == "[" and not self._is_array:
            self._is_array = True
            rest = rest[1:]
        elif rest[:1] == "{":
            self._state = _RequiredCalls._call
        elif rest:
            return self._give_up(text)
        self._held += text[: len(text) - len(rest)]
        return rest

    def _call(self, text: str, parts: list[Part]) -> str:
        rest = self._reader.push(text, parts)
        if self._reader.has_started:
            self._begin_call()
        if self._reader.is_over:
            self._end_call(parts)
        return rest

    def _end_call(self, parts: list[Part]) -> None:
        if self._reader.has_started:
            self._state = _RequiredCalls._between if self._is_array else _GuidedCalls._after
        elif self._has_calls:
            parts.append(self._reader.unread)
            self._state = _GuidedCalls._content
        else:
            parts += self._otherwise.push(self._give_up(self._reader.unread))

    def _between(self, text: str, parts: list[Part]) -> str:
        text = text.lstrip(" \t\r\n,")
        if text[:1] == "{":
            self._reader = CallReader(self._accepts)
            self._state = _RequiredCalls._call
        elif text:
            self._state = _GuidedCalls._after
        return text.removeprefix("]")
