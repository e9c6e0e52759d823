"""A call that a model writes as a JSON object, read while it is written.

`{"name": "f", "arguments": {...}}`; `parameters` and `args` are other words for `arguments`, and all of it may stand
inside of `{"type": "function", "function": {...}}`. The name alone starts the call, and its arguments go out as they
come. Arguments before the name wait for it; where there are none the call has `{}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

from dynamo.frontend.parsers.call_arguments import NO_ARGUMENTS, ArgumentsReader, arguments_reader
from dynamo.frontend.parsers.json_scanner import JsonScanner, unescaped
from dynamo.frontend.parsers.marker import end_of
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part


class Reader(Protocol):
    """Reads one call until it `is_over`, well or not. Only if it then `has_started` was it a call; otherwise its text
    is `unread`."""

    has_started: bool
    is_over: bool

    @property
    def unread(self) -> str: ...

    @property
    def is_in_string(self) -> bool:
        """As `ArgumentsReader` has it."""

    def push(self, text: str, parts: list[Part]) -> str:
        """Appends to `parts` what has become certain; returns the text after the call."""


MAX_HELD = 1 << 20
"""Characters that may wait for the name of their call; an object with more is no call."""

_SPACE = re.compile(r"\s*+")
_SPACE_AND_COMMAS = re.compile(r"[\s,]*+")
_ARGUMENT_KEYS = ("arguments", "parameters", "args")
_KEYS = ("name", "id", "type", "function", *_ARGUMENT_KEYS)


class CallReader:
    """Reads from the first brace of an object."""

    __slots__ = (
        "_accepts",
        "_arguments",
        "_depth",
        "_early",
        "_id",
        "_key",
        "_name",
        "_num_held",
        "_raw",
        "_scanner",
        "_step",
        "_value",
        "has_started",
        "is_over",
    )

    def __init__(self, accepts: Callable[[str], bool] | None = None) -> None:
        """With `accepts`, an object is a call only if all its keys are those of calls, among them arguments and a name
        that is accepted; it is given up at the first that is not."""
        self._accepts = accepts
        self._arguments: ArgumentsReader | None = None
        self._depth = 0
        self._early: list[str] = []
        self._id: str | None = None
        self._key = ""
        self._name: str | None = None
        self._num_held = 0
        self._raw: list[str] = []
        self._scanner = JsonScanner()
        self._step: Callable[[Any, str, int, list[Part]], int] = CallReader._open
        self._value: list[str] = []
        self.has_started = False
        self.is_over = False

    @property
    def unread(self) -> str:
        return "".join(self._raw)

    @property
    def is_in_string(self) -> bool:
        return self.has_started and self._arguments is not None and self._arguments.is_in_string

    def push(self, text: str, parts: list[Part]) -> str:
        at = 0
        while at < len(text) and not self.is_over:
            at = self._step(self, text, at, parts)
        if not self.has_started:
            self._raw.append(text[:at])
            self._num_held += at
            self.is_over = self.is_over or self._num_held > MAX_HELD
        return text[at:]

    # ------------------------------------------------------------------ steps: each reads one thing, maybe in pieces

    def _open(self, text: str, at: int, parts: list[Part]) -> int:
        """At the brace of an object whose members are those of the call."""
        self._depth += 1
        self._step = CallReader._member
        return at + 1

    def _member(self, text: str, at: int, parts: list[Part]) -> int:
        at = end_of(_SPACE_AND_COMMAS, text, at)
        match text[at : at + 1]:
            case "":
                return at
            case '"':
                self._expect(CallReader._read_key)
                return at
            case "}":
                return self._close(at + 1, parts)
            case _:
                return self._stop(at)

    def _read_key(self, text: str, at: int, parts: list[Part]) -> int:
        at = self._read_value(text, at)
        if self._scanner.is_done:
            self._key = self._string() or ""
            self._step = CallReader._colon
            self.is_over = self._accepts is not None and self._key not in _KEYS
        return at

    def _colon(self, text: str, at: int, parts: list[Part]) -> int:
        at = end_of(_SPACE, text, at)
        match text[at : at + 1]:
            case "":
                return at
            case ":":
                self._step = CallReader._choose_value
                return at + 1
            case _:
                return self._stop(at)

    def _choose_value(self, text: str, at: int, parts: list[Part]) -> int:
        at = end_of(_SPACE, text, at)
        first = text[at : at + 1]
        if not first:
            return at
        if first in ",}]<":
            return self._stop(at)
        if self._key in _ARGUMENT_KEYS and self._arguments is None:
            self._arguments = arguments_reader(first)
            self._step = CallReader._read_arguments
            self._start(parts)
        elif self._key == "function" and first == "{":
            self._step = CallReader._open
        else:
            self._expect(CallReader._read_member if self._key in ("name", "id") else CallReader._skip_member)
        return at

    def _read_member(self, text: str, at: int, parts: list[Part]) -> int:
        at = self._read_value(text, at)
        if self._scanner.is_done:
            self._step = CallReader._member
            if self._key == "id":
                self._id = self._string()
            elif self._name is None:
                self._name = self._string()
                self._start(parts)
        return at

    def _skip_member(self, text: str, at: int, parts: list[Part]) -> int:
        at = self._read_value(text, at)
        if self._scanner.is_done:
            self._step = CallReader._member
        return at

    def _read_arguments(self, text: str, at: int, parts: list[Part]) -> int:
        assert self._arguments is not None
        piece, at = self._arguments.push(text, at)
        if piece:
            self._emit(piece, parts)
        if self._arguments.is_over:
            self._step = CallReader._member
        return at

    # ------------------------------------------------------------------ what steps do

    def _expect(self, step: Callable[[Any, str, int, list[Part]], int]) -> None:
        """A value follows, which `step` reads."""
        self._scanner = JsonScanner()
        self._value.clear()
        self._step = step

    def _read_value(self, text: str, at: int) -> int:
        end = self._scanner.push(text, at)
        self.is_over = self._scanner.is_broken
        if self._step is not CallReader._skip_member:
            self._value.append(text[at:end])
        return end

    def _string(self) -> str | None:
        written = "".join(self._value)
        return unescaped(written[1:-1]) if written.startswith('"') else None

    def _start(self, parts: list[Part]) -> None:
        """Once all is known that it takes."""
        if self.has_started or self._name is None or (self._accepts is not None and self._arguments is None):
            return
        if not self._name or (self._accepts is not None and not self._accepts(self._name)):
            self.is_over = True
            return
        self.has_started = True
        parts.append(CallStart(self._name, self._id))
        parts += map(CallArguments, self._early)
        self._early.clear()
        self._raw.clear()

    def _emit(self, piece: str, parts: list[Part]) -> None:
        if self.has_started:
            parts.append(CallArguments(piece))
        else:
            self._early.append(piece)

    def _close(self, at: int, parts: list[Part]) -> int:
        self._depth -= 1
        self.is_over = self._depth == 0
        if self.is_over and self.has_started and self._arguments is None:
            parts.append(CallArguments(NO_ARGUMENTS))
        self._step = CallReader._member
        return at

    def _stop(self, at: int) -> int:
        """Something stands here that cannot be part of a call."""
        self.is_over = True
        return at
