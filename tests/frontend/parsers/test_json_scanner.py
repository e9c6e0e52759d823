"""Where JSON ends and what its strings say, in any pieces, as the standard library has it."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend.parsers.call_arguments import arguments_reader
from dynamo.frontend.parsers.json_scanner import MAX_DEPTH, JsonScanner, StringDecoder
from dynamo.frontend.parsers.marker import Markers
from tests.frontend.parsers.golden import ways_to_cut

TEXT = st.text(st.sampled_from('a"\\/{}[],: \n\u00e9\U0001f600\x00'), max_size=8)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


def end_of_value(pieces: Iterable[str]) -> tuple[str, bool]:
    """What belongs to the value, and whether it is over."""
    scanner = JsonScanner()
    value = "".join(piece[: scanner.push(piece)] for piece in pieces)
    return value, scanner.is_done


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VALUES, st.booleans(), st.sampled_from([",", "}", "]", "<", "\n"]), TEXT)
def test_a_value_ends_where_it_ends(value: object, in_ascii: bool, after: str, rest: str) -> None:
    text = json.dumps(value, ensure_ascii=in_ascii)
    for pieces in ways_to_cut(text + after + rest):
        assert end_of_value(pieces) == (text, True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.one_of(TEXT, st.text(max_size=4)), st.booleans())
def test_a_string_says_what_it_says(text: str, in_ascii: bool) -> None:
    for pieces in ways_to_cut(json.dumps(text, ensure_ascii=in_ascii)[1:-1]):
        decoder = StringDecoder()
        assert "".join([*map(decoder.push, pieces), decoder.flush()]) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["\\", "u", "d83d", "de00", "\\ud83d", "\\ude00", "n", '"', "00e9", "x"])).map("".join))
def test_faults_in_escapes_do_not_depend_on_cuts(raw: str) -> None:
    whole = StringDecoder()
    expected = whole.push(raw) + whole.flush()
    expected.encode()  # half of a pair would raise
    for pieces in ways_to_cut(raw):
        decoder = StringDecoder()
        assert "".join([*map(decoder.push, pieces), decoder.flush()]) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VALUES)
def test_raw_control_characters_in_strings_become_escapes(value: object) -> None:
    valid = json.dumps({"a": value}, indent=1)
    written = valid.replace("\\n", "\n").replace("\\u0000", "\x00")
    if "\\\\" in valid:  # the n after a backslash is no line break
        written = valid
    for pieces in ways_to_cut(written):
        reader = arguments_reader("{")
        read = "".join(reader.push(piece, 0)[0] for piece in pieces)
        assert json.loads(read) == {"a": value}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1<', ('{"a": 1', False)),
        ('{"a": 1', ('{"a": 1', False)),
        ('"a\\', ('"a\\', False)),
        ("12", ("12", False)),
        ("[" * (MAX_DEPTH + 1), ("[" * (MAX_DEPTH + 1), False)),
        ("[1}x", ("[1}", True)),
        ("", ("", False)),
    ],
)
def test_what_is_no_json(text: str, expected: tuple[str, bool]) -> None:
    assert end_of_value([text]) == expected
    for pieces in ways_to_cut(text):
        assert end_of_value(pieces) == expected


@pytest.mark.parametrize(
    ("text", "num_held"),
    [("", 0), ("a", 0), ("<", 1), ("a <to", 3), ("<tool>", 0), ("<<", 1), ("<to<", 1), ("[TOOL", 5), ("</tool", 6)],
)
def test_only_what_may_be_a_marker_is_held_back(text: str, num_held: int) -> None:
    assert Markers(["<tool>", "</tool>", "[TOOL]"]).num_held(text) == num_held
