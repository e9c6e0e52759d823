"""Calls written in Python."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend.parsers.parts import CallArguments, CallStart, Parser
from dynamo.frontend.parsers.python_literal import PythonScanner, json_of
from dynamo.frontend.parsers.registry import tool_parser
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS
from tests.frontend.parsers.tool_texts import check_calls_among_words, check_scraps, scraps


def parser() -> Parser:
    return tool_parser("pythonic")(FUNCTIONS)


PARIS = Call("get_weather", {"city": "Paris", "days": 3})
PING = Call("ping", {})

GOLDENS = [
    golden("one call", '[get_weather(city="Paris", days=3)]', "", PARIS),
    golden("two calls", "[get_weather(city='Paris', days=3), ping()]", "", PARIS, PING),
    golden("space", "[ ping ( ) ,\n get_weather( city = 'Paris',\n days = 3 , ) ]", "", PING, PARIS),
    golden("text around", "Hi [ping()] bye", "Hi  bye", PING),
    golden("two lists", "[ping()]\n[ping()]", "", PING, PING),
    golden("other brackets", "a [b] [1](x) [ping](y) [[ping()]", "a [b] [1](x) [ping](y) [", PING),
    golden("between markers", "<|python_start|>[nope(a=1)]<|python_end|> x", " x", Call("nope", {"a": 1})),
    golden("not offered", "[nope(a=1)]", "[nope(a=1)]"),
    golden("not offered, later", "[ping(), a.b()]", "", PING, Call("a.b", {})),
    golden("a list", "[1, ping()]", "[1, ping()]"),
    golden("an argument without a name", "[ping(1)]", "[ping(1)]"),
    golden("a comparison", "[ping(a==1)]", "[ping(a==1)]"),
    golden("not in a list", "ping()", "ping()"),
    golden("a string in a list", '["ping()"]', '["ping()"]'),
    golden(
        "values",
        r"""[run(a='it\'s', b=-1.5, c=True, d=None, e=[1, "a", {"k": (1, 2)}], f="a)], b", g=true, h=null, i="é")]""",
        "",
        Call(
            "run",
            {
                "a": "it's",
                "b": -1.5,
                "c": True,
                "d": None,
                "e": [1, "a", {"k": [1, 2]}],
                "f": "a)], b",
                "g": True,
                "h": None,
                "i": "é",
            },
        ),
    ),
    golden(
        "strings over lines",
        '[run(code="""a "b" \'\'\' ""\\"""\n""", x=\'\'\'\'\'\', y=\'\', z="")]',
        "",
        Call("run", {"code": 'a "b" \'\'\' """""\n', "x": "", "y": "", "z": ""}),
    ),
    golden(
        "no literals",
        "[run(a=b, c=f(1, [2]), d=1+2, e={}, f=b'x')]",
        "",
        Call("run", {"a": "b", "c": "f(1, [2])", "d": "1+2", "e": {}, "f": "b'x'"}),
    ),
    golden("twice the same", "[run(a=1, a=2)]", "", Call("run", {"a": 2})),
    golden("goes on otherwise", "[ping() x", " x", PING),
    golden("goes on with another list", "[ping(), 1]", ", 1]", PING),
    golden("an argument without a name, later", "[run(a=1, 2)]", ", 2)]", Call("run", {"a": 1})),
    golden("a wrong bracket", "[run(a=1] x", "] x", Call("run", {"a": 1})),
    golden("never closed", "[ping(), ", "", PING),
    golden("cut in an argument", '[run(a=1, b="x', "", Call("run", '{"a": 1')),
    golden("cut in the name", "a [pin", "a [pin"),
    golden("a name that is too long", "[" + "x" * 600 + "()]", "[" + "x" * 600 + "()]"),
    golden("nothing", "[]", "[]"),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_golden(case: Golden) -> None:
    check_golden(parser, case)


def test_arguments_go_out_one_by_one() -> None:
    pythonic = parser()
    assert [pythonic.push(piece) for piece in ["[run(", "a=", "1, b", "='x", "')", "]"]] == [
        [],
        [],
        [CallStart("run"), CallArguments('{"a": 1')],
        [],
        [CallArguments(', "b": "x"'), CallArguments("}")],
        [],
    ]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (r"'\ud83d\ude00'", "😀"),
        (r"'\ud83d'", "\ufffd"),
        ("{1: 2}", {"1": 2}),
        ("{(1,): 2}", "{(1,): 2}"),
        ("1e999", "1e999"),
        ("1j", "1j"),
        ("9" * 5000, "9" * 5000),
        ("(" * 300 + ")" * 300, "(" * 300 + ")" * 300),
        ("-" * 5000 + "1", "-" * 5000 + "1"),
        ("'\\d'", "\\d"),
        ("'a\0b'", "'a\0b'"),
        ("", ""),
    ],
)
def test_values(expression: str, value: Any) -> None:
    assert json.loads(json_of(expression)) == value


@pytest.mark.parametrize("quote", ["'", '"', "'''", '"""'])
@given(st.text(alphabet="'\"\\a\n,)", max_size=12), st.integers(0, 20))
@settings(deadline=None, derandomize=True)
def test_a_string_ends_where_python_says(quote: str, inside: str, cut: int) -> None:
    text = f"{quote}{inside.replace(chr(92), chr(92) * 2).replace(quote[0], chr(92) + quote[0])}{quote}, rest"
    scanner = PythonScanner()
    at = scanner.push(text[:cut])
    at += scanner.push(text[at:])
    assert text[at:] == ", rest"


SCRAPS = ["[ping(", "[run(a=", "ping()", "a=1", "=", "(", ")", "'x'", '"""', "'''", "[", "]", ", ", "{", "}"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(scraps(["<|python_start|>", "<|python_end|>"], SCRAPS))
def test_scraps(text: str) -> None:
    check_scraps(parser, text, r"<\|python_(?:start|end)\|>")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(["a", " é😀 ", "\n", " x < y "]), st.just(("[ping()]", Call("ping", "{}"))))))
def test_calls_among_words(pieces: list[str | tuple[str, Call]]) -> None:
    check_calls_among_words(parser, pieces)
