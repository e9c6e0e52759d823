"""What the texts of each family are made of: its markers, the pieces of its calls, halves of all of them, and words."""

from __future__ import annotations

from hypothesis import strategies as st

from dynamo.frontend.parsers.reasoning.delimited_families import DELIMITED_FAMILIES
from dynamo.frontend.parsers.tools.dsml import DSML
from dynamo.frontend.parsers.tools.minimax_m3 import PREFIX

WORDS = ["ä1 ", "ä2 ", "ä3", "😀4", " ", "\n", "\n\n"]
"""None of them is part of a marker."""
LITTER = ["run", "code", "x < y", '"', "'", "\\", "<", ">", "|", "null", "1", "-2.5", "true", "x" * 300]
JSON_PIECES = ['{"a": [1, "\\ud83d\\ude00"]}', "[1, 'x']", "{", "}", "[", "]", ",", ":", '"{\\"a\\": 1}"']

_NAMED = ['{"name": "run", "arguments": {"a": 1}}', '{"name": "ping"', ', "arguments": ', '{"arguments": {}, "name"']
_INVOKES = ['<invoke name="run">', "</invoke>", '<parameter name="options">', '<parameter name="code">', "</parameter>"]
_ATEM = [tag.replace("invoke", "atem:invoke").replace("parameter", "atem:parameter") for tag in _INVOKES]
_DSML_TAGS = [
    *(tag.replace("invoke", f"{DSML}invoke").replace("parameter", f"{DSML}parameter") for tag in _INVOKES),
    f'<{DSML}parameter name="a" string="false">',
    f'<{DSML}parameter name="a" string="true">',
]
_M3_TAGS = ["tool_call", "/tool_call", 'invoke name="run"', "/invoke", "code", "/code", "options", "/options", "item"]
_KIMI_SECTIONS = [f"<|tool_calls_section_{edge}|>" for edge in ("begin", "end")]
_BAR, _BLOCK = "\uff5c", "\u2581"
_DEEPSEEK = [
    "<|tool_calls_begin|>",
    "<|tool_calls_end|>",
    "<|tool_call_begin|>function<|tool_sep|>run\n```json\n",
    "<|tool_call_begin|>run<|tool_sep|>",
    "```<|tool_call_end|>",
]

TOOL_FRAGMENTS: dict[str, list[str]] = {
    "hermes": ["<tool_call>", "</tool_call>", *_NAMED],
    "jamba": ["<tool_calls>[", "]</tool_calls>", *_NAMED],
    "nemotron_deci": ["<TOOLCALL>[", "]</TOOLCALL>", *_NAMED],
    "phi4": ["functools[", "]", *_NAMED],
    "llama3_json": ["<|python_tag|>", "; ", *_NAMED],
    "default": ["<TOOLCALL>", "<tool_call>", "</tool_calls>", "[TOOL_CALLS]", "functools[", *_NAMED],
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]abc", "run{", *_NAMED],
    "deepseek_v3": [piece.replace("|", _BAR).replace("_", _BLOCK) for piece in _DEEPSEEK],
    "kimi_k2": [
        *_KIMI_SECTIONS,
        "<|tool_call_begin|>functions.run:0<|tool_call_argument_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    ],
    "pythonic": [
        "[run(",
        "code='a'",
        "options={'a': [1, None]}",
        ", ",
        ")",
        ")]",
        "<|python_start|>",
        "<|python_end|>",
    ],
    "qwen3_coder": ["<tool_call>", "</tool_call>", "<function=run>", "</function>", "<parameter=code>", "</parameter>"],
    "minimax_m2": ["<minimax:tool_call>", "</minimax:tool_call>", *_INVOKES],
    "minimax_m3": [f"{PREFIX}<{tag}>" for tag in _M3_TAGS],
    "deepseek_v3_2": [f"<{DSML}function_calls>", f"</{DSML}function_calls>", *_DSML_TAGS],
    "deepseek_v4": [f"<{DSML}tool_calls>", f"</{DSML}tool_calls>", *_DSML_TAGS],
    "deepseek_v41": [f"<{DSML}tool_calls>", f"</{DSML}tool_calls>", *_DSML_TAGS],
    "glm45": ["<tool_call>run", "</tool_call>", "<arg_key>code", "</arg_key>", "<arg_value>", "</arg_value>"],
    "gemma4": ["<|tool_call>", "call:run{", "<tool_call|>", '<|"|>', "code:", "options:{", "a:"],
    "muse": ["<atem:function_calls>", "<|start|>", " to=functions", "<|message|>", "<|eom|>", *_ATEM],
    "inkling": [
        "<|message_model|>",
        '<|content_invoke_tool_json|>{"name": "run", "args": {}}',
        '<|content_invoke_tool_json|>{"name": "run"',
        "<|end_message|>",
        "<|content_text|>",
        "<|content_thinking|>",
    ],
    "harmony": [
        "<|start|>assistant",
        "<|channel|>analysis",
        "<|channel|>final",
        "<|channel|>commentary to=functions.run ",
        "<|constrain|>json",
        "<|message|>",
        "<|call|>",
        "<|end|>",
        '{"a": 1}',
    ],
    "kimi_k3": [
        "<|open|>response<|sep|>",
        "<|close|>response<|sep|>",
        "<|open|>tools<|sep|>",
        '<|open|>call tool="run" index="1"<|sep|>',
        '<|open|>argument key="code" type="string"<|sep|>',
        '<|open|>argument key="options" type="object"<|sep|>',
        "<|close|>argument<|sep|>",
        "<|close|>call<|sep|>",
        "<|close|>tools<|sep|>",
        "<|open|>think<|sep|>",
        "<|end_of_msg|>",
    ],
}
"""By one name of each tool-call parser."""

REASONING_FRAGMENTS: dict[str, list[str]] = {
    **{name: [*factory.args[0].openers, *factory.args[0].closers] for name, factory in DELIMITED_FAMILIES.items()},  # type: ignore[attr-defined]  # partials
    "gpt_oss": TOOL_FRAGMENTS["harmony"],
    "inkling": TOOL_FRAGMENTS["inkling"],
    "kimi_k3": TOOL_FRAGMENTS["kimi_k3"],
    "minimax_append_think": ["<think>", "</think>"],
    "muse": ["to=self<|message|>", "<|start|>assistant to=user<|message|>", "<|eom|>", *TOOL_FRAGMENTS["muse"]],
}
"""By name of the reasoning parser."""


def texts(fragments: list[str], others: list[str]) -> st.SearchStrategy[str]:
    """Of `fragments` mostly, and of `others`."""
    whole = st.sampled_from(fragments)
    half = whole.flatmap(lambda piece: st.integers(0, len(piece)).map(lambda length: piece[:length]))
    return st.lists(st.one_of(whole, whole, half, st.sampled_from(others)), max_size=16).map("".join)


def cuts(text: str) -> st.SearchStrategy[list[str]]:
    """The text in pieces, of which some may be empty."""
    places = st.lists(st.integers(0, len(text)), max_size=12).map(sorted)
    return places.map(lambda at: [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])
