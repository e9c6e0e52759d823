"""The Responses API as chats and chats' answers as its responses, read by the official client's own types."""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from dynamo.frontend.body_fields import RequestPolicy
from dynamo.frontend.error_formats import OpenAiErrors
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.openai_answers import Choice, TokenLogprob
from dynamo.frontend.openai_requests import ChatCompletionRequest
from dynamo.frontend.openai_rules import check_chat
from dynamo.frontend.parsers.message import ToolCallDelta
from dynamo.frontend.parsers.parts import Reasoning
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.responses import NAMES_OF_CHAT, ResponsesMouth
from dynamo.frontend.responses_conversion import chat_of
from dynamo.frontend.responses_store import ResponseStore, StoredResponse
from dynamo.shared.errors import InvalidRequest, Overloaded, RequestError, UnsupportedFeature

MOUTH = ResponsesMouth(RequestPolicy(), None, OpenAiErrors())
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": True}
CALL = ToolCallDelta(0, "call_1", "weather", '{"city":"Köln"}')


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "hi"} | fields).encode()


def chat(**fields: Any) -> ChatCompletionRequest:
    return chat_of(MOUTH.decode(body_of(**fields)))


def record() -> RequestRecord:
    return RequestRecord("r1", "r1", "responses", 0.0, model="m", num_prompt_tokens=10, num_cached_tokens=4)


# ---- requests


def test_plain_text() -> None:
    made = chat(instructions="Be brief.", max_output_tokens=5, reasoning={"effort": "low"}, stream=True)
    assert made.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert (made.max_output_tokens, made.reasoning_effort, made.stream) == (5, "low", True)


def test_items_of_one_turn_become_one_message() -> None:
    made = chat(
        input=[
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {
                "type": "message",
                "id": "msg",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
            },
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Köln"}'},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
        ]
    )
    assert made.messages == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}},
                {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "sun"},
    ]


def test_tools() -> None:
    made = chat(
        tools=[WEATHER, {"type": "web_search"}, WEATHER | {"name": "other"}],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
    )
    assert made.tools is not None
    assert [tool["function"] for tool in made.tools] == [{k: v for k, v in WEATHER.items() if k != "type"}]
    assert made.tool_choice == "required"


def test_a_name_that_is_none_is_no_allowed_tool() -> None:
    choice = {"type": "allowed_tools", "tools": [{"type": "function", "name": "weather"}]}
    assert chat(tools=[WEATHER | {"name": []}], tool_choice=choice).tools is None


def test_a_schema_for_the_answer() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    made = chat(text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}})
    assert made.response_format is not None
    assert made.response_format.json_schema is not None
    assert (made.response_format.json_schema.name, made.response_format.json_schema.schema) == ("n", schema)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "mcp_call"}]}, "input[0].type"),
        ({"input": [{"type": []}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"prompt": {"id": "p"}}, "prompt"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(("name", "value"), [("background", True), ("conversation", "c")])
def test_what_only_openai_has_is_not_implemented(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedFeature) as refused:
        MOUTH.decode(body_of(**{name: value}))
    assert refused.value.param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "x"}}}}, "text.format.schema"),
        ({"tools": [WEATHER | {"name": "no spaces"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "function", "name": "weather"}}, "tool_choice.name"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{bad"}]},
            "input[0].arguments",
        ),
    ],
)
def test_faults_are_told_of_the_clients_own_fields(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused, NAMES_OF_CHAT.told():
        check_chat(chat(**fields))
    assert refused.value.param is not None
    assert refused.value.param.startswith(param)
    assert "function." not in refused.value.message


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "name", "tools", "mode", "format", "schema", "effort"])
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
FIELDS = ["input", "tools", "tool_choice", "text", "reasoning", "include", "metadata", "background", "instructions"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES))
def test_whatever_comes_is_a_chat_or_refused(fields: dict[str, Any]) -> None:
    with suppress(RequestError):
        assert chat(**fields).messages


# ---- answers


def unary(choice: Choice, **fields: Any) -> Response:
    return Response.model_validate_json(MOUTH.body(MOUTH.decode(body_of(**fields)), record(), 1, [choice], None))


def test_a_whole_response() -> None:
    logprobs = [TokenLogprob("x", -0.5, [120])]
    choice = Choice(0, [Reasoning("hm"), "Let me see.", CALL], "tool_calls", None, logprobs)
    response = unary(choice, tools=[WEATHER], metadata={"a": "b"})
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert (response.status, response.output_text, response.metadata) == ("completed", "Let me see.", {"a": "b"})
    assert response.output[1].model_dump()["content"][0]["logprobs"][0]["token"] == "x"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens) == (10, 4)


def test_an_answer_that_was_cut_off_is_incomplete() -> None:
    response = unary(Choice(0, ["Let me"], "length"))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].model_dump()["status"] == "incomplete"


def stream_of(deltas: list[Delta], failure: Overloaded | None = None) -> list[Any]:
    renderer = MOUTH.renderer(MOUTH.decode(body_of(stream=True)), record(), 1, None)
    frames = [*map(renderer.of, deltas)]
    frames.append(renderer.last() if failure is None else renderer.failed(failure))
    return read_events(b"".join(frames))


def read_events(stream: bytes) -> list[Any]:
    events = []
    for number, frame in enumerate(stream.decode().removesuffix("\n\n").split("\n\n")):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_python(event)
        events.append(event)
    return events


