"""Calls that are JSON objects: what every family makes of them, and however they are cut."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from dynamo.frontend.parsers.marked import MAX_SPACE
from dynamo.frontend.parsers.parts import CallArguments, CallStart, Parser
from dynamo.frontend.parsers.registry import tool_parser
from tests.frontend.parsers.golden import Call, Golden, check_golden, golden
from tests.frontend.parsers.offered import FUNCTIONS
from tests.frontend.parsers.tool_texts import any_of, check_calls_among_words, check_scraps, scraps


class Wrapping(Struct, frozen=True):
    """How a family marks calls: `{begin}{call}{between}{call}{end}`."""

    begin: str
    end: str
    between: str

    def __call__(self, *calls: str) -> str:
        return self.begin + self.between.join(calls) + self.end


HERMES = Wrapping("<tool_call>\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n")
FAMILIES = {
    "hermes": HERMES,
    "qwen25": HERMES,
    "qwen3": HERMES,
    "jamba": Wrapping("<tool_calls>[", "]</tool_calls>", ", "),
    "nemotron_deci": Wrapping("<TOOLCALL>[", "]</TOOLCALL>", ", "),
    "phi4": Wrapping("functools[", "]", ","),
    "llama3_json": Wrapping("<|python_tag|>", "", "; "),
    "mistral": Wrapping("[TOOL_CALLS] [", "]", ", "),
    "default": Wrapping("<TOOLCALL>", "</TOOLCALL>", ";"),
}
MARKERS = {
    "hermes": ["<tool_call>", "</tool_call>"],
    "jamba": ["<tool_calls>", "</tool_calls>"],
    "nemotron_deci": ["<TOOLCALL>", "</TOOLCALL>"],
    "phi4": ["functools["],
    "llama3_json": ["<|python_tag|>"],
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
}

WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
PARIS = Call("get_weather", {"city": "Paris", "days": 3})
PING = Call("ping", {})


def parser(family: str) -> Parser:
    return tool_parser(family)(FUNCTIONS)


def calls_of(wrap: Wrapping) -> list[Golden]:
    return [
        golden("one call", wrap(WEATHER), "", PARIS),
        golden("two calls", wrap(WEATHER, '{"name": "ping", "arguments": {}}'), "", PARIS, PING),
        golden("text before", "Let me look.\n" + wrap(WEATHER), "Let me look.\n", PARIS),
        golden("space before", " \n" + wrap(WEATHER) + "\n ", "", PARIS),
        golden("text after", wrap(WEATHER) + "\n So be it. ", "\n So be it. ", PARIS),
        golden("text between", wrap(WEATHER) + " and " + wrap(WEATHER), " and ", PARIS, PARIS),
        golden("parameters", wrap('{"name": "ping", "parameters": {"a": 1}}'), "", Call("ping", {"a": 1})),
        golden("arguments first", wrap('{"arguments": {"name": "x"}, "name": "run"}'), "", Call("run", {"name": "x"})),
        golden("no arguments", wrap('{"name": "ping"}'), "", PING),
        golden("null arguments", wrap('{"name": "ping", "arguments": null}'), "", PING),
        golden("an empty string", wrap('{"name": "ping", "arguments": ""}'), "", PING),
        golden("a name that was not offered", wrap('{"name": "nope", "arguments": {}}'), "", Call("nope", {})),
        golden(
            "a list for arguments",
            wrap('{"name": "ping", "arguments": [1, {"a": "]"}]}'),
            "",
            Call("ping", [1, {"a": "]"}]),
        ),
        golden("a number for arguments", wrap('{"name": "ping", "arguments": 12}'), "", Call("ping", 12)),
        golden(
            "arguments in a string",
            wrap('{"name": "run", "arguments": "{\\"code\\": \\"\\\\u00e9 \\\\n\\", \\"😀\\": \\"\\ud83d\\ude00\\"}"}'),
            "",
            Call("run", {"code": "é \n", "😀": "😀"}),
        ),
        golden(
            "half a surrogate pair",
            wrap('{"name": "run", "arguments": "\\ud83d \\ude00 \\uZZZZ \\x \\/"}'),
            "",
            Call("run", "\ufffd \ufffd \\uZZZZ \\x /"),
        ),
        golden(
            "nested, escapes and unicode",
            wrap('{"name": "r\\u0075n", "arguments": {"a": {"b": [[], {}, "}\\\\"]}, "\\ud83d\\ude00": "日本 \\" ]"}}'),
            "",
            Call("run", {"a": {"b": [[], {}, "}\\"]}, "😀": '日本 " ]'}),
        ),
        golden(
            "markers in strings",
            wrap('{"name": "run", "arguments": {"code": "<tool_call>{}</tool_call></TOOLCALL>[TOOL_CALLS];"}}'),
            "",
            Call("run", {"code": "<tool_call>{}</tool_call></TOOLCALL>[TOOL_CALLS];"}),
        ),
        golden(
            "line breaks in strings",
            wrap('{\n "name": "run",\n "arguments": {\n\t"code": "a\n\tb\\\\\n\\"\n"\n}\n}'),
            "",
            Call("run", {"code": 'a\n\tb\\\n"\n'}),
        ),
        golden(
            "an id", wrap('{"id": "abcdefghi", "name": "ping", "arguments": {}}'), "", Call("ping", {}, "abcdefghi")
        ),
        golden("as in a request", wrap(f'{{"type": "function", "function": {WEATHER}, "id": 1}}'), "", PARIS),
        golden(
            "more keys", wrap('{"why": {"name": "x"}, "name": "ping", "n": [1], "arguments": {}, "z": null}'), "", PING
        ),
    ]


def mistakes_of(wrap: Wrapping) -> list[Golden]:
    return [
        golden("never closed", wrap.begin + WEATHER, "", PARIS),
        golden("cut in a string", wrap.begin + WEATHER.partition("is")[0], "", Call("get_weather", '{"city": "Par')),
        golden("cut after the name", wrap.begin + '{"name": "ping", "arg', "", Call("ping", "")),
        golden("a brace too few", wrap(WEATHER[:-1]) + "x", "x", PARIS),
        golden("a brace too many", wrap(WEATHER + "}") + " x", " x", PARIS),
        golden("nothing", wrap("") + "x", "x"),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", range(len(calls_of(HERMES))))
def test_calls(family: str, case: int) -> None:
    check_golden(partial(parser, family), calls_of(FAMILIES[family])[case])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", range(len(mistakes_of(HERMES))))
def test_mistakes(family: str, case: int) -> None:
    check_golden(partial(parser, family), mistakes_of(FAMILIES[family])[case])


UNMARKED = [
    golden("one call", WEATHER, "", PARIS),
    golden("space around", f"\n {WEATHER}\n", "", PARIS),
    golden("a list", f"[\n{WEATHER}, {WEATHER}\n]", "", PARIS, PARIS),
    golden("with semicolons", f"{WEATHER}; {WEATHER};", "", PARIS, PARIS),
    golden("arguments first", '{"arguments": {}, "name": "ping"} x', " x", PING),
    golden("not offered", ' {"name": "nope", "arguments": {}}', ' {"name": "nope", "arguments": {}}'),
    golden("no arguments", '{"name": "ping"}', '{"name": "ping"}'),
    golden("another key", '{"name": "ping", "age": 3, "arguments": {}}', '{"name": "ping", "age": 3, "arguments": {}}'),
    golden("other JSON", '[1, {"a": "b"}]', '[1, {"a": "b"}]'),
    golden("in prose", f"Such as {WEATHER}", f"Such as {WEATHER}"),
    golden("a second not offered", f'{WEATHER}, {{"a": 1}}', ', {"a": 1}', PARIS),
    golden("cut", ' [{"name": "pi', ' [{"name": "pi'),
    golden("only space", " \n", " \n"),
    golden("nothing", ""),
    golden("braces", "{} {", "{} {"),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", UNMARKED, ids=lambda case: case.name)
def test_an_object_that_begins_the_answer(family: str, case: Golden) -> None:
    check_golden(partial(parser, family), case)


MORE_OF_HERMES = [
    golden("markers only", "<tool_call></tool_call>"),
    golden("no call", "a <tool_call>hello</tool_call> there", "a hello there"),
    golden("a marker too many", "stray </tool_call> end", "stray  end"),
    golden("two begins", f"<tool_call><tool_call>{WEATHER}</tool_call>", "", PARIS),
    golden(
        "cut in the arguments",
        '<tool_call>{"name": "run", "arguments": {"a": 1</tool_call>x',
        "x",
        Call("run", '{"a": 1'),
    ),
    golden("cut before a value", '<tool_call>{"name": "run", "arguments":</tool_call>x', "x", Call("run", "")),
    golden("cut before the name's", '<tool_call>{"name":</tool_call>x', '{"name":x'),
    golden(
        "a name that is none", '<tool_call>{"name": 1, "arguments": {}}</tool_call>', '{"name": 1, "arguments": {}}'
    ),
    golden("no name", '<tool_call>{"a": "</tool_call>"}</tool_call> x', '{"a": ""} x'),
    golden("cut in the name", '<tool_call>\n{"name": "pi', '\n{"name": "pi'),
    golden("an empty name", '<tool_call>{"name": ""}</tool_call>', '{"name": ""}'),
    golden("as Python writes it", "<tool_call>{'name': 'ping'}</tool_call>", "{'name': 'ping'}"),
    golden("a beginning of a marker", "a <tool_", "a <tool_"),
    golden("other tags", "a <tool_calls> < b", "a <tool_calls> < b"),
    golden("nested too deep", '<tool_call>{"name": "run", "arguments": ' + "[" * 300, "[" * 43, Call("run", "[" * 257)),
]


@pytest.mark.parametrize("case", MORE_OF_HERMES, ids=lambda case: case.name)
def test_more_of_hermes(case: Golden) -> None:
    check_golden(partial(parser, "hermes"), case)


def test_default_reads_the_other_formats() -> None:
    for wrap in FAMILIES.values():
        check_golden(partial(parser, "default"), golden("", "Hi " + wrap(WEATHER), "Hi ", PARIS))


def test_arguments_go_out_as_they_come() -> None:
    hermes = parser("hermes")
    pieces = ["<tool_call>", '{"name": "run"', ', "arguments": {"co', 'de": "a', " b", '"}', "}</tool_call>"]
    assert [hermes.push(piece) for piece in pieces] == [
        [],
        [CallStart("run")],
        [CallArguments('{"co')],
        [CallArguments('de": "a')],
        [CallArguments(" b")],
        [CallArguments('"}')],
        [],
    ]


def test_content_is_held_back_no_longer_than_it_may_be_a_marker() -> None:
    hermes = parser("hermes")
    assert [hermes.push(piece) for piece in ["a", " <to", "o", " b <", "", "i>"]] == [
        ["a"],
        [" "],
        [],
        ["<too b "],
        [],
        ["<i>"],
    ]


def test_an_answer_in_json_goes_out_once_it_is_no_call() -> None:
    llama = parser("llama3_json")
    assert [llama.push(piece) for piece in ["{", '"city"', ": 1"]] == [[], ['{"city"'], [": 1"]]


def test_more_than_a_call_may_hold_is_content() -> None:
    text = '<tool_call>{"arguments": "' + "x" * (1 << 20)
    assert parser("hermes").push(text) == [text.removeprefix("<tool_call>")]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_scraps(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(sorted(MARKERS)))
    check_scraps(partial(parser, family), data.draw(scraps(MARKERS[family])), any_of(MARKERS[family]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_calls_among_words(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(sorted(MARKERS)))
    call = (FAMILIES[family](WEATHER), Call("get_weather", '{"city": "Paris", "days": 3}'))
    words = st.sampled_from(["a", " é😀 ", "\n", "word", " x < y ", "1. "])
    check_calls_among_words(partial(parser, family), data.draw(st.lists(st.one_of(words, st.just(call)), max_size=8)))


@pytest.mark.parametrize("begin", ["", "<tool_call>", '<tool_call>{"name": "ping"}'])
def test_more_space_than_may_wait_is_content(begin: str) -> None:
    hermes = parser("hermes")
    hermes.push(begin)
    assert hermes.push(" " * (MAX_SPACE + 1)) == [" " * (MAX_SPACE + 1)]
    assert hermes.push(" ") == [" "]
