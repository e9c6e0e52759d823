"""Chat template source, written for Jinja2, rewritten where minijinja reads or computes something else.

    translate(source) -> source for the environment of `jinja_environment`

Only expressions and tags are touched, token by token; text, comments and raw blocks stay. What is rewritten:

- str methods that minijinja lacks or has with fewer arguments become `(value|python_method('name', ...))`; so do the
  methods that change a list or a dict, which the sandbox of `transformers` forbids, so that they raise;
- `strip()`, `lstrip()`, `rstrip()` and `|trim` name the characters, since Python takes more of them for white space;
- `is iterable`, `is sequence` and `is number` get Python's opinion of None, strings, mappings and floats;
- filters that fail on an undefined value in one engine only are told what it is;
- a loop over None fails, where what it loops over is a variable or a part of one;
- `{% generation %}` marks tokens for training; here it is a scope without effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

UNDEFINED = "python_undefined"
NOT_ITERABLE = "python_none_is_not_iterable"
WHITESPACE = "python_whitespace"

_MARKUP = re.compile(
    r"\{#.*?#\}|\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}|(?P<open>\{\{|\{%)[-+]?", re.DOTALL
)
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<close>[-+]?%\}|-?\}\})
      | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<number>\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?)
      | (?P<name>[^\W\d]\w*)
      | (?P<sign>[=!<>]=|//|\*\*|.)""",
    re.VERBOSE | re.DOTALL,
)
_VARIABLE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*|\[(?:'[^'\\]*'|\"[^\"\\]*\")\])*")
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation\b")
_KEYWORDS = frozenset(
    {"if", "elif", "else", "and", "or", "not", "in", "is", "set", "for", "call", "filter", "recursive"}
)

_CHANGES = frozenset({"append", "extend", "insert", "pop", "popitem", "remove", "clear", "update", "setdefault"})
_FOREIGN = frozenset(
    {"capitalize", "casefold", "center", "encode", "expandtabs", "index", "isascii", "isdecimal", "isidentifier"}
    | {"isprintable", "istitle", "ljust", "partition", "removeprefix", "removesuffix", "rindex", "rjust", "rpartition"}
    | {"rsplit", "splitlines", "swapcase", "title", "translate", "zfill"}
)
# How many arguments minijinja takes; with others, or with names, the method is Python's.
_NATIVE = {"split": (1, 2), "startswith": (1,), "endswith": (1,), "find": (1,), "rfind": (1,), "count": (1,)}
_STRIPS = frozenset({"strip", "lstrip", "rstrip"})
# The value a filter is given in place of an undefined one.
_IF_UNDEFINED = {
    "replace": "''",
    "length": "''",
    "count": "''",
    "items": "{}",
    "tojson": UNDEFINED,
    "int": UNDEFINED,
    "float": UNDEFINED,
    "e": "''",
    "escape": "''",
}
_TESTS = {
    "iterable": "({0} is iterable and {0} is not none)",
    "sequence": "({0} is sequence or {0} is string or {0} is mapping)",
    "number": "({0} is number or {0} is python_float)",
    "float": "({0} is float or {0} is python_float)",
}


def translate(source: str) -> str:
    source = _GENERATION.sub(_scope, re.sub(r"\r\n?", "\n", source))
    return "".join(_pieces(source))


def _scope(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2] or ''}with"


def _pieces(source: str) -> Iterator[str]:
    position = 0
    while (match := _MARKUP.search(source, position)) is not None:
        yield source[position : match.end()]
        position = match.end()
        if match["open"]:
            tokens, position = _read_expression(source, position, match["open"])
            yield "".join(_Translation(tokens).run())
    yield source[position:]


def _read_expression(source: str, position: int, opening: str) -> tuple[list[str], int]:
    """The tokens up to the closing delimiter, which is left for the text that follows."""
    tokens: list[str] = []
    closing = "}}" if opening == "{{" else "%}"
    depth = 0
    while (match := _TOKEN.match(source, position)) is not None:
        token = match[0]
        if match["close"]:
            if depth == 0 and token.endswith(closing):
                break
            token = token[0]  # the braces of a dict within the expression
        depth += (token == "{") - (token == "}")
        tokens.append(token)
        position += len(token)
    return tokens, position


