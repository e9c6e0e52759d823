"""Anthropic's messages as chats and chats' answers as its messages, read by its official client's own types."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dynamo.frontend.anthropic import NAMES_OF_CHAT, MessagesMouth
from dynamo.frontend.anthropic_answers import UNREADABLE, MessageRenderer, message_body
from dynamo.frontend.anthropic_conversion import chat_of
from dynamo.frontend.body_fields import RequestPolicy
from dynamo.frontend.error_formats import AnthropicErrors
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai_answers import Choice
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.openai_rules import check_chat
from dynamo.frontend.parsers.message import MessagePart, ToolCallDelta, merged
from dynamo.frontend.parsers.parts import Reasoning
from dynamo.frontend.postprocess import Delta
from dynamo.shared.errors import InvalidRequest

MOUTH = MessagesMouth(RequestPolicy(), AnthropicErrors(), strips_preamble=True)
WEATHER = {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]} | fields
    return chat_of(MOUTH.decode(json.dumps(body).encode()), strips_preamble=True)


def record() -> RequestRecord:
    return RequestRecord("r1", "r1", "anthropic_messages", 0.0, model="m", num_prompt_tokens=10, num_cached_tokens=4)


# ---- requests


def test_plain_text() -> None:
    made = chat(system="Be brief.", stop_sequences=["END"], temperature=0.5, top_k=3, stream=True)
    assert made.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert (made.max_tokens, made.stop, made.temperature, made.top_k, made.stream) == (16, ["END"], 0.5, 3, True)


def test_a_conversation_with_thoughts_calls_and_results() -> None:
    made = chat(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}},
                    {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "tool_result", "tool_use_id": "t2"},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
        tools=[WEATHER],
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}, "id": "t1"}
    other = {"type": "function", "function": {"name": "weather", "arguments": "{}"}, "id": "t2"}
    assert made.messages == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see.", "reasoning_content": "hm", "tool_calls": [call, other]},
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "tool", "tool_call_id": "t2", "content": ""},
        {"role": "user", "content": "And now?"},
    ]
    assert made.tools == [
        {
            "type": "function",
            "function": {"name": "weather", "description": "d", "parameters": WEATHER["input_schema"]},
        }
    ]


@pytest.mark.parametrize(
    ("choice", "made", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}, None),
    ],
)
def test_tool_choice(choice: Any, made: Any, parallel: bool | None) -> None:
    request = chat(tools=[WEATHER], tool_choice=choice)
    assert (request.tool_choice, request.parallel_tool_calls) == (made, parallel)


def test_the_last_turn_of_the_assistant_is_continued() -> None:
    made = chat(messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The answer is ("}])
    assert (made.add_generation_prompt, made.continue_final_message) == (False, True)


def test_the_billing_line_spoils_no_prefix() -> None:
    preamble = "x-anthropic-billing-header: cc_version=1; cch=abc"
    assert chat(system=[{"type": "text", "text": preamble}, {"type": "text", "text": "You are"}]).messages[0] == {
        "role": "system",
        "content": "You are",
    }
    assert chat(system=f"{preamble}\nYou are").messages[0]["content"] == "You are"
    request = MOUTH.decode(
        json.dumps(
            {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "system": preamble}
        ).encode()
    )
    assert chat_of(request, strips_preamble=False).messages[0]["content"] == preamble


def test_thinking_and_structured_output() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    made = chat(
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}},
    )
    assert made.thinking_token_budget == 1024
    assert made.reasoning_effort == "low"
    assert made.response_format is not None
    assert made.response_format.json_schema is not None
    assert made.response_format.json_schema.schema == schema


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].input_schema"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"type": "sculpture"}, "messages[0].content[0].type must be one of text, "),
        ({"type": "document", "source": {"type": "x"}}, "messages[0].content[0].source.type must be one of text, "),
    ],
)
def test_a_block_of_an_unknown_type_is_told_the_known_ones(block: Any, expected: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(messages=[{"role": "user", "content": [block]}])
    assert refused.value.message.startswith(expected)
    assert refused.value.code == "invalid_value"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER | {"name": "no spaces"}]}, "tools[0].name"),
        (
            {"tools": [WEATHER], "output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
            "output_config.format",
        ),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
    ],
)
def test_faults_are_told_of_the_clients_own_fields(fields: Any, param: str) -> None:
    made = chat(**fields)
    with pytest.raises(InvalidRequest) as refused, NAMES_OF_CHAT.told():
        check_chat(made, checks_strict_tools=False)
    assert refused.value.param is not None
    assert refused.value.param.startswith(param)
    assert "function" not in refused.value.param


def test_strict_tools_need_not_be_strict_as_openai_means_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    tools = [{"name": "f", "input_schema": schema, "strict": True}]
    assert MOUTH.decode_prompt(json.dumps(body | {"tools": tools}).encode()).tools


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["messages", "system", "tools", "tool_choice", "thinking", "output_config", "stop_sequences"]),
        JSON_VALUES,
    )
)
def test_whatever_comes_is_a_chat_or_refused(fields: dict[str, Any]) -> None:
    with suppress(InvalidRequest):
        assert chat(**fields).messages


# ---- answers

CALL = ToolCallDelta(0, "call_1", "weather", '{"city":"Köln"}')


def test_a_whole_message() -> None:
    parts: list[MessagePart] = [Reasoning("hm"), "Let me see.", CALL, ToolCallDelta(1, "call_2", "f", "[1")]
    body = message_body(record(), Choice(0, parts, "tool_calls"), None)
    message = AnthropicMessage.model_validate_json(body)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert json.loads(body)["content"][2]["input"] == {"city": "Köln"}
    assert json.loads(body)["content"][3]["input"] == {UNREADABLE: "[1"}
    assert (message.stop_reason, message.usage.input_tokens, message.usage.cache_read_input_tokens) == (
        "tool_use",
        6,
        4,
    )


@pytest.mark.parametrize(
    ("finish_reason", "stop", "told"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("stop", 7, ("end_turn", None)),
        ("length", None, ("max_tokens", None)),
        ("content_filter", None, ("refusal", None)),
    ],
)
def test_stop_reasons(finish_reason: str, stop: str | int | None, told: tuple[str, str | None]) -> None:
    message = json.loads(message_body(record(), Choice(0, ["x"], finish_reason, stop), None))
    assert (message["stop_reason"], message["stop_sequence"]) == told


def events_of(*deltas: Delta) -> list[Any]:
    renderer = MessageRenderer(record(), AnthropicErrors())
    frames = b"".join([*map(renderer.of, deltas), renderer.last()]).decode()
    events = []
    for frame in frames.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        events.append(event)
    return events


def test_a_streamed_message() -> None:
    events = events_of(
        Delta(0, "", 1, parts=[Reasoning("h")]),
        Delta(0, "", 1, parts=[Reasoning("m"), "Let "]),
        Delta(0, "me see.", 1),
        Delta(0, "", 2, parts=[ToolCallDelta(0, "call_1", "weather", ""), ToolCallDelta(0, arguments='{"city":')]),
        Delta(0, "", 1, parts=[ToolCallDelta(0, arguments='"Köln"}'), ToolCallDelta(1, "call_2", "f", "{}")]),
        Delta(0, "", 0, "tool_calls"),
    )
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    blocks: dict[int, list[str]] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            blocks.setdefault(event["index"], []).append(next(v for k, v in event["delta"].items() if k != "type"))
    assert ["".join(texts) for texts in blocks.values()] == ["hm", "Let me see.", '{"city":"Köln"}', "{}"]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_an_empty_answer_is_a_whole_stream() -> None:
    assert [event["type"] for event in events_of(Delta(0, "", 0, "stop"))] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]


def test_merged_parts_are_whole() -> None:
    parts: list[MessagePart] = ["a", "b", ToolCallDelta(0, "c", "f", "{"), ToolCallDelta(0, arguments="}"), "", "z"]
    assert merged(parts) == ["ab", ToolCallDelta(0, "c", "f", "{}"), "z"]
