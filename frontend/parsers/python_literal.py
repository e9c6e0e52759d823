"""Where a Python expression ends in text that comes in pieces, and the JSON of its value."""

from __future__ import annotations

import ast
import json
import re
import warnings

_STRUCTURE = re.compile(r"""["'()\[\]{},]""")
_BODIES = {
    "'": re.compile(r"(?:[^'\\]+|\\.)*+", re.DOTALL),
    '"': re.compile(r'(?:[^"\\]+|\\.)*+', re.DOTALL),
    "'''": re.compile(r"(?:[^'\\]+|\\.|'(?!'')(?=..))*+", re.DOTALL),
    '"""': re.compile(r'(?:[^"\\]+|\\.|"(?!"")(?=..))*+', re.DOTALL),
}
_JSON_NAMES = {"true": True, "false": False, "null": None}


class PythonScanner:
    """Follows one argument of a call. It `is_done` at the comma or bracket that comes after it."""

    __slots__ = ("_depth", "_quote", "is_done")

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self.is_done = False

    def push(self, text: str, at: int = 0) -> int:
        """Reads on at `at`; where the argument ends, or up to where more text is needed to tell."""
        while at < len(text) and not self.is_done:
            before = at
            at = self._string(text, at) if self._quote else self._structure(text, at)
            if at == before:
                break
        return at

    def _structure(self, text: str, at: int) -> int:
        found = _STRUCTURE.search(text, at)
        if found is None:
            return len(text)
        at, character = found.start(), found[0]
        if character in "\"'":
            return self._open_string(text, at)
        if self._depth == 0 and character in ",)]}":
            self.is_done = True
            return at
        self._depth += (character in "([{") - (character in ")]}")
        return at + 1

    def _open_string(self, text: str, at: int) -> int:
        quote = text[at]
        if text[at:] in (quote, quote * 2):  # the third decides what the first two are
            return at
        self._quote = quote * 3 if text.startswith(quote * 3, at) else quote
        return at + len(self._quote)

    def _string(self, text: str, at: int) -> int:
        end = _BODIES[self._quote].match(text, at).end()  # type: ignore[union-attr]  # matches an empty text too
        if text.startswith(self._quote, end):
            end += len(self._quote)
            self._quote = ""
        return end


def json_of(expression: str) -> str:
    """Tuples and sets are arrays, `true`, `false` and `null` are what they are in JSON. What is no literal, or has no
    counterpart in JSON, is a string of its source."""
    try:
        return _dumped(ast.literal_eval(_parsed(expression.strip())))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _dumped(expression.strip())


def _parsed(expression: str) -> ast.Expression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        tree = ast.parse(expression, mode="eval")
    return _WithJsonNames().visit(tree)  # type: ignore[no-any-return]


class _WithJsonNames(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_JSON_NAMES[node.id]) if node.id in _JSON_NAMES else node


def _dumped(value: object) -> str:
    """Surrogates become the characters they are halves of, else U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_list)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _as_list(value: object) -> list[object]:
    if isinstance(value, set):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
