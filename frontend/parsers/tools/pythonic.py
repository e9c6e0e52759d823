"""Calls written as a list of Python calls: `[get_time(zone="UTC"), ping()]`, of Llama 4 and others.

A list may stand anywhere in the answer. It holds calls if it begins with a function that is offered and its bracket is
followed by the name of an argument or closed; between <|python_start|> and <|python_end|> any function will do. Each
argument goes out when it is complete. A list that never closes, or goes on with what is no call, keeps the calls that
went out; arguments without a name end a call.

Dynamo 1.6.1 does so too, for any function, but drops arguments that are no literals, which are strings of their source
here, and numbers below zero, tuples, spaces around a call and calls after an argument given twice.
"""

from __future__ import annotations

import re

from dynamo.frontend.parsers.call_arguments import NO_ARGUMENTS
from dynamo.frontend.parsers.context import Functions, ToolParserFactory
from dynamo.frontend.parsers.marked import MAX_SPACE, MarkedParser
from dynamo.frontend.parsers.marker import Markers, State
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part
from dynamo.frontend.parsers.python_literal import PythonScanner, json_of

MAX_HEADER = 512
"""Characters from the name of a function to its first argument, and of the name of an argument."""

_MARKERS = Markers(["[", "<|python_start|>", "<|python_end|>"])
_NAME = r"[^\W\d]\w*"
_CALL = re.compile(rf"[\[,]\s*(?P<name>{_NAME}(?:\.{_NAME})*)\s*\((?=\s*(?:\)|{_NAME}\s*=[^=]))")
_CALL_BEGINNING = re.compile(rf"[\[,]\s*(?:[^\W\d][\w.]*\s*(?:\(\s*(?:{_NAME}\s*=?)?)?)?\Z")
_ARGUMENT = re.compile(rf"\s*,?\s*(?:\)|(?P<name>{_NAME})\s*=(?=[^=]))")
_ARGUMENT_BEGINNING = re.compile(rf"\s*,?\s*(?:{_NAME}\s*=?)?\Z")
_AFTER_CALL = re.compile(r"\s*(?:(?P<end>\])|(?=,))")


class PythonicCalls(MarkedParser):
    __slots__ = ("_expression", "_functions", "_is_marked", "_name", "_num_arguments", "_scanner")

    def __init__(self, functions: Functions) -> None:
        super().__init__(_MARKERS)
        self._expression: list[str] = []
        self._functions = functions
        self._is_marked = False
        self._name = ""
        self._num_arguments = 0
        self._scanner = PythonScanner()

    def _after_marker(self, marker: str, rest: str) -> str:
        if marker != "[":
            self._is_marked = marker == "<|python_start|>"
            return rest
        self._state = PythonicCalls._first_call
        return marker + rest

    def _first_call(self, text: str, parts: list[Part]) -> str:
        call = _CALL.match(text, 0, MAX_HEADER)
        if call is None and self._waits(_CALL_BEGINNING, text):
            return ""
        if call is not None and (self._is_marked or call["name"] in self._functions):
            return self._start(call, text, parts)
        self._state = MarkedParser._content
        self._add_content(text[0], parts)
        return text[1:]

    def _next_call(self, text: str, parts: list[Part]) -> str:
        call = _CALL.match(text, 0, MAX_HEADER)
        if call is not None:
            return self._start(call, text, parts)
        return "" if self._waits(_CALL_BEGINNING, text) else self._leave(text)

    def _start(self, call: re.Match[str], text: str, parts: list[Part]) -> str:
        self._begin_call()
        self._num_arguments = 0
        self._state = PythonicCalls._argument
        parts.append(CallStart(call["name"]))
        return text[call.end() :]

    def _argument(self, text: str, parts: list[Part]) -> str:
        argument = _ARGUMENT.match(text, 0, MAX_HEADER)
        if argument is None and self._waits(_ARGUMENT_BEGINNING, text):
            return ""
        if argument is None or argument["name"] is None:
            parts.append(CallArguments("}" if self._num_arguments else NO_ARGUMENTS))
            return (
                self._leave(text) if argument is None else self._go(PythonicCalls._after_call, text[argument.end() :])
            )
        self._name = argument["name"]
        self._scanner = PythonScanner()
        return self._go(PythonicCalls._value, text[argument.end() :])

    def _value(self, text: str, parts: list[Part]) -> str:
        end = self._scanner.push(text)
        self._expression.append(text[:end])
        if not self._scanner.is_done:
            self._held = text[end:]
            return ""
        begin = ", " if self._num_arguments else "{"
        parts.append(CallArguments(f'{begin}"{self._name}": {json_of("".join(self._expression))}'))
        self._num_arguments += 1
        self._expression.clear()
        return self._go(PythonicCalls._argument, text[end:])

    def _after_call(self, text: str, parts: list[Part]) -> str:
        if text.isspace() and len(text) <= MAX_SPACE:
            self._held = text
            return ""
        found = _AFTER_CALL.match(text)
        if found is None or found["end"]:
            return self._leave(text[found.end() :] if found else text)
        return self._go(PythonicCalls._next_call, text[found.end() :])

    def _waits(self, beginning: re.Pattern[str], text: str) -> bool:
        if len(text) >= MAX_HEADER or beginning.match(text) is None:
            return False
        self._held = text
        return True

    def _go(self, state: State, rest: str) -> str:
        self._state = state
        return rest

    def _leave(self, rest: str) -> str:
        return self._go(MarkedParser._content, rest)

    def _end(self, parts: list[Part]) -> None:
        if self._state in (MarkedParser._content, PythonicCalls._first_call):
            self._add_content(self._held, parts)


PYTHONIC_PARSERS: dict[str, ToolParserFactory] = {"pythonic": PythonicCalls}
