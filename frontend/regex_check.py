"""Whether a regular expression is one, in any of the dialects that workers know.

A worker reads it with ECMA's rules or Rust's, which differ from Python's in their escapes, flags and group names. Those
are put into Python's words, or replaced by something plain; what is then left to check are groups, classes and counts.
"""

from __future__ import annotations

import re
import warnings

MAX_LENGTH = 16_384

# Without flags too: Python spells out every range of a class that ignores case, which takes seconds.
_FOREIGN = re.compile(
    r"\\(?:[pP]\{[^{}]*\}|[xu]\{[^{}]*\}|k<(?P<backref>\w+)>|c[A-Za-z]|.)"
    r"|\(\?P?<(?P<group>[A-Za-z_]\w*)>"
    r"|\(\?(?P<flags>[A-Za-z]*(?:-[A-Za-z]+)?)(?=[:)])",
    re.DOTALL,
)
_PYTHON_ESCAPES = frozenset("AbBdDsSwWZafnrtvx")
_ACCEPTED_BY_OTHERS = ("look-behind requires fixed-width pattern",)


def regex_fault(pattern: str) -> str | None:
    """What is wrong with it, to follow "it"; None if nothing is."""
    if len(pattern) > MAX_LENGTH:
        return f"has {len(pattern)} characters; a regular expression may have {MAX_LENGTH}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(_FOREIGN.sub(_in_python, pattern))
    except re.error as error:
        if error.msg in _ACCEPTED_BY_OTHERS:
            return None
        return f"is no regular expression: {error.msg}"
    except (OverflowError, RecursionError):
        return "is a regular expression that repeats or nests more than can be read"
    return None


def _in_python(found: re.Match[str]) -> str:
    text = found[0]
    if found["group"] is not None:
        return f"(?P<{found['group']}>"
    if found["backref"] is not None:
        return f"(?P={found['backref']})"
    if found["flags"] is not None:
        return "(?" if found.string[found.end()] == ":" else "(?:"
    if len(text) > 2:
        return r"\w"
    if text[1].isascii() and text[1].isalpha() and text[1] not in _PYTHON_ESCAPES:
        return r"\w" if text[1] not in "uU" else text[1]
    return text
