"""The arguments of a call, written as a JSON value and read while they are written.

They keep the words of the model: an object goes out as it is written, a string as the text it stands for, and null is
the same as no arguments. Only line breaks and the like, which models forget to escape in strings, are escaped.
"""

from __future__ import annotations

import json
import re
from typing import Protocol

from dynamo.frontend.parsers.json_scanner import JsonScanner, StringDecoder

NO_ARGUMENTS = "{}"

_CONTROL = re.compile(r"[\x00-\x1f]")
_STRING = re.compile(r'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)


class ArgumentsReader(Protocol):
    is_over: bool
    """No more comes, whether the value ended well or not."""

    is_in_string: bool
    """Text in which nothing is special in strings would go out as it is."""

    def push(self, text: str, at: int) -> tuple[str, int]:
        """The next piece of the arguments, and where in `text` they stop."""


def arguments_reader(first: str) -> ArgumentsReader:
    """`first` is the first character of the value, which is yet to be pushed."""
    if first in "{[":
        return _Written()
    return _Quoted() if first == '"' else _Scalar()


class _Written:
    __slots__ = ("_scanner", "is_in_string", "is_over")

    def __init__(self) -> None:
        self._scanner = JsonScanner()
        self.is_in_string = False
        self.is_over = False

    def push(self, text: str, at: int) -> tuple[str, int]:
        opening = self._scanner.opening
        end = self._scanner.push(text, at)
        self.is_over = self._scanner.is_done or self._scanner.is_broken
        self.is_in_string = self._scanner.opening == '"'
        piece = text[at:end]
        return _with_controls_escaped(piece, opening) if _CONTROL.search(piece) else piece, end


class _Quoted:
    __slots__ = ("_decoder", "_is_empty", "_quotes", "_scanner", "is_in_string", "is_over")

    def __init__(self) -> None:
        self._decoder = StringDecoder()
        self._is_empty = True
        self._quotes = 1
        self._scanner = JsonScanner()
        self.is_in_string = False
        self.is_over = False

    def push(self, text: str, at: int) -> tuple[str, int]:
        end = self._scanner.push(text, at)
        self.is_over = self._scanner.is_done
        piece = self._decoder.push(text[at + self._quotes : end - self.is_over])
        self._quotes = 0
        if self.is_over:
            piece += self._decoder.flush()
            if self._is_empty and not piece:
                piece = NO_ARGUMENTS
        self._is_empty = self._is_empty and not piece
        return piece, end


class _Scalar:
    __slots__ = ("_scanner", "_written", "is_in_string", "is_over")

    def __init__(self) -> None:
        self._scanner = JsonScanner()
        self._written: list[str] = []
        self.is_in_string = False
        self.is_over = False

    def push(self, text: str, at: int) -> tuple[str, int]:
        end = self._scanner.push(text, at)
        self._written.append(text[at:end])
        self.is_over = self._scanner.is_done
        if not self.is_over:
            return "", end
        written = "".join(self._written)
        return NO_ARGUMENTS if written in ("", "null", "None") else written, end


def _with_controls_escaped(piece: str, opening: str) -> str:
    """Escapes them in strings only. `opening` is put before the piece for as long as it takes to see the strings."""
    return _STRING.sub(_escape_controls, opening + piece)[len(opening) :]


def _escape_controls(string: re.Match[str]) -> str:
    return _CONTROL.sub(lambda control: json.dumps(control[0])[1:-1], string[0])
