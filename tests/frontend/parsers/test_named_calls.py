"""Calls whose name stands before their arguments: Mistral, DeepSeek and Kimi K2."""

# ruff: noqa: RUF001 (the bars of DeepSeek's markers are full-width)

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend.parsers.parts import CallArguments, CallStart, Parser
from dynamo.frontend.parsers.registry import tool_parser
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS
from tests.frontend.parsers.tool_texts import any_of, check_calls_among_words, check_scraps, scraps

PARIS = Call("get_weather", {"city": "Paris", "days": 3})
CITY = '{"city": "Paris", "days": 3}'
ODD = '{"code": "</s> ``` {<|tool_call_end|>} [ARGS] \\ud83d\\ude00 \\" 日本", "options": {"a": [{}]}}'
ODD_CALL = Call("run", {"code": '</s> ``` {<|tool_call_end|>} [ARGS] 😀 " 日本', "options": {"a": [{}]}})
PING = Call("ping", {})


def parser(family: str) -> Parser:
    return tool_parser(family)(FUNCTIONS)


# --------------------------------------------------------------------------- Mistral

MISTRAL = [
    golden("with [ARGS]", f"[TOOL_CALLS]get_weather[ARGS]{CITY}", "", PARIS),
    golden("without", f"[TOOL_CALLS]get_weather{CITY}", "", PARIS),
    golden("space", f" [TOOL_CALLS] get_weather [ARGS] {CITY} ", "", PARIS),
    golden("an id", "[TOOL_CALLS]ping[CALL_ID]abc123DEF[ARGS]{}", "", Call("ping", {}, "abc123DEF")),
    golden("two", f"Hi[TOOL_CALLS]run[ARGS]{ODD}\n[TOOL_CALLS]ping{{}}", "Hi", ODD_CALL, PING),
    golden("not offered", "[TOOL_CALLS]nope{} so", " so", Call("nope", {})),
    golden("a list", '[TOOL_CALLS][{"name": "ping"}, {"name": "ping"}]', "", PING, PING),
    golden("an empty list", "[TOOL_CALLS][] x", "x"),
    golden("a marker too many", "a[TOOL_CALLS][TOOL_CALLS]ping{}", "a", PING),
    golden("no arguments", "[TOOL_CALLS]ping", "ping"),
    golden("no call", "[TOOL_CALLS]well, there is none", "well, there is none"),
    golden("a header without end", "[TOOL_CALLS]" + "x" * 600, "x" * 600),
    golden("cut in the arguments", '[TOOL_CALLS]run{"code": "a', "", Call("run", '{"code": "a')),
    golden("nothing", "[TOOL_CALLS]"),
]


@pytest.mark.parametrize("case", MISTRAL, ids=lambda case: case.name)
def test_mistral(case: Golden) -> None:
    check_golden(partial(parser, "mistral"), case)


# --------------------------------------------------------------------------- DeepSeek

BEGIN, END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def section(*calls: str) -> str:
    return f"<｜tool▁calls▁begin｜>{''.join(calls)}<｜tool▁calls▁end｜>"


def v3(name: str, arguments: str) -> str:
    return f"{BEGIN}function{SEPARATOR}{name}\n```json\n{arguments}\n```{END}"


def v3_1(name: str, arguments: str) -> str:
    return f"{BEGIN}{name}{SEPARATOR}{arguments}{END}"


DEEPSEEK = [
    golden("one of V3", section(v3("get_weather", CITY)), "", PARIS),
    golden("one of V3.1", section(v3_1("get_weather", CITY)), "", PARIS),
    golden(
        "both", "Hi.\n" + section(v3("run", ODD), "\n", v3_1("run", ODD)) + "\nbye", "Hi.\n\nbye", ODD_CALL, ODD_CALL
    ),
    golden("without a section", v3("ping", "{}"), "", PING),
    golden("a section without end", section(v3_1("ping", "{}"))[: -len("<｜tool▁calls▁end｜>")], "", PING),
    golden("space", f" {BEGIN} ping {SEPARATOR} {{}} {END} ", "", PING),
    golden("no fence", f"{BEGIN}function{SEPARATOR}ping\n{{}}{END}", "", PING),
    golden("no end", f"{BEGIN}function{SEPARATOR}ping\n```json\n{{}}\n``", "", PING),
    golden("no arguments", f"{BEGIN}ping{SEPARATOR}{END}x", "x", PING),
    golden("a function of that name", v3_1("function", "{}"), "", Call("function", {})),
    golden("no separator", section(f"{BEGIN}ping{END}") + "x", "pingx"),
    golden("no call", section("hello") + " x", "hello x"),
    golden("no header", section(BEGIN + END), ""),
    golden("no JSON", section(v3_1("nope", "x y")), "nopex y"),
    golden("cut in the header", f"a {BEGIN}function{SEPARATOR}get_", "a functionget_"),
    golden("cut in the arguments", f'{BEGIN}run{SEPARATOR}{{"a": [1{END} x', " x", Call("run", '{"a": [1')),
    golden("markers too many", f"a {END} b {SEPARATOR} c", "a  b  c"),
    golden("a list of arguments", v3_1("ping", "[1]"), "", Call("ping", [1])),
    golden("arguments in a string", v3_1("ping", '"{\\"a\\": 1}"'), "", Call("ping", {"a": 1})),
]


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v3_1"])
@pytest.mark.parametrize("case", DEEPSEEK, ids=lambda case: case.name)
def test_deepseek(family: str, case: Golden) -> None:
    check_golden(partial(parser, family), case)


