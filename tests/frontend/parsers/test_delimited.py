"""Reasoning with a marker before and after it: what is thought, whatever family and however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend.parsers.context import ReasoningContext
from dynamo.frontend.parsers.parts import Parser, Reasoning
from dynamo.frontend.parsers.registry import reasoning_parser
from tests.frontend.parsers.golden import Golden, check_cuts, check_golden, golden, parse

MARKED = ["basic", "glm45", "glm47", "kimi_k2", "nemotron_deci", "qwen3", "qwen3_coder", "deepseek_v4", "deepseek_v41"]
FORCED = [
    "deepseek_r1",
    "deepseek_v3_2",
    "kimi_k25",
    "minimax_m2",
    "nemotron3",
    "nemotron_v3",
    "nemotron_nano",
    "step3",
]
SWITCHED_OFF = ["deepseek_v4", *FORCED[:-1]]
ON_DEMAND = ["deepseek_v3", "deepseek_v3_1"]
OPEN = ReasoningContext(prompt_end="<|im_start|>assistant\n<think>\n")
CLOSED = ReasoningContext(prompt_end="<think>\n\n</think>\n\n")


def parser(family: str, context: ReasoningContext | None = None) -> Parser:
    return reasoning_parser(family)(context or ReasoningContext())


BLOCKS = [
    golden("a block", "<think>\na b\n</think>\n\nc d", "\n\nc d", reasoning="\na b\n"),
    golden("space before", "\n <think>a</think>b", "\n b", reasoning="a"),
    golden("two blocks", "<think>a</think>\n<think>b</think>c", "\nc", reasoning="ab"),
    golden("nested", "<think>a<think>b</think>c", "c", reasoning="a<think>b"),
    golden("empty", "<think></think>c", "c"),
    golden("never closed", "<think>a < b </thin", reasoning="a < b </thin"),
    golden("nothing after", "<think>思考 🤔</think>", reasoning="思考 🤔"),
    golden("twice closed", "<think>a</think></think> b", " b", reasoning="a"),
    golden(
        "markers in content",
        "<think>a</think>the tag <think> and </think>",
        "the tag <think> and </think>",
        reasoning="a",
    ),
    golden(
        "markers in a call", '<think>a</think><tool_call>{"x": "<think>"}', '<tool_call>{"x": "<think>"}', reasoning="a"
    ),
    golden("only a marker", "<think>"),
]
MARKED_GOLDENS = [
    *BLOCKS,
    golden("no thought", "a < b <thin k> ◁think▷", "a < b <thin k> ◁think▷"),
    golden("content before", "x<think>a</think>b", "xb", reasoning="a"),
    golden("closed, never opened", "a</think>b", "ab"),
    golden("a beginning of a marker", "a <thi", "a <thi"),
    golden("nothing", "", ""),
]
FORCED_GOLDENS = [
    *(case for case in BLOCKS if case.name != "space before"),
    golden("not opened", "a b</think>c d", "c d", reasoning="a b"),
    golden("no answer", "a b", reasoning="a b"),
    golden("opened late", "\n<think>a</think>b", "b", reasoning="\na"),
    golden("at once closed", "</think>b", "b"),
]


@pytest.mark.parametrize("family", MARKED)
@pytest.mark.parametrize("case", MARKED_GOLDENS, ids=lambda case: case.name)
def test_thought_is_between_markers(family: str, case: Golden) -> None:
    check_golden(lambda: parser(family), case)


@pytest.mark.parametrize("family", FORCED)
@pytest.mark.parametrize("case", FORCED_GOLDENS, ids=lambda case: case.name)
def test_thought_comes_first_without_a_marker(family: str, case: Golden) -> None:
    check_golden(lambda: parser(family), case)


@pytest.mark.parametrize("family", [*MARKED, *FORCED, *ON_DEMAND])
@pytest.mark.parametrize("case", FORCED_GOLDENS, ids=lambda case: case.name)
def test_a_prompt_may_open_the_thought(family: str, case: Golden) -> None:
    check_golden(lambda: parser(family, OPEN), case)


@pytest.mark.parametrize("family", [*MARKED, *FORCED, *ON_DEMAND])
def test_a_prompt_may_close_the_thought(family: str) -> None:
    text = "Use <think>a</think>, then go on."
    check_golden(lambda: parser(family, CLOSED), golden("after a closed block", text, text))


@pytest.mark.parametrize("family", SWITCHED_OFF)
def test_without_thinking_all_is_content(family: str) -> None:
    context = ReasoningContext(is_thinking=False)
    check_golden(lambda: parser(family, context), golden("off", "a</think>b", "a</think>b"))


@pytest.mark.parametrize("family", ON_DEMAND)
@pytest.mark.parametrize("case", FORCED_GOLDENS, ids=lambda case: case.name)
def test_some_think_only_when_asked(family: str, case: Golden) -> None:
    check_golden(lambda: parser(family), golden("not asked", case.text, case.text))
    check_golden(lambda: parser(family, ReasoningContext(is_thinking=True)), case)


CALLS = {
    "kimi_k25": "<|tool_calls_section_begin|>",
    "minimax_m2": "<minimax:tool_call>",
    "deepseek_v4": "<｜DSML｜tool_calls>",  # noqa: RUF001
    "nemotron3": "<tool_call>",
    "nemotron_v3": "<tool_call>",
}


@pytest.mark.parametrize(("family", "call"), CALLS.items())
def test_a_call_ends_the_thought(family: str, call: str) -> None:
    for case in (
        golden("not closed", f"<think>a{call}b", f"{call}b", reasoning="a"),
        golden("closed late", f"<think>a{call}b</think>c</think>", f"{call}bc</think>", reasoning="a"),
        golden("markers in its arguments", f"{call}<think>b", f"{call}<think>b"),
    )[: 3 if family == "deepseek_v4" else 2]:
        check_golden(lambda: parser(family), case)


def test_elsewhere_thought_may_speak_of_calls() -> None:
    check_golden(lambda: parser("qwen3"), golden("", "<think>a<tool_call>b", reasoning="a<tool_call>b"))


OTHER_MARKERS = [
    ("kimi", golden("a block", "◁think▷\na◁/think▷b ◁", "b ◁", reasoning="\na")),
    ("granite", golden("is", "Here is my thought process: a. Here is my response: b", " b", reasoning=" a. ")),
    ("granite", golden("'s", "Here's my thought process:\na\nHere's my response:\nb", "\nb", reasoning="\na\n")),
    ("granite", golden("none", "Here is my answer. He", "Here is my answer. He")),
    ("mistral", golden("a block", "[THINK]a[1][/THINK]b[TOOL_CALLS]", "b[TOOL_CALLS]", reasoning="a[1]")),
    ("minimax_m3", golden("a block", "<mm:think>a</mm:think>b", "b", reasoning="a")),
    ("minimax_m3", golden("no thought", "plain", "plain")),
    ("gemma4", golden("a block", "<|channel>thought\na\n<channel|>b", "b", reasoning="a\n")),
    ("gemma4", golden("without its label", "<|channel>though a<channel|>b", "b", reasoning="though a")),
    ("gemma4", golden("empty", "<|channel>thought\n<channel|>b", "b")),
    ("gemma-4", golden("cut in its label", "<|channel>thou")),
    ("minimax_append_think", golden("all", "a</think>b", "<think>a</think>b")),
    ("minimax_append_think", golden("nothing", "")),
]


@pytest.mark.parametrize(
    ("family", "case"), OTHER_MARKERS, ids=lambda each: each if isinstance(each, str) else each.name
)
def test_families_with_markers_of_their_own(family: str, case: Golden) -> None:
    check_golden(lambda: parser(family), case)


@pytest.mark.parametrize(
    ("family", "prompt_end", "closer"),
    [
        ("kimi", "◁think▷", "◁/think▷"),
        ("mistral", "[INST]hi[/INST][THINK]", "[/THINK]"),
        ("gemma4", "<|turn>model\n<|channel>thought\n", "<channel|>"),
        ("gemma4", "<|channel>", "<channel|>"),
        ("minimax_m3", "<mm:think>\n", "</mm:think>"),
    ],
)
def test_a_prompt_may_open_a_block_of_any_family(family: str, prompt_end: str, closer: str) -> None:
    context = ReasoningContext(prompt_end=prompt_end)
    check_golden(lambda: parser(family, context), golden("", f"a{closer}b", "b", reasoning="a"))


MARKERS = {
    "gemma4": ["<|channel>", "<channel|>", *("thought\n"[:length] for length in range(1, 9))],
    "granite": [
        "Here's my thought process:",
        "Here is my thought process:",
        "Here's my response:",
        "Here is my response:",
    ],
    "kimi": ["◁think▷", "◁/think▷"],
    "minimax_m3": ["<mm:think>", "</mm:think>"],
    "mistral": ["[THINK]", "[/THINK]"],
    "qwen3": ["<think>", "</think>"],
    **{family: ["<think>", "</think>"] for family in (*CALLS, "deepseek_r1", "deepseek_v3", "step3")},
}
CONTEXTS = st.builds(
    ReasoningContext,
    prompt_end=st.sampled_from(["", "<think>\n", "</think>", "◁think▷", "<|channel>thought\n"]),
    is_thinking=st.sampled_from([None, True, False]),
)


@st.composite
def marked_texts(draw: st.DrawFn) -> tuple[str, str]:
    family = draw(st.sampled_from(sorted(MARKERS)))
    markers = st.sampled_from([*MARKERS[family], *CALLS.values()])
    pieces = st.one_of(
        markers, markers.map(lambda marker: marker[:-1]), st.sampled_from([" ", "\n", "a", "<"]), st.text()
    )
    return family, "".join(draw(st.lists(pieces, max_size=8)))


@settings(deadline=None)
@given(marked_texts(), CONTEXTS)
def test_nothing_but_markers_is_lost_and_cuts_do_not_matter(
    family_and_text: tuple[str, str], context: ReasoningContext
) -> None:
    family, text = family_and_text
    reader = parser(family, context)
    shown = "".join(
        part.text if isinstance(part, Reasoning) else str(part) for part in [*reader.push(text), *reader.flush()]
    )
    assert is_without_markers(shown, text, MARKERS[family])
    check_cuts(lambda: parser(family, context), text, parse(parser(family, context), [text]))


def is_without_markers(shown: str, text: str, markers: list[str]) -> bool:
    """Whether `shown` is `text` but for some of the markers in it."""
    reached = {0}  # how much of `text` may stand for the part of `shown` that has been looked at
    for character in [*shown, ""]:
        waiting = list(reached)
        while waiting:
            at = waiting.pop()
            for end in (at + len(marker) for marker in markers if text.startswith(marker, at)):
                if end not in reached:
                    reached.add(end)
                    waiting.append(end)
        if character:
            reached = {at + 1 for at in reached if text[at : at + 1] == character}
    return len(text) in reached
