"""Events that tell of a call, or of reasoning, in one piece as soon as it is whole, beside the chunks of a chat stream.

    event: tool_call_dispatch    {"choice_index": 0, "tool_call": {"index", "id", "type", "function"}}
    event: reasoning_dispatch    {"index": 0, "reasoning_content": "..."}

They come before the chunk with which it is clear that nothing follows, at the latest before that of the finish reason.
A call that was cut off, whose arguments are no JSON, is not told of: it is not to be run. All as in Dynamo 1.6.1,
which completes such calls; the name of the reasoning's field is fixed there too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from dynamo.frontend.parsers.message import MessagePart, ToolCallDelta
from dynamo.frontend.parsers.parts import Reasoning
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.renderer import Renderer
from dynamo.shared.errors import DynamoError

_encode = msgspec.json.Encoder().encode


class Dispatches(Struct, frozen=True):
    """Which events a server sends."""

    calls: bool = False
    reasoning: bool = False

    def wrap(self, renderer: Renderer) -> Renderer:
        return DispatchRenderer(renderer, self) if self.calls or self.reasoning else renderer


NO_DISPATCHES = Dispatches()


class DispatchRenderer:
    """What `renderer` makes, with these events in between."""

    def __init__(self, renderer: Renderer, dispatches: Dispatches) -> None:
        self._renderer = renderer
        self._dispatches = dispatches
        self._choices: dict[int, _ChoiceEvents] = {}
        self.last: Callable[[], bytes] = renderer.last
        self.failed: Callable[[DynamoError], bytes] = renderer.failed
        self.unanswered: Callable[[dict[str, Any]], bytes] = renderer.unanswered

    def of(self, delta: Delta) -> bytes:
        choice = self._choices.get(delta.index)
        if choice is None:
            choice = self._choices[delta.index] = _ChoiceEvents(delta.index, self._dispatches)
        return choice.of(delta) + self._renderer.of(delta)


class _ChoiceEvents:
    """Puts together what is not whole yet."""

    def __init__(self, index: int, dispatches: Dispatches) -> None:
        self._index = index
        self._dispatches = dispatches
        self._thought: list[str] = []
        self._call: ToolCallDelta | None = None
        self._arguments: list[str] = []

    def of(self, delta: Delta) -> bytes:
        parts = delta.parts if delta.parts is not None else [delta.text] if delta.text else []
        events = b"".join(map(self._take, parts))
        return events + self._close_thought() + self._close_call() if delta.finish_reason else events

    def _take(self, part: MessagePart) -> bytes:
        if isinstance(part, Reasoning):
            events = self._close_call()
            if self._dispatches.reasoning:
                self._thought.append(part.text)
            return events
        events = self._close_thought()
        if isinstance(part, str):
            return events + self._close_call()
        if part.name is not None:
            events += self._close_call()
            self._call, self._arguments = part if self._dispatches.calls else None, []
        if self._call is not None:
            self._arguments.append(part.arguments)
        return events

    def _close_thought(self) -> bytes:
        thought, self._thought = "".join(self._thought), []
        if not thought:
            return b""
        return _event(b"reasoning_dispatch", {"index": self._index, "reasoning_content": thought})

    def _close_call(self) -> bytes:
        """Stray content may stand in a call whose arguments are still to come."""
        call, arguments = self._call, "".join(self._arguments)
        if call is None or not _is_json(arguments):
            return b""
        self._call = None
        function = {"name": call.name, "arguments": arguments}
        told = {"index": call.index, "id": call.id, "type": "function", "function": function}
        return _event(b"tool_call_dispatch", {"choice_index": self._index, "tool_call": told})


def _event(name: bytes, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, _encode(data))


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True
