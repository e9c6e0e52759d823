"""Bodies of requests that come close to valid ones: other values, other fields, other bytes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"enum": [1, "x"]}}, "required": ["a"]},
    },
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "Größe? 😀"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
    {"role": "tool", "tool_call_id": "c", "content": "1"},
    {"role": "user", "content": "Hello"},
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "1"}]},
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "1"},
]
VALID: dict[str, dict[str, Any]] = {
    "chat": {
        "model": "demo",
        "messages": TALK,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": FORMAT,
        "stop": ["a", "b"],
        "logit_bias": {"5": -1.5},
        "logprobs": True,
        "top_logprobs": 2,
        "temperature": 0.5,
        "max_completion_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "nvext": {"annotations": ["a:b"], "agent_hints": {"priority": 1}, "extra_fields": ["timing"]},
    },
    "completions": {
        "model": "demo",
        "prompt": ["Hello", "World"],
        "suffix": None,
        "echo": True,
        "logprobs": 2,
        "n": 2,
        "guided_regex": "[a-z]+",
        "seed": 1,
        "max_tokens": 3,
        "stop_token_ids": [1, 2],
    },
    "embeddings": {"model": "demo", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8},
    "responses": {
        "model": "demo",
        "input": ITEMS,
        "instructions": "s",
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}],
        "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "reasoning": {"effort": "low"},
        "metadata": {"a": "b"},
        "max_output_tokens": 5,
    },
    "messages": {
        "model": "demo",
        "messages": BLOCKS,
        "system": [{"type": "text", "text": "s"}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "max_tokens": 2048,
        "stop_sequences": ["a"],
    },
}

NUMBERS = [0, 1, -1, 0.5, 2**31, 2**53 + 1, 2**63, -(2**64), 10**40, 1e-7, 1e300]
STRINGS = ["", "a", "demo", "user", "auto", "function", "json_object", "text", "\0", "é😀", "{{", "<think>", "x" * 5000]
ODD_JSON: list[Any] = [None, True, [], {}, [[]], [None], {"": None}, {"type": "text"}, *NUMBERS, *STRINGS]
SCRAPS = [
    b"\xff",
    b"\xed\xa0\x80",
    b"\0",
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b"1e999",
    b"-0.0",
    b"9" * 400,
    b"NaN",
    b"[" * 2000,
    b'{"a":' * 2000,
    b'{"model":"a","model":"b"}',
    b'"messages":[],',
    b"null",
    b"{}",
    b",",
    b'"',
    b"\\",
    b"\xef\xbb\xbf",
]
JSON = st.recursive(
    st.sampled_from(ODD_JSON),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(STRINGS[:8]), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def bodies(draw: st.DrawFn, api: str, fields: list[str]) -> bytes:
    """Of the API's valid body with `fields` of any value, values replaced at any depth, and bytes replaced."""
    body = json.loads(json.dumps(VALID[api]))
    for name in draw(st.lists(st.sampled_from(sorted(VALID[api])), max_size=8, unique=True)):
        del body[name]
    body |= draw(st.dictionaries(st.sampled_from(fields), JSON, max_size=3))
    for _ in range(draw(st.integers(0, 3))):
        body = _with_another_value(draw, body)
    text = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 20])))
        text = text[:start] + draw(st.sampled_from(SCRAPS)) + text[end:]
    return text


def _with_another_value(draw: st.DrawFn, value: Any) -> Any:
    """One of the values within is another one, is gone, or is there twice."""
    if not value or not isinstance(value, dict | list) or draw(st.integers(0, 4)) == 0:
        return draw(JSON)
    if isinstance(value, dict):
        name = draw(st.sampled_from(sorted(value)))
        return value | {name: _with_another_value(draw, value[name])}
    at = draw(st.integers(0, len(value) - 1))
    return [*value[:at], *[_with_another_value(draw, value[at])] * draw(st.integers(0, 2)), *value[at + 1 :]]
