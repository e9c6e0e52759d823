"""Calls of MiniMax-M3; before each tag stands `]<]minimax[>[`, here left out.

    <tool_call>
    <invoke name="search"><query>Paris</query><tags><item>news</item></tags></invoke>
    </tool_call>

A parameter's name is its tag, and objects and arrays are tags within it. A value ends with its own tag or that of its
call, and a string with any tag. The types of values are those of the schema; what it does not know is a string, or an
object if there are tags in it. All white space of a string is its own, and so is `&lt;`, which Dynamo 1.6.1 unescapes;
it also drops values that have no end, and calls that are cut off.
"""

from __future__ import annotations

from typing import Any

from dynamo.frontend.parsers.argument import STRING, Argument, TextArgument, types_of
from dynamo.frontend.parsers.call_parser import MAX_TAG, CallParser, CallTags, Step
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.nested_markup import nested_json

PREFIX = "]<]minimax[>["
BEGIN = f"{PREFIX}<"
TAGS = CallTags(
    blocks=(f"{BEGIN}tool_call>",),
    call=f"{BEGIN}invoke",
    ends=(f"{BEGIN}/tool_call>", f"{BEGIN}/invoke>"),
)
_ANY_TAG = Markers([BEGIN])


class MinimaxM3Parser(CallParser):
    """Strings go out as they come, all else once it is whole."""

    __slots__ = ("_argument", "_depth", "_key", "_markers", "_nested", "_schema")

    def __init__(self, functions: Functions) -> None:
        super().__init__(TAGS, functions)
        self._argument: Argument = TextArgument()
        self._depth = 0  # of tags of the parameter's name in its value
        self._key = ""
        self._markers = _ANY_TAG
        self._nested: list[str] = []
        self._schema: Any = None

    def _begin_call(self) -> Step:
        return MinimaxM3Parser._read_call

    def _is_whole(self) -> bool:
        return self._step is MinimaxM3Parser._read_call

    def _read_call(self) -> bool:
        _, marker = self._take_up_to(_ANY_TAG)
        tag = self._tag() if marker else None
        if tag is None:
            return False
        if tag in ("/invoke", "/tool_call", "tool_call") or tag.startswith("invoke "):
            self._end_call()
            return True
        self._take(len(BEGIN) + len(tag) + 1)
        if tag and not tag.startswith("/"):
            self._begin_parameter(tag)
        return True

    def _tag(self) -> str | None:
        """What stands in the tag that is held; None if more must come, empty if it is none."""
        end = self._held.find(">", len(BEGIN), len(BEGIN) + MAX_TAG)
        if end < 0:
            return None if len(self._held) < len(BEGIN) + MAX_TAG else ""
        return self._held[len(BEGIN) : end]

    def _begin_parameter(self, key: str) -> None:
        self._write_arguments(self._object.key(key))
        self._key = key
        self._depth = 0
        self._nested = []
        self._schema = self._functions.schema_of_parameter(self._name, key)
        self._markers = Markers([f"{BEGIN}{key}>", f"{BEGIN}/{key}>", f"{BEGIN}/invoke>"])
        is_text = types_of(self._schema) == STRING
        self._step = MinimaxM3Parser._read_beginning if is_text else MinimaxM3Parser._read_nested

    def _read_beginning(self) -> bool:
        """A string that begins with a tag is none."""
        end = f"{BEGIN}/"
        if end.startswith(self._held):
            return False
        if self._held.startswith(BEGIN) and not self._held.startswith(end):
            self._step = MinimaxM3Parser._read_nested
        else:
            self._argument = TextArgument()
            self._step = MinimaxM3Parser._read_text
        return True

    def _read_text(self) -> bool:
        text, marker = self._take_up_to(_ANY_TAG)
        self._write_arguments(self._argument.push(text))
        if marker:
            self._end_text()
        return bool(marker)

    def _end_text(self) -> None:
        self._write_arguments(self._argument.end())
        self._step = MinimaxM3Parser._read_call

    def _read_nested(self) -> bool:
        text, marker = self._take_up_to(self._markers)
        self._nested.append(text)
        if not marker:
            return False
        self._depth += 1 if marker == f"{BEGIN}{self._key}>" else -1
        if self._depth < 0 or marker == f"{BEGIN}/invoke>":
            self._end_nested()
        else:
            self._nested.append(self._take(len(marker)))
        return True

    def _end_nested(self) -> None:
        self._write_arguments(nested_json("".join(self._nested), PREFIX, self._schema))
        self._step = MinimaxM3Parser._read_call
