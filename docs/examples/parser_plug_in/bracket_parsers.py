"""Parsers for a model that writes `thoughts [answer] Let me look. [[get_weather {"city": "Paris"}]]`."""

from __future__ import annotations

from dynamo.frontend.parsers.context import Functions, ReasoningContext
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part, Reasoning

ANSWER = "[answer]"


class UntilAnswer:
    """All is thought up to a marker, unless the request asks for none."""

    def __init__(self, context: ReasoningContext) -> None:
        self._is_over = context.is_thinking is False
        self._held = ""

    def push(self, text: str) -> list[Part]:
        if self._is_over:
            return [text]
        text, self._held = self._held + text, ""
        thought, marker, content = text.partition(ANSWER)
        if marker:
            self._is_over = True
            return [part for part in (Reasoning(thought), content) if part not in (Reasoning(""), "")]
        num_held = next(num for num in range(len(ANSWER) - 1, -1, -1) if thought.endswith(ANSWER[:num]))
        thought, self._held = thought[: len(thought) - num_held], thought[len(thought) - num_held :]
        return [Reasoning(thought)] if thought else []

    def flush(self) -> list[Part]:
        held, self._held = self._held, ""
        return [Reasoning(held)] if held else []


class BracketCalls:
    """A call of a function that is not offered is content, and so is a call that never closes."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._held = ""

    def push(self, text: str) -> list[Part]:
        text, self._held = self._held + text, ""
        parts: list[Part] = []
        while text:
            before, brackets, rest = text.partition("[[")
            call, end, after = rest.partition("]]")
            if not end:
                num_held = len(brackets + rest) if brackets else before.endswith("[")
                parts.append(text[: len(text) - num_held])
                self._held = text[len(text) - num_held :]
                break
            parts += [before, *self._call(call)]
            text = after
        return [part for part in parts if part != ""]

    def flush(self) -> list[Part]:
        held, self._held = self._held, ""
        return [held] if held else []

    def _call(self, call: str) -> list[Part]:
        name, _, arguments = call.partition(" ")
        return [CallStart(name), CallArguments(arguments)] if name in self._functions else [f"[[{call}]]"]
