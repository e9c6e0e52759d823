"""Random texts of tool calls: scraps of a format in any order, and whole calls among words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from dynamo.frontend.parsers.parts import Parser
from tests.frontend.parsers.golden import Call, check_cuts, parse

WORDS = ["a", " b", "\n", "é😀", "word ", "1.", "x < y", "{", "}", '"', "\\", "[", "]", ",", ":", "'"]
JSON_SCRAPS = [
    '{"name"',
    ': "ping"',
    ', "arguments": ',
    "{}",
    '{"a": [1, "\\ud83d\\ude00"]}',
    "null",
    '"{',
    '\\"a\\": 1}"',
]


def scraps(markers: Sequence[str], others: Sequence[str] = JSON_SCRAPS) -> st.SearchStrategy[str]:
    """Markers, halves of markers, pieces of calls and words."""
    halves = [half for marker in markers for half in (marker[: len(marker) // 2], marker[len(marker) // 2 :])]
    return st.lists(st.sampled_from([*markers, *markers, *halves, *others, *WORDS]), max_size=12).map("".join)


def check_scraps(factory: Callable[[], Parser], text: str, marker: str) -> None:
    """Nothing raises, cuts do not matter, and where there is no call nothing but space is lost, and what `marker`
    matches."""
    whole = parse(factory(), [text])
    check_cuts(factory, text, whole)
    if not whole.calls:
        assert _bare(whole.content) == _bare(re.sub(marker, "", text))


def any_of(markers: Sequence[str]) -> str:
    """A regular expression."""
    return "|".join(map(re.escape, markers))


def check_calls_among_words(factory: Callable[[], Parser], pieces: Sequence[str | tuple[str, Call]]) -> None:
    """`pieces` are words, and texts of calls with what they stand for: words are content, and calls are calls."""
    text = "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)
    whole = parse(factory(), [text])
    assert _bare(whole.content) == _bare("".join(piece for piece in pieces if isinstance(piece, str)))
    assert whole.calls == [piece[1] for piece in pieces if not isinstance(piece, str)]


def _bare(text: str) -> str:
    """Without what may be dropped around calls: space, and the brackets of an empty list."""
    return re.sub(r"[\s\[\]]", "", text)
