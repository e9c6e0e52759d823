"""The official OpenAI client: tools, structured output and the Responses API against the whole product."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageFunctionToolCall
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall
from pydantic import BaseModel

from tests.support.echo_gateway import RAW, THOUGHT_AND_CALL, EchoGateway

WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
RESPONSES_WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


class Point(BaseModel):
    x: int
    y: int


@pytest.fixture(scope="module")
def client(echo_gateway: EchoGateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{echo_gateway.base_url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


# ---- chat


def test_tools_round_trip(client: OpenAI) -> None:
    first = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": THOUGHT_AND_CALL}], tools=[WEATHER], extra_body=RAW
    )
    [choice] = first.choices
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or "").rstrip() == "Let me see."
    assert choice.message.to_dict()["reasoning_content"] == "hm"
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Köln"})
    assert first.usage is not None
    assert first.usage.completion_tokens_details is not None
    assert 0 < (first.usage.completion_tokens_details.reasoning_tokens or 0) < first.usage.completion_tokens
    turns: list[Any] = [
        {"role": "user", "content": "How is the weather?"},
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "It rains in Köln."},
    ]
    second = client.chat.completions.create(
        model="echo", messages=turns, tools=[WEATHER], tool_choice="none", extra_body={"ignore_eos": True}
    )
    assert "It rains in Köln." in (second.choices[0].message.content or "")


def test_streamed_calls_are_put_together(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="echo", messages=[{"role": "user", "content": THOUGHT_AND_CALL}], tools=[WEATHER], extra_body=RAW
    ) as stream:
        stream.until_done()
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Köln"}


def test_without_tools_nothing_is_called(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": THOUGHT_AND_CALL}], extra_body=RAW
    )
    assert answer.choices[0].message.tool_calls is None
    assert "<tool_call>" in (answer.choices[0].message.content or "")


def test_structured_output_is_parsed(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="echo",
        messages=[{"role": "user", "content": '{"x": 1, "y": 2}'}],
        response_format=Point,
        extra_body=RAW,
    )
    assert answer.choices[0].message.parsed == Point(x=1, y=2)


def test_a_forced_call_is_read_from_the_bare_arguments(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": '{"city": "Köln"}'}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        extra_body=RAW,
    )
    assert answer.choices[0].message.tool_calls is not None
    call = answer.choices[0].message.tool_calls[0]
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert json.loads(call.function.arguments) == {"city": "Köln"}


def test_a_bad_schema_is_a_bad_request(client: OpenAI) -> None:
    schema: dict[str, object] = {"type": "object", "properties": {"x": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="echo",
            messages=[{"role": "user", "content": "hi"}],
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        )
    assert (refused.value.param or "").startswith("response_format.json_schema.schema")


# ---- responses


def test_response(client: OpenAI) -> None:
    response = client.responses.create(model="echo", input=THOUGHT_AND_CALL, tools=[RESPONSES_WEATHER], extra_body=RAW)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.output_text.rstrip() == "Let me see."
    assert response.status == "completed"


def test_streamed_response_ends_with_the_response(client: OpenAI) -> None:
    with client.responses.stream(
        model="echo", input=THOUGHT_AND_CALL, tools=[RESPONSES_WEATHER], extra_body=RAW
    ) as stream:
        types = [event.type for event in stream]
        response = stream.get_final_response()
    assert (types[0], types[-1]) == ("response.created", "response.completed")
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]


def test_conversation_goes_on_from_a_stored_response(client: OpenAI) -> None:
    first = client.responses.create(model="echo", input=THOUGHT_AND_CALL, tools=[RESPONSES_WEATHER], extra_body=RAW)
    call = first.output[-1]
    assert isinstance(call, ResponseFunctionToolCall)
    second = client.responses.create(
        model="echo",
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "It rains in Köln."}],
    )
    assert second.usage is not None
    assert second.usage.input_tokens > len("It rains in Köln.") / 4 + (first.usage.input_tokens if first.usage else 0)
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError) as gone:
        client.responses.retrieve(second.id)
    assert gone.value.code == "response_not_found"


def test_structured_response_is_parsed(client: OpenAI) -> None:
    response = client.responses.parse(model="echo", input='{"x": 1, "y": 2}', text_format=Point, extra_body=RAW)
    assert response.output_parsed == Point(x=1, y=2)


def test_input_tokens_are_exact(client: OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="echo", input="How many tokens has this prompt?")
    answered = client.responses.create(model="echo", input="How many tokens has this prompt?", max_output_tokens=1)
    assert answered.usage is not None
    assert counted.input_tokens == answered.usage.input_tokens
    assert answered.status == "incomplete"


def test_what_only_openai_has_is_not_implemented(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        client.responses.create(model="echo", input="hi", background=True)
    assert (refused.value.status_code, refused.value.code) == (501, "unsupported_feature")
    assert refused.value.response.headers["x-should-retry"] == "false"
