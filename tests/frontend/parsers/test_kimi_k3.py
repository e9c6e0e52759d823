"""The tags of Kimi K3."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend.parsers.parts import CallArguments, CallStart, Parser
from dynamo.frontend.parsers.registry import tool_parser
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS
from tests.frontend.parsers.tool_texts import check_calls_among_words, check_scraps, scraps


def parser() -> Parser:
    return tool_parser("kimi_k3")(FUNCTIONS)


def tag(head: str) -> str:
    return f"<|open|>{head}<|sep|>"


def end(head: str) -> str:
    return f"<|close|>{head}<|sep|>"


def argument(key: str, kind: str, value: str) -> str:
    return tag(f'argument key="{key}" type="{kind}"') + value + end("argument")


def call(name: str, *arguments: str) -> str:
    return tag(f'call tool="{name}" index="1"') + "".join(arguments) + end("call")


def section(*calls: str) -> str:
    return tag("tools") + "".join(calls) + end("tools")


WEATHER = call("get_weather", argument("city", "string", 'Paris "é" \n\\ 😀'), argument("days", "number", " 3 "))
PARIS = Call("get_weather", {"city": 'Paris "é" \n\\ 😀', "days": 3})
PING = Call("ping", {})
CODE = tag('call tool="run"') + argument("code", "string", "a")
CODE_A = Call("run", {"code": "a"})

GOLDENS = [
    golden("one call", section(WEATHER), "", PARIS),
    golden(
        "a whole answer",
        f"{tag('response')}Hi \n{end('response')}{section(WEATHER, call('ping'))}{end('message')}<|end_of_msg|>",
        "Hi \n",
        PARIS,
        PING,
    ),
    golden("no section", WEATHER + "\n" + call("ping") + " bye", " bye", PARIS, PING),
    golden("a section without end", tag("tools") + WEATHER, "", PARIS),
    golden("space in tags", '<|open|> tools <|sep|><|open|> call tool="ping" <|sep|><|close|> call <|sep|>', "", PING),
    golden(
        "all as JSON",
        call("run", tag('json type="object"') + '{"code": "x"}' + end("json")),
        "",
        Call("run", {"code": "x"}),
    ),
    golden("escapes", call("a&amp;b&quot;", argument("k&amp;", "string", "&amp;")), "", Call('a&b"', {"k&": "&amp;"})),
    golden(
        "kinds",
        call(
            "run",
            argument("a", "object", '{"x": [1, "日本"]}'),
            argument("b", "null", "null"),
            argument("c", "boolean", "true"),
            argument("d", "number", "oops"),
            argument("e", "object", "{bad"),
            argument("f", "", "12"),
            argument("g", "number", "NaN"),
            tag('argument key="h"') + "12" + end("argument"),
        ),
        "",
        Call(
            "run",
            {
                "a": {"x": [1, "日本"]},
                "b": None,
                "c": True,
                "d": "oops",
                "e": "{bad",
                "f": 12,
                "g": "NaN",
                "h": "12",
            },
        ),
    ),
    golden(
        "tags in a string",
        call("run", argument("code", "string", "a <|close|>b <|sep|> <|open|>call <|x")),
        "",
        Call("run", {"code": "a <|close|>b <|sep|> <|open|>call <|x"}),
    ),
    golden("an argument without end", call("run", tag('argument key="code"') + "a"), "", Call("run", {"code": "a"})),
    golden("a call without end", tag('call tool="ping"') + call("ping"), "", PING, PING),
    golden("no name", call("") + call("x").replace('tool="x"', ""), ""),
    golden("other text in a section", section("junk", WEATHER) + "z", "junkz", PARIS),
    golden("unknown tags", f"a < b <| c {tag('foo')} d", f"a < b <| c {tag('foo')} d"),
    golden("tags too many", f"a {end('tools')} b {end('response')} c{end('argument')}", "a  b  c"),
    golden("a tag that never ends", "a <|open|>tools", "a "),
    golden("a tag that is too long", "<|open|>call " + "x" * 1100, "<|open|>call " + "x" * 1100),
    golden(
        "cut in a string", tag('call tool="run"') + tag('argument key="code"') + "ab", "", Call("run", '{"code": "ab')
    ),
    golden(
        "cut in a number", tag('call tool="run"') + tag('argument key="a" type="number"') + "1", "", Call("run", "")
    ),
    golden("cut after an argument", CODE, "", CODE_A),
    golden("cut in the end of a call", CODE + end("call")[:-4], "", CODE_A),
    golden("cut before the next argument", CODE + '<|open|>argument key="b', "", Call("run", '{"code": "a"')),
    golden("no tags", "Just text.", "Just text."),
]


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_golden(case: Golden) -> None:
    check_golden(parser, case)


def test_strings_go_out_as_they_come() -> None:
    k3 = parser()
    pieces = [tag('call tool="run" index="1"'), tag('argument key="code" type="string"'), "a\n", "b", end("argument")]
    assert [k3.push(piece) for piece in [*pieces, end("call")]] == [
        [CallStart("run")],
        [CallArguments('{"code": "')],
        [CallArguments("a\\n")],
        [CallArguments("b")],
        [CallArguments('"')],
        [CallArguments("}")],
    ]


MARKERS = [tag("tools"), end("tools"), tag("response"), end("call"), end("argument"), end("json"), "<|end_of_msg|>"]


TAG = r"<\|(?:open|close)\|>\s*(?:response|tools|message|think|call|argument|json)\b[^<]*<\|sep\|>|<\|end_of_msg\|>"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(scraps([*MARKERS, tag("argument"), tag("call")], [tag('argument key="a"'), tag("json"), tag("foo"), "1"]))
def test_scraps(text: str) -> None:
    check_scraps(parser, text + end("message"), TAG)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(scraps([*MARKERS, tag('call tool="ping"'), tag('argument key="a"'), tag('argument key="b" type="object"')]))
def test_scraps_of_calls(text: str) -> None:
    check_scraps(parser, call("ping") + text, TAG)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.sampled_from(["a", " é😀 ", "\n", " x < y "]), st.just((call("ping"), Call("ping", "{}")))))
)
def test_calls_among_words(pieces: list[str | tuple[str, Call]]) -> None:
    check_calls_among_words(parser, pieces)
