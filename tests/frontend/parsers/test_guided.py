from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend.parsers.marked import MAX_SPACE
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Parser, Part
from dynamo.frontend.parsers.tools.guided import named_call, required_calls
from tests.frontend.parsers.golden import Call, Golden, check_cuts, check_golden, golden, parse
from tests.frontend.parsers.offered import FUNCTIONS


def required() -> Parser:
    return required_calls(FUNCTIONS)


def named() -> Parser:
    return named_call("run")


ENDLESS = " " * (MAX_SPACE + 1)
REQUIRED = [
    golden(
        "one call", '[{"name":"get_weather","parameters":{"city":"Paris"}}]', "", Call("get_weather", {"city": "Paris"})
    ),
    golden(
        "two calls, spaced",
        ' [ {"name": "ping", "parameters": {}} ,\n {"name": "run", "parameters": {"code": "a]}\\""}} ] \n',
        "",
        Call("ping", "{}"),
        Call("run", {"code": 'a]}"'}),
    ),
    golden("parameters first", '[{"parameters":{"city":"é"},"name":"run"}]', "", Call("run", {"city": "é"})),
    golden("arguments are parameters", '[{"name":"run","arguments":{"a":1}}]', "", Call("run", {"a": 1})),
    golden("one call without an array", '{"name":"run","parameters":{"a":1}}', "", Call("run", {"a": 1})),
    golden("text behind", '[{"name":"ping","parameters":{}}] ok  [1]', " ok  [1]", Call("ping", {})),
    golden("text between", '[{"name":"ping","parameters":{}}, x {"a": 1}]', 'x {"a": 1}]', Call("ping", {})),
    golden("never closed", '[{"name":"run","parameters":{"a":"x y', "", Call("run", '{"a":"x y')),
    golden("cut before the name ends", '[{"name":"ru', '[{"name":"ru'),
    golden("nothing but a bracket", " [ ", " [ "),
    golden("no call", "[]", "[]"),
    golden("numbers", "[1,2]", "[1,2]"),
    golden("an object that is no call", '{"a": "x"} b', '{"a": "x"} b'),
    golden("no such function", '[{"name":"zz","parameters":{}}]', '[{"name":"zz","parameters":{}}]'),
    golden("no parameters", '[{"name":"ping"}]', '[{"name":"ping"}]'),
    golden("then no call", '[{"name":"ping","parameters":{}},{"name":"zz"}]', '{"name":"zz"}]', Call("ping", {})),
    golden("prose", " Hello [there] ", " Hello [there] "),
    golden("nothing", ""),
]

NAMED = [
    golden("arguments", '{"code": "}\\u00e9\\""}', "", Call("run", '{"code": "}\\u00e9\\""}')),
    golden("spaced", ' \n{"a": [1, {}]} \n', "", Call("run", '{"a": [1, {}]}')),
    golden("text behind", "{}  ok {}", "  ok {}", Call("run", "{}")),
    golden("endless space behind", "{}" + ENDLESS, ENDLESS, Call("run", "{}")),
    golden("never closed", '{"a": "x', "", Call("run", '{"a": "x')),
    golden("an array", "[1,2]", "[1,2]"),
    golden("prose", " Hello {}", " Hello {}"),
    golden("space", " \n", " \n"),
    golden("nothing", ""),
]


@pytest.mark.parametrize("case", REQUIRED, ids=lambda case: case.name)
def test_required_calls(case: Golden) -> None:
    check_golden(required, case)


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_the_arguments_of_a_named_function(case: Golden) -> None:
    check_golden(named, case)


@pytest.mark.parametrize(
    ("parser", "opening"), [(required(), '[{"name": "run", "parameters": {'), (named(), "{")], ids=["required", "named"]
)
def test_arguments_go_out_as_they_are_written(parser: Parser, opening: str) -> None:
    parts: list[Part] = parser.push(opening)
    assert parts == [CallStart("run"), CallArguments("{")]
    for piece in ('"code', '": ', '"a', " b", '"'):
        assert parser.push(piece) == [CallArguments(piece)]


class Shouting:
    """Stands for the parser of a model's own format."""

    def push(self, text: str) -> list[Part]:
        return [text.upper()]

    def flush(self) -> list[Part]:
        return ["!"]


@pytest.mark.parametrize("text", ["hello", "[TOOL_CALLS] x", ' [{"name": "zz", "arguments": {}}]', '[{"name'])
def test_another_parser_reads_what_does_not_begin_with_a_call(text: str) -> None:
    assert parse(required_calls(FUNCTIONS, Shouting()), list(text)).content == text.upper() + "!"
    if not text.startswith("{"):
        assert parse(named_call("run", Shouting()), list(text)).content == text.upper() + "!"


WRITTEN = st.lists(
    st.sampled_from(['[{"name":"run"', ',"parameters":', "{", "}", "[", "]", ",", '"a"', ":", "1", " ", "x", "\\", '"'])
).map("".join)


@settings(deadline=None, derandomize=True)
@given(WRITTEN)
def test_whatever_is_written_the_cut_does_not_matter(text: str) -> None:
    for factory in (required, named):
        check_cuts(factory, text, parse(factory(), [text]))
