"""Texts made of markers, halves of markers and words: no parser raises, cuts change nothing, and arguments are JSON,
unless their call was cut off."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.frontend.parsers.context import ToolParserFactory
from dynamo.frontend.parsers.tools import TOOL_PARSERS
from dynamo.frontend.parsers.tools.dsml import DSML
from dynamo.frontend.parsers.tools.minimax_m3 import PREFIX
from tests.frontend.parsers.golden import parse
from tests.frontend.parsers.offered import FUNCTIONS

MAX_EXAMPLES = 100
WORDS = [
    "ping",
    "run",
    "code",
    "options",
    "é🗼",
    " ",
    "\n",
    "\n\n",
    '"',
    "'",
    "\\",
    "<",
    ">",
    "null",
    "1",
    "-2.5",
    "true",
]
VALUES = ['{"a": [1]}', "[1, 'x']", "{", "}", "[", "]", ",", ":", "x" * 600]
INVOKES = ['<invoke name="run">', "</invoke>", '<parameter name="options">', '<parameter name="code">', "</parameter>"]
ATEM_INVOKES = [tag.replace("invoke", "atem:invoke").replace("parameter", "atem:parameter") for tag in INVOKES]
DSML_INVOKES = [tag.replace("invoke", f"{DSML}invoke").replace("parameter", f"{DSML}parameter") for tag in INVOKES]

M3_TAGS = ["tool_call", "/tool_call", 'invoke name="run"', "/invoke", "code", "/code", "options", "/options", "item"]
GLM_TAGS = ["<arg_key>code", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
DSML_TAGS = [f'<{DSML}parameter name="a" string="false">', f'<{DSML}parameter name="a" string="true">', *DSML_INVOKES]

FAMILIES = {
    "qwen3_coder": ["<tool_call>", "</tool_call>", "<function=run>", "</function>", "<parameter=code>", "</parameter>"],
    "minimax_m2": ["<minimax:tool_call>", "</minimax:tool_call>", *INVOKES],
    "minimax_m3": [f"{PREFIX}<{tag}>" for tag in M3_TAGS],
    "deepseek_v4": [f"<{DSML}tool_calls>", f"</{DSML}tool_calls>", *DSML_TAGS],
    "glm47": ["<tool_call>run", "</tool_call>", *GLM_TAGS],
    "gemma4": ["<|tool_call>", "call:run{", "<tool_call|>", '<|"|>', "code:", "options:{", "a:"],
    "muse": ["<atem:function_calls>", "<|start|>", " to=functions", "<|message|>", "<|eom|>", *ATEM_INVOKES],
    "inkling": [
        "<|message_model|>",
        '<|content_invoke_tool_json|>{"name": "run", "args": {}}',
        '<|content_invoke_tool_json|>{"name": "run"',
        "<|end_message|>",
        "<|content_text|>",
        "<|content_thinking|>",
    ],
}
WRITES_JSON = {"inkling"}  # its arguments are the model's own, with or without faults


def texts(markers: list[str]) -> st.SearchStrategy[str]:
    halves = st.sampled_from(markers).flatmap(
        lambda marker: st.integers(1, len(marker) - 1).map(lambda length: marker[:length])
    )
    pieces = st.one_of(st.sampled_from(markers), st.sampled_from(markers), halves, st.sampled_from(WORDS + VALUES))
    return st.lists(pieces, max_size=16).map("".join)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=MAX_EXAMPLES, deadline=None)
@given(data=st.data())
def test_any_text(family: str, data: st.DataObject) -> None:
    text = data.draw(texts(FAMILIES[family]))
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    factory: ToolParserFactory = TOOL_PARSERS[family]
    message = parse(factory(FUNCTIONS), [text])
    assert parse(factory(FUNCTIONS), pieces) == message
    assert parse(factory(FUNCTIONS), list(text)) == message
    if family not in WRITES_JSON:
        assert all(isinstance(json.loads(call.arguments), dict) for call in message.calls[:-1])
