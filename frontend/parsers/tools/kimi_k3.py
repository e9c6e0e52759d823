"""Kimi K3, whose answers are sections of tags made of special tokens.

    <|open|>response<|sep|>Let me look.<|close|>response<|sep|>
    <|open|>tools<|sep|><|open|>call tool="get_time" index="1"<|sep|>
    <|open|>argument key="zone" type="string"<|sep|>UTC<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>

The value of a string is its text as it is and goes out as it comes, any other is JSON and goes out when it is complete;
what claims to be JSON and is not becomes a string. Instead of arguments there may be one `json` with all of them.

Tags of the format are dropped wherever they stand, and so is one that never ends; unknown ones are content. A call that
is cut off keeps its arguments as they went out; they are closed only where all values are whole. Dynamo 1.6.1 drops it,
and whatever else stands between calls.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

from dynamo.frontend.parsers.call_arguments import NO_ARGUMENTS
from dynamo.frontend.parsers.context import Functions, ToolParserFactory
from dynamo.frontend.parsers.marked import MarkedParser
from dynamo.frontend.parsers.marker import Markers
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Part

MAX_TAG = 1024
"""Characters of a tag; one that is longer is content."""

_OPEN, _CLOSE, _SEPARATOR = "<|open|>", "<|close|>", "<|sep|>"
_MARKERS = Markers([_OPEN, _CLOSE, "<|end_of_msg|>"])
_TAG = re.compile(r"\s*+(\w++)([^<]*+)<\|sep\|>")
_ATTRIBUTE = re.compile(r'(\w+)\s*=\s*"([^"]*)"')
_TAGS = ("response", "tools", "message", "think", "call", "argument", "json")
_VALUE_END = Markers(
    [f"{_CLOSE}{space}{tag}{space}{_SEPARATOR}" for tag in ("argument", "json", "call") for space in ("", " ")]
)


class KimiK3Calls(MarkedParser):
    __slots__ = ("_before_argument", "_in_call", "_key", "_marker", "_value")

    def __init__(self, functions: Functions) -> None:
        super().__init__(_MARKERS)
        self._before_argument = "{"
        self._in_call = False
        self._key = ""
        self._marker = ""
        self._value: list[str] = []

    def _after_marker(self, marker: str, rest: str) -> str:
        if marker in (_OPEN, _CLOSE):
            self._marker = marker
            self._state = KimiK3Calls._tag
        return rest

    def _tag(self, text: str, parts: list[Part]) -> str:
        tag = _TAG.match(text, 0, MAX_TAG)
        if tag is None and len(text) < MAX_TAG and _SEPARATOR not in text:
            self._held = text
            return ""
        self._state = MarkedParser._content
        if tag is None or tag[1] not in _TAGS:
            self._add_content(self._marker, parts)
            return text
        attributes = {key: _unescaped(value) for key, value in _ATTRIBUTE.findall(tag[2])}
        if tag[1] == "call":
            self._end_call(parts)
            self._start_call(attributes.get("tool"), parts)
        elif self._in_call and self._marker == _OPEN and tag[1] in ("argument", "json"):
            self._start_value(tag[1], attributes, parts)
        return text[tag.end() :]

    def _start_call(self, name: str | None, parts: list[Part]) -> None:
        if self._marker == _OPEN and name:
            self._begin_call()
            self._in_call = True
            self._before_argument = "{"
            parts.append(CallStart(name))

    def _end_call(self, parts: list[Part]) -> None:
        if self._in_call and self._before_argument:
            parts.append(CallArguments("}" if self._before_argument == ", " else NO_ARGUMENTS))
        self._in_call = False

    # ------------------------------------------------------------------ values

    def _start_value(self, tag: str, attributes: dict[str, str], parts: list[Part]) -> None:
        if tag == "json":
            self._before_argument = ""
            self._state = KimiK3Calls._all_arguments
            return
        self._key = f"{self._before_argument}{_dumped(attributes.get('key', ''))}: "
        self._before_argument = ", "
        if attributes.get("type") in (None, "string"):
            parts.append(CallArguments(f'{self._key}"'))
            self._state = KimiK3Calls._string
        else:
            self._value.clear()
            self._state = KimiK3Calls._json

    def _all_arguments(self, text: str, parts: list[Part]) -> str:
        piece, _, rest = self._piece(text)
        if piece:
            parts.append(CallArguments(piece))
        return rest

    def _string(self, text: str, parts: list[Part]) -> str:
        piece, is_over, rest = self._piece(text)
        written = _dumped(piece)[1:] if is_over else _dumped(piece)[1:-1]
        if written:
            parts.append(CallArguments(written))
        return rest

    def _json(self, text: str, parts: list[Part]) -> str:
        piece, is_over, rest = self._piece(text)
        self._value.append(piece)
        if is_over:
            parts.append(CallArguments(self._key + _as_json("".join(self._value))))
        return rest

    def _piece(self, text: str) -> tuple[str, bool, str]:
        """What belongs to a value, whether it ends there, and what is left. It ends with its call at the latest."""
        end = _VALUE_END.find(text)
        if end is None:
            held = len(text) - _VALUE_END.num_held(text)
            self._held = text[held:]
            return text[:held], False, ""
        self._state = MarkedParser._content
        return text[: end.start()], True, text[end.start() if "call" in end[0] else end.end() :]

    def _end(self, parts: list[Part]) -> None:
        if self._state is MarkedParser._content:
            self._add_content(self._held, parts)
            self._end_call(parts)
        elif self._state is KimiK3Calls._tag and self._marker == _CLOSE:
            self._end_call(parts)


def _unescaped(value: str) -> str:
    return value.replace("&quot;", '"').replace("&amp;", "&")


def _dumped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _as_json(value: str) -> str:
    try:
        json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _dumped(value)
    return value.strip()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


KIMI_K3_PARSERS: dict[str, ToolParserFactory] = {"kimi_k3": KimiK3Calls, "kimi-k3": KimiK3Calls}