class _Translation:
    """One expression or tag. `done` holds what is written so far, as tokens, white space among them."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._done: list[str] = []
        self._at = 0
        self._depth = 0
        self._calls: list[int] = []  # depths of brackets that close a rewritten call

    def run(self) -> list[str]:
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token == "." and self._rewrite_method():
                continue
            if token == "|" and self._rewrite_filter():
                continue
            if token == "is" and self._rewrite_test():
                continue
            if token == "in" and self._tokens[self._next(0)] == "for":
                self._guard_loop()
            self._copy()
        return self._done

    def _copy(self) -> None:
        token = self._tokens[self._at]
        self._done.append(token)
        self._at += 1
        if token in "([{":
            self._depth += 1
        elif token in ")]}":
            if self._calls and self._calls[-1] == self._depth:
                self._calls.pop()
                self._done.append(")")
            self._depth -= 1

    def _rewrite_method(self) -> bool:
        name_at = self._next(self._at + 1)
        bracket = self._next(name_at + 1)
        if self._token(bracket) != "(":
            return False
        name = self._token(name_at)
        count, has_names = self._arguments(bracket)
        if name in _STRIPS and count == 0:
            self._done += [".", name, "(", WHITESPACE]
            self._depth += 1
        elif name in _CHANGES or name in _FOREIGN or (name in _NATIVE and (has_names or count not in _NATIVE[name])):
            self._done.insert(self._operand(), "(")
            self._done += ["|", "python_method", "(", f"'{name}'", ", " if count else ""]
            self._depth += 1
            self._calls.append(self._depth)
        else:
            return False
        self._at = bracket + 1
        return True

    def _rewrite_filter(self) -> bool:
        name_at = self._next(self._at + 1)
        name = self._token(name_at)
        if name == "trim" and self._token(self._next(name_at + 1)) != "(":
            self._done += ["|", "trim", "(", WHITESPACE, ")"]
        elif name in _IF_UNDEFINED:
            self._done += ["|", "default", "(", _IF_UNDEFINED[name], ")", "|", name]
        else:
            return False
        self._at = name_at + 1
        return True

    def _rewrite_test(self) -> bool:
        name_at = self._next(self._at + 1)
        is_negated = self._token(name_at) == "not"
        if is_negated:
            name_at = self._next(name_at + 1)
        test = _TESTS.get(self._token(name_at))
        if test is None:
            return False
        start = self._operand()
        operand = "".join(self._done[start:]).strip()
        text = test.format(operand)
        self._done[start:] = [f"(not {text})" if is_negated else text]
        self._at = name_at + 1
        return True

    def _guard_loop(self) -> None:
        start = self._next(self._at + 1)
        end = start
        while self._token(end) not in ("", "if", "recursive"):
            end += 1
        iterated = "".join(self._tokens[start:end]).strip()
        if _VARIABLE.fullmatch(iterated):
            self._tokens[start:end] = [f"({iterated} if {iterated} is not none else {NOT_ITERABLE}())", " "]

    def _next(self, index: int) -> int:
        """The first index from here that holds no white space."""
        while index < len(self._tokens) and self._tokens[index].isspace():
            index += 1
        return index

    def _token(self, index: int) -> str:
        return self._tokens[index] if index < len(self._tokens) else ""

    def _arguments(self, bracket: int) -> tuple[int, bool]:
        """How many arguments the call has whose bracket this is, and whether one of them is named."""
        depth, commas, is_empty, has_names = 0, 0, True, False
        for token in self._tokens[bracket:]:
            depth += (token in "([{") - (token in ")]}")
            if depth == 0:
                break
            if depth == 1 and token != "(":
                commas += token == ","
                has_names |= token == "="
            is_empty &= (token == "(" and depth == 1) or token.isspace()
        return (0 if is_empty else commas + 1), has_names

    def _operand(self) -> int:
        """Where the operand of what follows begins in `done`: a name or literal with its attributes, calls, filters."""
        index = len(self._done)
        while True:
            index = self._primary(index)
            before = self._before(index)
            if before < 0 or self._done[before] not in (".", "|"):
                return index
            index = before

    def _primary(self, end: int) -> int:
        """Where the name, literal or bracket begins that ends before `end`, with what is called or subscripted."""
        index = self._before(end)
        while index >= 0 and self._done[index] in (")", "]", "}"):
            index = self._opening(index)
            callee = self._before(index)
            if callee < 0 or self._done[index] == "{" or not self._is_value(self._done[callee]):
                return index
            index = callee
        return max(index, 0)

    def _opening(self, index: int) -> int:
        depth = 0
        while index > 0:
            depth += (self._done[index] in (")", "]", "}")) - (self._done[index] in ("(", "[", "{"))
            if depth == 0:
                break
            index -= 1
        return index

    def _before(self, index: int) -> int:
        index -= 1
        while index >= 0 and (not self._done[index] or self._done[index].isspace()):
            index -= 1
        return index

    @staticmethod
    def _is_value(token: str) -> bool:
        """Whether a bracket after this token calls or subscripts it; after a keyword or sign it begins a value."""
        return token[0] in "\"')]}" or (token[0].isidentifier() and token not in _KEYWORDS)