DELTAS = [
    Delta(0, "", 1, parts=[Reasoning("h")]),
    Delta(0, "", 1, parts=[Reasoning("m"), "Let "]),
    Delta(0, "me see.", 1),
    Delta(0, "", 2, parts=[ToolCallDelta(0, "call_1", "weather", '{"city":')]),
    Delta(0, "", 1, parts=[ToolCallDelta(0, arguments='"Köln"}')]),
    Delta(0, "", 0, "tool_calls"),
]


def test_a_streamed_response_is_the_whole_one() -> None:
    events = stream_of(DELTAS)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    whole = unary(Choice(0, [Reasoning("hm"), "Let me see.", CALL], "tool_calls"), stream=True)
    assert Response.model_validate(events[-1]["response"]).output == whole.output


def test_logprobs_of_a_stream_are_told_once_whatever_text_is_held_back() -> None:
    a, b, c, d = (TokenLogprob(token, -0.5, [97]) for token in "abcd")
    deltas = [
        Delta(0, "", 1, logprobs=[a]),
        Delta(0, "ab", 1, logprobs=[b]),
        Delta(0, "", 1, logprobs=[c]),
        Delta(0, "", 1, "stop", logprobs=[d]),
    ]
    events = stream_of(deltas)
    told = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert [[token["token"] for token in tokens] for tokens in told] == [["a", "b"]]
    whole = unary(Choice(0, ["ab"], "stop", None, [a, b, c, d]), stream=True)
    assert Response.model_validate(events[-1]["response"]).output == whole.output


def test_a_stream_that_fails_says_so() -> None:
    events = stream_of(DELTAS[:2], Overloaded("Too much."))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"] == {"code": "rate_limit_exceeded", "message": "Too much."}


# ---- the store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = ResponseStore(tmp_path / "run" / "responses.sqlite", 4096)
    yield store
    store.close()


def test_a_stored_response_is_found_by_every_process(store: ResponseStore, tmp_path: Path) -> None:
    assert store.put("resp_1", StoredResponse(b"[]", b"{}"))
    other = ResponseStore(tmp_path / "run" / "responses.sqlite", 4096)
    assert other.get("resp_1") == StoredResponse(b"[]", b"{}")
    assert other.delete("resp_1")
    assert (store.get("resp_1"), store.delete("resp_1"), store.num_bytes) == (None, False, 0)
    other.close()


def test_the_oldest_make_room(store: ResponseStore) -> None:
    for number in range(10):
        assert store.put(f"resp_{number}", StoredResponse(b"x" * 500, b"y" * 500))
    assert [store.get(f"resp_{number}") is not None for number in range(10)] == [False] * 6 + [True] * 4
    assert store.num_bytes == 4000


def test_what_cannot_be_written_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ResponseStore(tmp_path / "responses.sqlite", 4096)
    writer = sqlite3.connect(tmp_path / "responses.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert not store.put("resp_1", StoredResponse(b"[]", b"{}"))
    assert "the response resp_1 is not stored: database is locked" in caplog.text
    writer.execute("ROLLBACK")
    assert store.put("resp_1", StoredResponse(b"[]", b"{}"))


def test_what_is_too_large_is_not_kept(store: ResponseStore) -> None:
    assert not store.put("resp_1", StoredResponse(b"x" * 1000, b"y" * 100))
    assert store.get("resp_1") is None


def test_a_turn_goes_on_from_the_one_before(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.sqlite", 1 << 20)
    mouth = ResponsesMouth(RequestPolicy(), store, OpenAiErrors())
    request = mouth.decode(body_of(instructions="Only now."))
    request.note_turns([{"role": "user", "content": "hi"}])
    first = json.loads(mouth.body(request, record(), 1, [Choice(0, ["Hello.", CALL], "tool_calls")], None))
    assert first["store"] is True
    output = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    chat = mouth.decode_prompt(body_of(input=[output], previous_response_id=first["id"]))
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool"]
    assert chat.messages[1]["tool_calls"][0]["function"]["name"] == "weather"
    with pytest.raises(RequestError, match="resp_x"):
        mouth.decode_prompt(body_of(previous_response_id="resp_x"))
    store.close()


def test_a_call_that_was_cut_off_is_not_gone_on_from(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.sqlite", 1 << 20)
    mouth = ResponsesMouth(RequestPolicy(), store, OpenAiErrors())
    request = mouth.decode(body_of())
    request.note_turns([{"role": "user", "content": "hi"}])
    cut = ToolCallDelta(0, "call_1", "weather", '{"city":"K')
    first = json.loads(mouth.body(request, record(), 1, [Choice(0, ["Well.", cut], "length")], None))
    assert first["output"][1]["arguments"] == '{"city":"K'
    chat = mouth.decode_prompt(body_of(previous_response_id=first["id"]))
    assert chat.messages[1] == {"role": "assistant", "content": "Well."}
    store.close()


def test_what_the_client_wants_not_stored_is_not(store: ResponseStore) -> None:
    mouth = ResponsesMouth(RequestPolicy(), store, OpenAiErrors())
    body = json.loads(mouth.body(mouth.decode(body_of(store=False)), record(), 1, [Choice(0, ["x"], "stop")], None))
    assert body["store"] is False
    assert store.num_bytes == 0


def test_without_a_store_there_is_no_past() -> None:
    with pytest.raises(UnsupportedFeature, match="--responses-store-mb"):
        MOUTH.decode_prompt(body_of(previous_response_id="resp_1"))
