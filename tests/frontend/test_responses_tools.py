"""Tools that are no plain functions: what the model is offered, and how its calls of them are told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response

from dynamo.frontend.body_fields import RequestPolicy
from dynamo.frontend.error_formats import OpenAiErrors
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai_answers import Choice
from dynamo.frontend.openai_requests import MAX_TOOLS, ChatCompletionRequest
from dynamo.frontend.openai_rules import check_chat
from dynamo.frontend.parsers.message import ToolCallDelta
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.responses import ResponsesMouth
from dynamo.frontend.responses_conversion import chat_of
from dynamo.shared.errors import InvalidRequest

MOUTH = ResponsesMouth(RequestPolicy(), None, OpenAiErrors())
NO_PARAMETERS = {"type": "object", "properties": {}}
WEATHER = {"type": "function", "name": "weather", "description": "d", "parameters": NO_PARAMETERS}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
SERVER = {"type": "namespace", "name": "mcp__home", "description": "A server.", "tools": [WEATHER, PATCH]}
SEARCH = {"type": "tool_search", "execution": "client", "description": "Finds tools.", "parameters": NO_PARAMETERS}


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "hi"} | fields).encode()


def chat(**fields: Any) -> ChatCompletionRequest:
    made = chat_of(MOUTH.decode(body_of(**fields)))
    check_chat(made)
    return made


def offered(**fields: Any) -> list[dict[str, Any]]:
    return [tool["function"] for tool in chat(**fields).tools or ()]


def names(**fields: Any) -> list[str]:
    return [function["name"] for function in offered(**fields)]


# ---- what the model is offered


def test_every_tool_of_the_clients_own_is_a_function() -> None:
    tools = [WEATHER, PATCH, SERVER, SEARCH]
    assert names(tools=tools) == [
        "weather",
        "apply_patch",
        "mcp__home__weather",
        "mcp__home__apply_patch",
        "tool_search",
    ]


def test_a_custom_tool_takes_one_text() -> None:
    (function,) = offered(tools=[PATCH])
    assert function == {
        "name": "apply_patch",
        "description": "Edits files.",
        "parameters": {
            "type": "object",
            "properties": {"input": {"type": "string", "description": 'Text of this lark grammar:\nstart: "x"'}},
            "required": ["input"],
        },
    }


def test_what_servers_of_openai_run_is_not_offered() -> None:
    hosted = [{"type": "web_search"}, {"type": "tool_search"}, {"type": "image_generation"}]
    assert chat(tools=hosted).tools is None


def test_items_bring_tools_along() -> None:
    items = [
        {"type": "additional_tools", "role": "developer", "tools": [SERVER]},
        {"role": "user", "content": "hi"},
        {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {"query": "q"}},
        {"type": "tool_search_output", "call_id": "c", "execution": "client", "tools": [WEATHER | {"name": "found"}]},
    ]
    made = chat(input=items)
    assert names(input=items) == ["mcp__home__weather", "mcp__home__apply_patch", "found"]
    assert made.messages[1]["tool_calls"][0]["function"] == {"name": "tool_search", "arguments": '{"query":"q"}'}
    assert made.messages[2] == {"role": "tool", "tool_call_id": "c", "content": '["found"]'}


def test_past_calls_have_the_names_that_the_model_knows() -> None:
    made = chat(
        input=[
            {"type": "function_call", "call_id": "a", "name": "weather", "namespace": "mcp__home", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "b", "name": "apply_patch", "input": 'say "x"'},
            {"type": "function_call_output", "call_id": "a", "output": "rain"},
            {"type": "custom_tool_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "done"}]},
        ]
    )
    calls, *results = made.messages
    assert [call["function"] for call in calls["tool_calls"]] == [
        {"name": "mcp__home__weather", "arguments": "{}"},
        {"name": "apply_patch", "arguments": '{"input":"say \\"x\\""}'},
    ]
    assert [result["content"] for result in results] == ["rain", "done"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "custom", "name": "apply_patch"}, "apply_patch"),
        ({"type": "function", "name": "weather", "namespace": "mcp__home"}, "mcp__home__weather"),
    ],
)
def test_such_a_tool_can_be_chosen(choice: dict[str, str], expected: str) -> None:
    made = chat(tools=[PATCH, SERVER], tool_choice=choice)
    assert made.tool_choice == {"type": "function", "function": {"name": expected}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
        ({"tools": [{"type": "namespace", "tools": []}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": ["x"]}]}, "tools[0].tools[0]"),
        ({"tools": [SERVER | {"tools": [{"type": "function"}]}]}, "tools[0].tools[0].name"),
        ({"tools": [SERVER | {"tools": [WEATHER] * (MAX_TOOLS + 1)}]}, "tools"),
        ({"input": [{"type": "additional_tools", "tools": "x"}]}, "input[0].tools"),
        ({"input": [{"type": "additional_tools", "tools": [7]}]}, "input[0].tools[0]"),
        ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "n"}]}, "input[0].input"),
    ],
)
def test_a_tool_that_is_none_is_refused_by_name(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param


# ---- calls


CALLS = [
    (
        ToolCallDelta(0, "c", "mcp__home__weather", '{"city":"Köln"}'),
        {"type": "function_call", "name": "weather", "namespace": "mcp__home", "arguments": '{"city":"Köln"}'},
        ["function_call_arguments.delta", "function_call_arguments.delta", "function_call_arguments.done"],
    ),
    (
        ToolCallDelta(0, "c", "apply_patch", '{"input":"say \\"x\\""}'),
        {"type": "custom_tool_call", "name": "apply_patch", "input": 'say "x"'},
        ["custom_tool_call_input.delta", "custom_tool_call_input.done"],
    ),
    (
        ToolCallDelta(0, "c", "mcp__home__apply_patch", "no JSON"),
        {"type": "custom_tool_call", "name": "apply_patch", "namespace": "mcp__home", "input": "no JSON"},
        ["custom_tool_call_input.delta", "custom_tool_call_input.done"],
    ),
    (
        ToolCallDelta(0, "c", "tool_search", '{"query":"q"}'),
        {"type": "tool_search_call", "execution": "client", "arguments": {"query": "q"}},
        [],
    ),
]
TOOLS = [PATCH, SERVER, SEARCH]


def record() -> RequestRecord:
    return RequestRecord("r1", "r1", "responses", 0.0, model="m")


@pytest.mark.parametrize(("call", "expected", "_events"), CALLS)
def test_a_call_is_the_item_that_the_client_expects(
    call: ToolCallDelta, expected: dict[str, Any], _events: list[str]
) -> None:
    body = MOUTH.body(MOUTH.decode(body_of(tools=TOOLS)), record(), 1, [Choice(0, [call], "tool_calls")], None)
    Response.model_validate_json(body)
    (item,) = json.loads(body)["output"]
    assert item == {"id": item["id"], "call_id": "c", "status": "completed"} | expected


@pytest.mark.parametrize(("call", "expected", "names"), CALLS)
def test_a_streamed_call_is_the_whole_one(call: ToolCallDelta, expected: dict[str, Any], names: list[str]) -> None:
    half = len(call.arguments) // 2
    begun = ToolCallDelta(0, call.id, call.name, call.arguments[:half])
    renderer = MOUTH.renderer(MOUTH.decode(body_of(tools=TOOLS, stream=True)), record(), 1, None)
    frames = [
        renderer.of(Delta(0, "", 1, parts=[begun])),
        renderer.of(Delta(0, "", 1, "tool_calls", parts=[ToolCallDelta(0, arguments=call.arguments[half:])])),
        renderer.last(),
    ]
    events = [json.loads(line[6:]) for line in b"".join(frames).decode().splitlines() if line.startswith("data: ")]
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        *names,
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    item = events[-2]["item"]
    assert item == {"id": item["id"], "call_id": "c", "status": "completed"} | expected
    assert events[-1]["response"]["output"] == [item]
