"""Messages of gpt-oss, read by the reasoning parser, by the tool-call parser, and by both in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_harmony import (
    HarmonyEncoding,
    HarmonyEncodingName,
    HarmonyError,
    Message,
    Role,
    load_harmony_encoding,
)

from dynamo.frontend.parsers.context import ReasoningContext
from dynamo.frontend.parsers.framed import MAX_HEADER
from dynamo.frontend.parsers.marked import MAX_SPACE
from dynamo.frontend.parsers.parts import Parser, Part
from dynamo.frontend.parsers.registry import reasoning_parser, tool_parser
from tests.frontend.parsers.golden import Call, Golden, check_cuts, check_golden, golden, parse
from tests.frontend.parsers.offered import FUNCTIONS

START, END, CALLED = "<|start|>assistant", "<|end|>", "<|call|>"
ANALYSIS, FINAL, PREAMBLE = (f"<|channel|>{name}<|message|>" for name in ("analysis", "final", "commentary"))
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}'
PARIS = Call("get_weather", {"city": "Paris"})
ENDLESS = " " * (MAX_SPACE + 1)


class InARow:
    def __init__(self, *stages: Parser) -> None:
        self._stages = stages

    def push(self, text: str) -> list[Part]:
        return self._pass([text], self._stages)

    def flush(self) -> list[Part]:
        parts: list[Part] = []
        for at, stage in enumerate(self._stages):
            parts += self._pass(stage.flush(), self._stages[at + 1 :])
        return parts

    def _pass(self, parts: list[Part], stages: Sequence[Parser]) -> list[Part]:
        for stage in stages:
            parts = list(chain.from_iterable(stage.push(part) if isinstance(part, str) else [part] for part in parts))
        return parts


def reasoning(prompt_end: str = "") -> Parser:
    return reasoning_parser("gpt_oss")(ReasoningContext(prompt_end))


def tools() -> Parser:
    return tool_parser("harmony")(FUNCTIONS)


def both(prompt_end: str = "<|start|>assistant") -> Parser:
    return InARow(reasoning(prompt_end), tools())


TEXTS = [
    golden("thought and answer", f"{ANALYSIS}a <b{END}{START}{FINAL}c < d", "c < d", reasoning="a <b"),
    golden("with the last marker", f"{ANALYSIS}a\n{END}{START}{FINAL}\nc<|return|>", "\nc", reasoning="a\n"),
    golden("thought alone", f"{ANALYSIS}a", reasoning="a"),
    golden("an answer alone", f"{FINAL}思考 🤔", "思考 🤔"),
    golden("no message at all", "plain text", "plain text"),
    golden("nothing", ""),
    golden("begins with a marker for the role", f"{START}{ANALYSIS}a{END}{START}{FINAL}b", "b", reasoning="a"),
    golden("a preamble", f"{PREAMBLE}pre{END}{START}{FINAL}c", "pre\nc"),
    golden("thought twice", f"{ANALYSIS}a{END}{START}{ANALYSIS}b{END}{START}{FINAL}c", "c", reasoning="a\nb"),
    golden("an empty message", f"{ANALYSIS}{END}{START}{FINAL}c", "c"),
    golden("no end marker", f"{ANALYSIS}a{START}{FINAL}b", "b", reasoning="a"),
    golden("no role marker", f"{ANALYSIS}a{END}{FINAL}b", "b", reasoning="a"),
    golden("space between messages", f"{ANALYSIS}a{END}\n {START}{FINAL}b\n", "b\n", reasoning="a"),
    golden("endless space", f"{FINAL}a{END}{ENDLESS}{FINAL}b", f"a{ENDLESS}\nb"),
    golden("endless space at the beginning", f"{ENDLESS}to=", f"{ENDLESS}to="),
    golden("text after a message", f"{ANALYSIS}a{END} b", " b", reasoning="a"),
    golden("a constrained answer", '<|channel|>final <|constrain|>json<|message|>{"a":1}', '{"a":1}'),
    golden("no channel", f"{ANALYSIS}a{END}{START}<|message|>x", "x", reasoning="a"),
    golden("an unknown channel", f"<|channel|>other<|message|>x{END}", "x"),
    golden("ends in a header", f"{ANALYSIS}a{END}{START}<|channel|>comm", reasoning="a"),
    golden("a header that starts over", f"{START}<|channel|>fi{START}{FINAL}a", "a"),
    golden("a header without text", f"{START}<|channel|>final{END}{START}{FINAL}a", "a"),
    golden("a stray marker", f"{FINAL}a<|message|>b", "ab"),
    golden("ends in a marker", f"{FINAL}a<|en", "a<|en"),
    golden("an endless header", f"{START}{'x' * MAX_HEADER}", f"{START}{'x' * MAX_HEADER}"),
    golden("no header", " to be or not", " to be or not"),
    golden("half a header", " to=", " to="),
    golden("space", " \n", " \n"),
    golden("a built-in tool", f"<|channel|>analysis to=python code<|message|>print(1){CALLED}", reasoning="print(1)"),
    golden("another", f"<|channel|>commentary to=browser.search<|message|>{{}}{CALLED}", reasoning="{}"),
]
CALLS = [
    golden("a call", f"{ANALYSIS}a{END}{START}{CALL}{CALLED}", "", PARIS, reasoning="a"),
    golden("cut by its end token", f"{CALL}", "", PARIS),
    golden("cut in its arguments", CALL[:-4], "", Call("get_weather", '{"city": "Par')),
    golden("after a preamble", f"{PREAMBLE}I look.{END}{START}{CALL}", "I look.", PARIS),
    golden("and an answer", f"{CALL}{CALLED}{START}{FINAL}done", "done", PARIS),
    golden("between answers", f"{PREAMBLE}a{END}{START}{CALL}{CALLED}{START}{FINAL}b", "a\nb", PARIS),
    golden("two calls", f"{CALL}{CALLED}{START}{CALL}{CALLED}", "", PARIS, PARIS),
    golden("no end marker", f"{CALL}{START}{CALL}", "", PARIS, PARIS),
    golden(
        "no type", '<|channel|>commentary to=functions.run<|message|>{"code": "<b>"}', "", Call("run", {"code": "<b>"})
    ),
    golden("a bare type", "<|channel|>commentary to=functions.run json<|message|>{}", "", Call("run", {})),
    golden("no arguments", f"<|channel|>commentary to=functions.ping<|message|>{CALLED}", "", Call("ping", {})),
    golden("no arguments at the end", "<|channel|>commentary to=functions.ping<|message|>", "", Call("ping", {})),
    golden("on another channel", "<|channel|>analysis to=functions.ping<|message|>{}", "", Call("ping", {})),
    golden("without a namespace", "<|channel|>commentary to=ping <|constrain|>json<|message|>{}", "", Call("ping", {})),
    golden("no JSON", f"<|channel|>commentary to=functions.ping<|message|>oh{CALLED}", "", Call("ping", "oh")),
    golden(
        "recipient first", f"{START} to=functions.ping<|channel|>commentary json<|message|>{{}}", "", Call("ping", {})
    ),
    golden("recipient at once", " to=functions.ping<|channel|>commentary<|message|>{}", "", Call("ping", {})),
]
VERBATIM = [
    golden("a call", f"{ANALYSIS}a{END}{START}{CALL}{CALLED}", f"{CALL}{CALLED}", reasoning="a"),
    golden("cut by its end token", CALL, f"{CALL}{CALLED}"),
    golden(
        "recipient first",
        f" to=functions.ping<|channel|>commentary<|message|>{{}}{END}",
        f"{START} to=functions.ping<|channel|>commentary<|message|>{{}}{CALLED}",
    ),
]


@pytest.mark.parametrize("parser", [reasoning, tools, both])
@pytest.mark.parametrize("case", TEXTS, ids=lambda case: case.name)
def test_channels_tell_thought_from_answers(parser: Callable[[], Parser], case: Golden) -> None:
    check_golden(parser, case)


@pytest.mark.parametrize("parser", [tools, both])
@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.name)
def test_a_message_to_a_function_is_a_call(parser: Callable[[], Parser], case: Golden) -> None:
    check_golden(parser, case)


@pytest.mark.parametrize("case", VERBATIM, ids=lambda case: case.name)
def test_the_reasoning_parser_passes_calls_on(case: Golden) -> None:
    check_golden(reasoning, case)


@pytest.mark.parametrize(
    ("prompt_end", "case"),
    [
        (f"{START}{ANALYSIS}", golden("in thought", f"a{END}{START}{FINAL}b", "b", reasoning="a")),
        (f"{START}<|channel|>analysis", golden("in a header", f"<|message|>a{END}{START}{FINAL}b", "b", reasoning="a")),
        (
            f"{START} to=functions.ping",
            golden("for a function", "<|channel|>commentary<|message|>{}", "", Call("ping", {})),
        ),
        (f"{START}{FINAL}", golden("in an answer", "a", "a")),
        (f"<|start|>user<|message|>to=x{END}{START}", golden("after a user", f"{ANALYSIS}a", reasoning="a")),
    ],
)
def test_the_prompt_may_begin_a_message(prompt_end: str, case: Golden) -> None:
    check_golden(lambda: both(prompt_end), case)


PIECES = [START, ANALYSIS, FINAL, CALL, END, CALLED, "<|return|>", "<|channel|>", "<|message|>", " to=", "<|", " ", "a"]


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=8).map("".join))
def test_cuts_do_not_matter(text: str) -> None:
    for parser in (reasoning, tools, both):
        check_cuts(parser, text, parse(parser(), [text]))


# ---- messages as the library of the model's authors writes them


@pytest.fixture(scope="module")
def encoding() -> HarmonyEncoding:
    try:
        return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    except HarmonyError as error:
        pytest.skip(f"the vocabulary of gpt-oss can be neither found in TIKTOKEN_ENCODINGS_BASE nor loaded: {error}")


WRITTEN = [
    ([("analysis", "Hm.", None), ("final", "Yes.", None)], golden("", "", "Yes.", reasoning="Hm.")),
    (
        [
            ("analysis", "Hm.", None),
            ("commentary", "I look.", None),
            ("commentary", '{"city": "Paris"}', "get_weather"),
        ],
        golden("", "", "I look.", PARIS, reasoning="Hm."),
    ),
]


@pytest.mark.parametrize(("messages", "wanted"), WRITTEN)
def test_messages_of_the_authors_library_are_read(
    encoding: HarmonyEncoding, messages: list[tuple[str, str, str | None]], wanted: Golden
) -> None:
    text = "".join(encoding.decode(encoding.render(_message(*each))) for each in messages)
    check_golden(both, Golden("", text.removeprefix(START), wanted.message))


def _message(channel: str, text: str, function: str | None) -> Message:
    message = Message.from_role_and_content(Role.ASSISTANT, text).with_channel(channel)
    if function is None:
        return message
    return message.with_recipient(f"functions.{function}").with_content_type("<|constrain|>json")
