"""Where a JSON value ends in text that comes in pieces, and what a JSON string says.

Models write JSON with small faults, so nothing is checked that need not be: brackets are counted whatever their kind,
strings may hold raw line breaks, and what stands between strings and brackets is not looked at.
"""

from __future__ import annotations

import re

from dynamo.frontend.parsers.marker import end_of

MAX_DEPTH = 256
"""Brackets within brackets; a deeper value is broken."""

SPECIAL_IN_STRING = re.compile(r'["\\\x00-\x1f]').search
"""Finds what ends a string, or may not stand in it as it is."""

_STRING_BODY = re.compile(r'(?:[^"\\]+|\\.)*+', re.DOTALL)
_STRUCTURE = re.compile(r'["{}\[\]<`]')  # the last two begin markers, and JSON has none of them outside of strings
_END_OF_SCALAR = re.compile(r"[\s,;{}\[\]<`]")


class JsonScanner:
    """Follows one value, which begins with the first character pushed.

    `is_done` says that the value is over, `is_broken` that it cannot be JSON from there on.
    """

    __slots__ = ("_depth", "_has_begun", "_is_escaped", "_is_string", "is_broken", "is_done")

    def __init__(self) -> None:
        self._depth = 0
        self._has_begun = False
        self._is_escaped = False
        self._is_string = False
        self.is_broken = False
        self.is_done = False

    def push(self, text: str, at: int = 0) -> int:
        """Reads on at `at`; where the value goes no further, or the length of `text`."""
        while at < len(text) and not (self.is_done or self.is_broken):
            if self._is_string:
                at = self._string(text, at)
            elif self._depth or (not self._has_begun and text[at] in '{["'):
                at = self._structure(text, at)
            else:
                at = self._scalar(text, at)
            self._has_begun = True
        return at

    @property
    def opening(self) -> str:
        """What would bring another scanner to this point of a string; empty outside of strings."""
        return ('"\\' if self._is_escaped else '"') if self._is_string else ""

    def _string(self, text: str, at: int) -> int:
        at += self._is_escaped
        at = end_of(_STRING_BODY, text, at)
        self._is_escaped = text[at:] == "\\"
        if text[at : at + 1] != '"':
            return len(text)
        self._is_string = False
        self.is_done = self._depth == 0
        return at + 1

    def _structure(self, text: str, at: int) -> int:
        found = _STRUCTURE.search(text, at)
        if found is None:
            return len(text)
        match found[0]:
            case '"':
                self._is_string = True
            case "{" | "[":
                self._depth += 1
                self.is_broken = self._depth > MAX_DEPTH
            case "}" | "]":
                self._depth -= 1
                self.is_done = self._depth == 0
            case _:
                self.is_broken = True
                return found.start()
        return found.end()

    def _scalar(self, text: str, at: int) -> int:
        found = _END_OF_SCALAR.search(text, at)
        if found is None:
            return len(text)
        self.is_done = True
        return found.start()


_HEX = "[0-9a-fA-F]"
_HIGH = rf"u[dD][89abAB]{_HEX}{{2}}"
_LOW = rf"u[dD][c-fC-F]{_HEX}{{2}}"
_ESCAPE = re.compile(rf"\\(?:{_HIGH}\\{_LOW}|u{_HEX}{{4}}|.)", re.DOTALL)
_WHOLE_ESCAPES = re.compile(
    rf"(?:[^\\]+|\\(?:[^u]|{_HIGH}(?:\\{_LOW}|(?=[^\\]|\\[^u]|\\u.{{4}}))|(?!{_HIGH})u{_HEX}{{4}}"
    rf"|u{_HEX}{{0,3}}(?=[^0-9a-fA-F])))*+",
    re.DOTALL,
)
_SIMPLE_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}
_REPLACEMENT = "\ufffd"


class StringDecoder:
    """The text that the inside of a JSON string stands for; an escape that is cut in half waits for its rest.

    What is no escape of JSON stays as it is written. Half a surrogate pair becomes U+FFFD.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    def push(self, raw: str) -> str:
        raw = self._held + raw
        end = end_of(_WHOLE_ESCAPES, raw, 0)
        self._held = raw[end:]
        return unescaped(raw[:end])

    def flush(self) -> str:
        raw, self._held = self._held, ""
        return unescaped(raw)


def unescaped(raw: str) -> str:
    """`raw`: the inside of a JSON string."""
    return _ESCAPE.sub(_character, raw) if "\\" in raw else raw


def _character(escape: re.Match[str]) -> str:
    written = escape[0]
    if len(written) == 2:
        return _SIMPLE_ESCAPES.get(written[1], written)
    units = [int(digits, 16) for digits in written.split("\\u")[1:]]
    if len(units) == 2:
        return chr(0x10000 + ((units[0] - 0xD800) << 10) + (units[1] - 0xDC00))
    return _REPLACEMENT if 0xD800 <= units[0] < 0xE000 else chr(units[0])
