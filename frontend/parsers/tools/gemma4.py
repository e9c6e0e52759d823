"""Calls of Gemma 4.

    <|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3,tags:[<|"|>a<|"|>,null]}<tool_call|>

Strings are what stands between their marks, markers of calls included, and go out as they come. A bare word that is no
number, truth value or null is a string too. Brackets that are missing at a call's end marker are closed, those that
close nothing are left out. Dynamo 1.6.1 ends a call at a marker within a string, and loses all arguments with the first
that it cannot read.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring

from dynamo.frontend.parsers.argument import ArrayWriter, ObjectWriter, json_of
from dynamo.frontend.parsers.call_parser import CallParser, CallTags, Step
from dynamo.frontend.parsers.context import Functions
from dynamo.frontend.parsers.marker import Markers

END = "<tool_call|>"
QUOTE = '<|"|>'
_NAME = re.compile(r"[\w.-]+")
_BARE_TYPES = frozenset({"boolean", "integer", "number", "any"})
_IN_STRING = Markers([QUOTE])
_IN_KEY = Markers([":", ",", "}", END])
_AFTER_VALUE = Markers([",", "}", "]", END])


def _name(tag: str, functions: Functions) -> str:
    del functions
    return tag if _NAME.fullmatch(tag) else ""


TAGS = CallTags(
    blocks=("<|tool_call>",),
    call="call:",
    needs_block=True,
    call_tag_end=r"\{|^[\w.-]*[^\w.{-]",  # anything else ends no tag
    ends=[END],
    read_name=_name,
)


class Gemma4Parser(CallParser):
    __slots__ = ("_open", "_pieces")

    def __init__(self, functions: Functions) -> None:
        super().__init__(TAGS, functions)
        self._open: list[ObjectWriter | ArrayWriter] = []
        self._pieces: list[str] = []  # of a key or a bare word

    def _begin_call(self) -> Step:
        self._open = [self._object]
        self._pieces = []
        return Gemma4Parser._read_key

    def _is_whole(self) -> bool:
        """The bracket that closes the arguments is part of them, and ends the call."""
        return False

    def _read_key(self) -> bool:
        text, mark = self._take_up_to(_IN_KEY)
        self._pieces.append(text)
        if not mark:
            return False
        key = "".join(self._pieces).replace(QUOTE, "").strip().strip('"')
        self._pieces = []
        top = self._open[-1]
        if mark != ":":
            self._step = Gemma4Parser._read_after_value
            return True
        self._take(1)
        if key and isinstance(top, ObjectWriter):
            self._write_arguments(top.key(key))
            self._step = Gemma4Parser._read_value
        return True

    def _read_value(self) -> bool:
        self._take(len(self._held) - len(self._held.lstrip()))
        if QUOTE.startswith(self._held) and self._held != QUOTE:
            return False
        if self._held.startswith(QUOTE):
            self._take(len(QUOTE))
            self._write_item('"')
            self._step = Gemma4Parser._read_string
        elif self._held[0] in "{[":
            self._open_container(self._take(1))
        else:
            self._step = Gemma4Parser._read_bare
        return True

    def _read_string(self) -> bool:
        text, mark = self._take_up_to(_IN_STRING)
        self._write_arguments(encode_basestring(text)[1:-1])
        if mark:
            self._take(len(QUOTE))
            self._write_arguments('"')
            self._step = Gemma4Parser._read_after_value
        return bool(mark)

    def _read_bare(self) -> bool:
        text, mark = self._take_up_to(_AFTER_VALUE)
        self._pieces.append(text)
        if mark:
            self._end_bare()
        return bool(mark)

    def _read_after_value(self) -> bool:
        _, mark = self._take_up_to(_AFTER_VALUE)
        if not mark:
            return False
        if mark == END:
            self._close_all()
            return True
        self._take(1)
        if mark == "}":
            self._close_object()
        elif mark == "]":
            self._close_array()
        else:
            in_array = isinstance(self._open[-1], ArrayWriter)
            self._step = Gemma4Parser._read_value if in_array else Gemma4Parser._read_key
        return True

    def _end_bare(self) -> None:
        text = "".join(self._pieces).strip()
        self._pieces = []
        if text.lower() in ("none", "nil"):
            text = "null"
        if text or isinstance(self._open[-1], ObjectWriter):
            self._write_item(json_of(text, _BARE_TYPES))
        self._step = Gemma4Parser._read_after_value

    def _write_item(self, json: str) -> None:
        """A value, or its beginning; that of an object follows its key."""
        top = self._open[-1]
        self._write_arguments((top.item() if isinstance(top, ArrayWriter) else "") + json)

    def _open_container(self, bracket: str) -> None:
        self._write_item("")
        if bracket == "{":
            self._open.append(ObjectWriter())
            self._step = Gemma4Parser._read_key
        else:
            self._open.append(ArrayWriter())

    def _close_object(self) -> None:
        while isinstance(self._open[-1], ArrayWriter):
            self._close_last()
        self._close_last()

    def _close_array(self) -> None:
        if isinstance(self._open[-1], ArrayWriter):
            self._close_last()

    def _close_all(self) -> None:
        while self._open:
            self._close_last()

    def _close_last(self) -> None:
        if len(self._open) == 1:
            self._open.clear()
            self._end_call()
        else:
            self._write_arguments(self._open.pop().end())
            self._step = Gemma4Parser._read_after_value
