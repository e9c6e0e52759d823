"""The official Anthropic client against the whole product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam, TextBlock, ThinkingBlock, ToolParam, ToolUseBlock
from openai import OpenAI

from tests.support.echo_gateway import RAW, THOUGHT_AND_CALL, EchoGateway

WEATHER: ToolParam = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def client(echo_gateway: EchoGateway) -> Iterator[Anthropic]:
    with Anthropic(base_url=echo_gateway.base_url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def user(text: str) -> MessageParam:
    return {"role": "user", "content": text}


def test_message(client: Anthropic) -> None:
    message = client.messages.create(model="echo", max_tokens=64, messages=[user("Grüße, 世界 👋")], extra_body=RAW)
    assert message.content == [TextBlock(type="text", text="Grüße, 世界 👋")]
    assert (message.stop_reason, message.role, message.model) == ("end_turn", "assistant", "echo")
    assert message.usage.input_tokens == message.usage.output_tokens > 0


def test_stop_sequence_and_max_tokens(client: Anthropic) -> None:
    stopped = client.messages.create(
        model="echo", max_tokens=64, messages=[user("One two three four")], stop_sequences=["three"], extra_body=RAW
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "three")
    cut = client.messages.create(model="echo", max_tokens=2, messages=[user("One two three four")], extra_body=RAW)
    assert cut.stop_reason == "max_tokens"


def test_thinking_and_a_tools_round_trip(client: Anthropic, echo_gateway: EchoGateway) -> None:
    question = user(THOUGHT_AND_CALL)
    first = client.messages.create(model="echo", max_tokens=256, messages=[question], tools=[WEATHER], extra_body=RAW)
    thinking, text, call = first.content
    assert isinstance(thinking, ThinkingBlock)
    assert thinking.thinking == "hm"
    assert isinstance(text, TextBlock)
    assert text.text == "Let me see. "
    assert isinstance(call, ToolUseBlock)
    assert (call.name, call.input) == ("weather", {"city": "Köln"})
    assert first.stop_reason == "tool_use"
    turns: list[Any] = [
        user("How is the weather?"),
        {"role": "assistant", "content": first.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "It rains in Köln."}],
        },
    ]
    second = client.messages.create(model="echo", max_tokens=1, messages=turns, tools=[WEATHER])
    assert second.usage.input_tokens == _prompt_tokens_of_the_same_chat(echo_gateway)


def _prompt_tokens_of_the_same_chat(gateway: EchoGateway) -> int:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
    text = "Let me see. "
    function = {"name": WEATHER["name"], "parameters": WEATHER["input_schema"]}
    with OpenAI(base_url=f"{gateway.base_url}/v1", api_key="unused", timeout=60) as client:
        turns: list[Any] = [
            {"role": "user", "content": "How is the weather?"},
            {"role": "assistant", "content": text, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "It rains in Köln."},
        ]
        tools: list[Any] = [{"type": "function", "function": function}]
        answer = client.chat.completions.create(model="echo", max_tokens=1, messages=turns, tools=tools)
    assert answer.usage is not None
    return answer.usage.prompt_tokens


def test_streamed_message_is_the_message(client: Anthropic) -> None:
    with client.messages.stream(
        model="echo", max_tokens=256, messages=[user(THOUGHT_AND_CALL)], tools=[WEATHER], extra_body=RAW
    ) as stream:
        types = {event.type for event in stream}
        message = stream.get_final_message()
    assert {"thinking", "text", "input_json", "message_stop"} <= types
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    call = message.content[2]
    assert isinstance(call, ToolUseBlock)
    assert call.input == {"city": "Köln"}
    assert message.stop_reason == "tool_use"


def test_tokens_are_counted_by_the_models_own_tokenizer(client: Anthropic) -> None:
    messages = [user("How many tokens has this prompt?")]
    counted = client.messages.count_tokens(model="echo", messages=messages, system="Be exact.")
    answered = client.messages.create(model="echo", max_tokens=1, messages=messages, system="Be exact.")
    assert counted.input_tokens == answered.usage.input_tokens


def test_errors_are_of_the_clients_own_classes(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="nobody", max_tokens=1, messages=[user("hi")])
    assert isinstance(missing.value.body, dict)
    assert missing.value.body["error"]["type"] == "not_found_error"
    assert missing.value.request_id == missing.value.body["request_id"]
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="echo", max_tokens=0, messages=[user("hi")])
    with (
        pytest.raises(anthropic.BadRequestError),
        client.messages.stream(model="echo", max_tokens=1, messages=[{"role": "user", "content": []}]) as stream,
    ):
        stream.get_final_message()
