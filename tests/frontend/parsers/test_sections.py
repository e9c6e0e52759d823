"""Thought of models that write in sections or in messages with a recipient."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend.parsers.context import ReasoningContext
from dynamo.frontend.parsers.parts import Parser
from dynamo.frontend.parsers.registry import reasoning_parser
from tests.frontend.parsers.golden import Golden, check_cuts, check_golden, golden, parse

THINK, THOUGHT = "<|open|>think<|sep|>", "<|close|>think<|sep|>"
RESPONSE, ANSWERED = "<|open|>response<|sep|>", "<|close|>response<|sep|>"
TOOLS = "<|open|>tools<|sep|>call<|close|>tools<|sep|>"
TEXT, THINKING, OVER = "<|content_text|>", "<|content_thinking|>", "<|end_message|>"
INVOKE = "<|content_invoke_tool_json|>{}<|end_message|>"
SELF, USER = " to=self<|message|>", " to=user<|message|>"
NEXT = "<|eom|><|start|>assistant"
CALL = '<atem:invoke name="f"></atem:invoke>'

CASES = {
    "kimi_k3": [
        golden(
            "all", f"{THINK}a{THOUGHT}{RESPONSE}b{ANSWERED}<|close|>message<|sep|><|end_of_msg|>", "b", reasoning="a"
        ),
        golden("never closed", f"{THINK}a < b", reasoning="a < b"),
        golden("closed by an answer", f"{THINK}a{RESPONSE}b", "b", reasoning="a"),
        golden("calls", f"{THINK}a{THOUGHT}{TOOLS}", TOOLS, reasoning="a"),
        golden("closed by calls", f"{THINK}a{TOOLS}b", f"{TOOLS}b", reasoning="a"),
        golden("calls cut short", "<|open|>tools<|sep|>call<|cl", "<|open|>tools<|sep|>call<|cl"),
        golden("plain", "plain <|op", "plain <|op"),
    ],
    "inkling": [
        golden("all", f"<|message_model|>{THINKING}a\n{OVER}<|message_model|>{TEXT}b{OVER}", "b", reasoning="a\n"),
        golden("no end", f"{THINKING}a{TEXT}b{THINKING}c", "b", reasoning="ac"),
        golden("calls", f"{THINKING}a{OVER}<|message_model|>{INVOKE}", INVOKE, reasoning="a"),
        golden("plain", "plain text", "plain text"),
    ],
    "muse": [
        golden("all", f"{SELF}a < b{NEXT}{USER}c<|eot|>", "c", reasoning="a < b"),
        golden("thought twice", f"{SELF}a{NEXT}{SELF}b{NEXT}{USER}c<|eot|>", "c", reasoning="a\nb"),
        golden("thought alone", f"{SELF}a", reasoning="a"),
        golden("an answer alone", f"{USER}a<|eom|>b", "ab"),
        golden("no recipient", f"<|start|>assistant{SELF}a{NEXT}<|message|>b", "b", reasoning="a"),
        golden("no end marker", f"{SELF}a<|start|>assistant{USER}b", "b", reasoning="a"),
        golden("a call", f"{SELF}a{NEXT} to=f<|message|>{CALL}<|eot|>", CALL, reasoning="a"),
        golden("plain", " to be or not", " to be or not"),
    ],
}
CASES["kimi-k3"] = CASES["kimi_k3"]
CASES["muse_glimmer"] = CASES["muse"]


def parser(family: str, prompt_end: str = "") -> Parser:
    return reasoning_parser(family)(ReasoningContext(prompt_end))


@pytest.mark.parametrize(("family", "case"), [(family, case) for family, cases in CASES.items() for case in cases])
def test_sections_tell_thought_from_answers(family: str, case: Golden) -> None:
    check_golden(lambda: parser(family), case)


@pytest.mark.parametrize(
    ("family", "prompt_end", "text"),
    [
        ("kimi_k3", THINK, f"a{THOUGHT}{RESPONSE}b{ANSWERED}"),
        ("inkling", f"<|message_model|>{THINKING}", f"a{OVER}{TEXT}b{OVER}"),
        ("muse", "<|start|>assistant to=self", f"<|message|>a{NEXT}{USER}b"),
        ("muse", f"<|start|>assistant{SELF}", f"a{NEXT}{USER}b"),
    ],
)
def test_the_prompt_may_begin_the_thought(family: str, prompt_end: str, text: str) -> None:
    check_golden(lambda: parser(family, prompt_end), golden("", text, "b", reasoning="a"))


@pytest.mark.parametrize("text", ["plain", "plain <|content", "{}" * 1000, f"{'x' * 1001}{OVER}"])
def test_an_answer_without_sections_is_content(text: str) -> None:
    content = text.removesuffix(OVER)
    check_golden(lambda: parser("inkling", "<|message_model|>"), golden("", text, content))


PIECES = [THINK, THOUGHT, RESPONSE, TOOLS, TEXT, THINKING, OVER, INVOKE, SELF, USER, NEXT, "<|", " ", "a"]


@settings(deadline=None)
@given(
    st.sampled_from(["kimi_k3", "inkling", "muse"]),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=8).map("".join),
)
def test_cuts_do_not_matter(family: str, text: str) -> None:
    check_cuts(lambda: parser(family), text, parse(parser(family), [text]))