# --------------------------------------------------------------------------- Kimi K2


def kimi(header: str, arguments: str) -> str:
    return f"<|tool_call_begin|>{header}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


def kimi_section(*calls: str, word: str = "calls") -> str:
    return f"<|tool_{word}_section_begin|>{''.join(calls)}<|tool_{word}_section_end|>"


KIMI_PARIS = Call("get_weather", {"city": "Paris", "days": 3}, "functions.get_weather:0")
KIMI_PING = Call("ping", {}, "functions.ping:1")
KIMI = [
    golden("one", kimi_section(kimi("functions.get_weather:0", CITY)), "", KIMI_PARIS),
    golden(
        "two",
        "Hi \n" + kimi_section(kimi("functions.get_weather:0", CITY), "\n", kimi("functions.ping:1", "{}")) + "\nbye",
        "Hi \n\nbye",
        KIMI_PARIS,
        KIMI_PING,
    ),
    golden("the other section", kimi_section(kimi("functions.ping:1", "{}"), word="call"), "", KIMI_PING),
    golden("no section", kimi("functions.ping:1", "{}"), "", KIMI_PING),
    golden("space", kimi_section(" ", kimi("\nfunctions.ping:1 ", " {} "), "\n"), "", KIMI_PING),
    golden("odd arguments", kimi("run:10", ODD), "", Call("run", ODD_CALL.arguments, "run:10")),
    golden("dots and colons", kimi("functions.a.b:c:2", "{}"), "", Call("a.b:c", {}, "functions.a.b:c:2")),
    golden("no number", kimi("functions.ping", "{}"), "", PING),
    golden("no arguments", kimi("functions.ping:1", ""), "", KIMI_PING),
    golden("no JSON", kimi("functions.ping:1", "oops") + "x", "x", Call("ping", "oops", "functions.ping:1")),
    golden("no end", kimi("functions.ping:1", "{}")[: -len("<|tool_call_end|>")], "", KIMI_PING),
    golden("no header", kimi_section(kimi("", "{}")), "{}"),
    golden("no call", kimi_section("hello") + " x", "hello x"),
    golden("nothing", kimi_section() + "z", "z"),
    golden("markers too many", "a <|tool_calls_section_end|> b<|tool_call_end|>", "a  b"),
    golden("cut in the header", "<|tool_call_begin|>functions.pi", "functions.pi"),
]


@pytest.mark.parametrize("family", ["kimi_k2", "kimi_k25"])
@pytest.mark.parametrize("case", KIMI, ids=lambda case: case.name)
def test_kimi(family: str, case: Golden) -> None:
    check_golden(partial(parser, family), case)


def test_arguments_go_out_as_they_come() -> None:
    deepseek = parser("deepseek_v3")
    pieces = [BEGIN, f"function{SEPARATOR}", "ru", "n\n```json", '\n{"co', 'de": "a', '"}', "\n```", END]
    assert [deepseek.push(piece) for piece in pieces] == [
        *[[]] * 4,
        [CallStart("run"), CallArguments('{"co')],
        [CallArguments('de": "a')],
        [CallArguments('"}')],
        *[[]] * 2,
    ]


# --------------------------------------------------------------------------- anything

MARKERS = {
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
    "deepseek_v3": [BEGIN, END, SEPARATOR, "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
    "kimi_k2": [
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        *[f"<|tool_{calls}_section_{edge}|>" for calls in ("calls", "call") for edge in ("begin", "end")],
    ],
}
CALLS = {
    "mistral": ("[TOOL_CALLS]ping[ARGS]{}", Call("ping", "{}")),
    "deepseek_v3": (section(v3("ping", "{}")), Call("ping", "{}")),
    "kimi_k2": (kimi_section(kimi("functions.ping:1", "{}")), Call("ping", "{}", "functions.ping:1")),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_scraps(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(sorted(MARKERS)))
    text = data.draw(
        scraps(MARKERS[family], ["function", "ping", "functions.ping:0", "{}", '{"a": "', "```json\n", "```"])
    )
    check_scraps(partial(parser, family), text, any_of(MARKERS[family]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_calls_among_words(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(sorted(MARKERS)))
    words = st.sampled_from(["a", " é😀 ", "\n", "word", " x < y ", "1. "])
    pieces = data.draw(st.lists(st.one_of(words, st.just(CALLS[family])), max_size=8))
    check_calls_among_words(partial(parser, family), pieces)
