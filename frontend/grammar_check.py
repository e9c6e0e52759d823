"""Whether a grammar can be one: GBNF, as in `root ::= "a" | "b"`, or Lark, as in `start: "a" | "b"`.

Only what any reader of either needs is checked: a rule to start from, and quotes and brackets that close.
"""

from __future__ import annotations

import re

MAX_LENGTH = 1 << 18

_GBNF_ROOT = re.compile(r"^\s*root\s*::=", re.MULTILINE)
_LARK_START = re.compile(r"^\s*\??start(?:\.\d+)?\s*:", re.MULTILINE)
_STRING = r'"(?:[^"\\\n]|\\.)*+"'
_GBNF_LITERALS = re.compile(rf"{_STRING}|\[(?:[^\]\\]|\\.)*+\]|#[^\n]*")
_LARK_LITERALS = re.compile(rf"{_STRING}|/(?![/*])(?:[^/\\\n]|\\.)++/|//[^\n]*|#[^\n]*")
_CLOSING = {")": "(", "]": "[", "}": "{"}


def grammar_fault(grammar: str) -> str | None:
    """What is wrong with it, to follow "it"; None if nothing is found."""
    if not grammar.strip():
        return "is empty; it must be a grammar in GBNF or Lark"
    if len(grammar) > MAX_LENGTH:
        return f"has {len(grammar)} characters; a grammar may have {MAX_LENGTH}"
    if "::=" in grammar:
        return _fault(grammar, _GBNF_LITERALS, _GBNF_ROOT, "root ::= ...")
    return _fault(grammar, _LARK_LITERALS, _LARK_START, "start: ...")


def _fault(grammar: str, literals: re.Pattern[str], start: re.Pattern[str], example: str) -> str | None:
    """Literals give way to spaces, so that rules are told from what is quoted."""
    rules = literals.sub(lambda found: " " * len(found[0]), grammar)
    if start.search(rules) is None:
        return f"has no rule to start from, such as {example}"
    return _unclosed(rules)


def _unclosed(rules: str) -> str | None:
    opened: list[tuple[str, int]] = []
    for number, line in enumerate(rules.splitlines(), 1):
        for character in line:
            if character == '"':
                return f"has a quote in line {number} that is not closed"
            if character in "([{":
                opened.append((character, number))
            elif character in _CLOSING and (not opened or opened.pop()[0] != _CLOSING[character]):
                return f"has a {character} in line {number} that closes nothing"
    return f"has a {opened[-1][0]} in line {opened[-1][1]} that is not closed" if opened else None
