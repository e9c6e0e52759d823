"""What a worker is told of a request; expectations were seen on the wire of 1.6.1 unless a name says otherwise."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from dynamo.frontend.openai import ChatCompletionRequest, CompletionRequest, decode_chat, decode_completion
from dynamo.frontend.openai_wire import extra_args, output_options, sampling_options, stop_conditions

EOS = [1, 128798]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": CITY}},
    {"type": "function", "function": {"name": "g"}},
]
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


def chat(**fields: Any) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "hi"}]
    return decode_chat(json.dumps({"model": "m", "messages": messages, **fields}).encode())


def completion(**fields: Any) -> CompletionRequest:
    return decode_completion(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def set_fields(struct: msgspec.Struct) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(struct)
    return {name: value for name, value in fields.items() if value is not None}


def guide(**fields: Any) -> Any:
    return sampling_options(chat(**fields)).guided_decoding


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"stop_token_ids_hidden": EOS}),
        ({"max_tokens": 6, "min_tokens": 2}, {"max_tokens": 6, "min_tokens": 2, "stop_token_ids_hidden": EOS}),
        ({"stop": "foo"}, {"stop": ["foo"], "stop_token_ids_hidden": EOS}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"], "stop_token_ids_hidden": EOS}),
        ({"stop": [7, 8]}, {"stop_token_ids": [7, 8], "stop_token_ids_hidden": EOS}),
        ({"stop_token_ids": [5]}, {"stop_token_ids": [5], "stop_token_ids_hidden": EOS}),
        ({"ignore_eos": False}, {"ignore_eos": False, "stop_token_ids_hidden": EOS}),
        (
            {"ignore_eos": True, "stop": ["a"], "stop_token_ids": [5], "max_tokens": 2},
            {"ignore_eos": True, "max_tokens": 2},
        ),
        ({"thinking_token_budget": 5}, {"max_thinking_tokens": 5, "stop_token_ids_hidden": EOS}),
        ({"nvext": {"max_thinking_tokens": 6}}, {"max_thinking_tokens": 6, "stop_token_ids_hidden": EOS}),
    ],
)
def test_stop_conditions(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set_fields(stop_conditions(chat(**fields), EOS)) == expected


def test_sampling_is_passed_on() -> None:
    fields = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 5,
        "min_p": 0.5,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "seed": 3,
        "include_stop_str_in_output": True,
    }
    assert set_fields(sampling_options(chat(**fields))) == fields
    assert set_fields(sampling_options(completion(n=1, best_of=3))) == {"n": 1, "best_of": 3}


def test_top_k_of_zero_means_all_tokens() -> None:
    assert sampling_options(chat(top_k=0)).top_k == -1


def test_greedy_is_temperature_zero_which_1_6_1_leaves_to_the_worker() -> None:
    greedy = chat(temperature=0.7, top_p=0.5, nvext={"greed_sampling": True})
    assert set_fields(sampling_options(greedy)) == {"temperature": 0.0}


def test_token_ids_as_string_keys_stay_here() -> None:
    assert set_fields(sampling_options(chat(logit_bias={"5": 1}))) == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"guided_json": CITY}, {"json": CITY}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_grammar": "start: A"}, {"grammar": "start: A"}),
        (
            {"guided_json": CITY, "guided_decoding_backend": "xgrammar", "guided_whitespace_pattern": " "},
            {"json": CITY, "backend": "xgrammar", "whitespace_pattern": " "},
        ),
        ({"guided_decoding_backend": "xgrammar"}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json": {"type": "object"}}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": CITY}}}, {"json": CITY}),
        ({"tools": TOOLS}, None),
        ({"tools": TOOLS, "tool_choice": "auto"}, None),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, {"json": CITY}),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, {"json": NO_PARAMETERS}),
    ],
)
def test_guided_decoding(fields: dict[str, Any], expected: Any) -> None:
    assert guide(**fields) == expected


def test_required_calls_are_an_array_over_the_tools() -> None:
    schema = guide(tools=TOOLS, tool_choice="required", response_format={"type": "json_object"})["json"]
    assert (schema["type"], schema["minItems"]) == ("array", 1)
    calls = schema["items"]["anyOf"]
    assert [call["properties"]["name"]["enum"] for call in calls] == [["f"], ["g"]]
    assert [call["properties"]["parameters"] for call in calls] == [CITY, NO_PARAMETERS]
    alone = guide(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)["json"]
    assert alone == schema | {"maxItems": 1}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (chat(), {}),
        (chat(logprobs=True), {"logprobs": 1}),
        (chat(logprobs=True, top_logprobs=0), {"logprobs": 0}),
        (completion(logprobs=2), {"logprobs": 2}),
        (completion(echo=True), {}),
        (completion(echo=True, logprobs=2), {"logprobs": 2, "prompt_logprobs": 2}),
        (chat(skip_special_tokens=False, prompt_logprobs=1), {"skip_special_tokens": False, "prompt_logprobs": 1}),
        (chat(return_tokens_as_token_ids=True), {"return_tokens_as_token_ids": True}),
    ],
)
def test_output_options(request_: Any, expected: dict[str, Any]) -> None:
    assert set_fields(output_options(request_)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"nvext": {"annotations": ["request_id"]}}, None),
        ({"nvext": {"extra_fields": ["timing"]}}, {"nvext": {"extra_fields": ["timing"]}}),
        ({"nvext": {"token_data": [1]}}, {"nvext": {"token_in": True}}),
        ({"detokenize": False}, {"sampling_options": {"detokenize": False}}),
        (
            {"allowed_token_ids": [1], "bad_words_token_ids": [[3]]},
            {"sampling_options": {"allowed_token_ids": [1], "bad_words_token_ids": [[3]]}},
        ),
    ],
)
def test_extra_args(fields: dict[str, Any], expected: Any) -> None:
    assert extra_args(chat(**fields)) == expected


def test_the_salt_is_told_twice() -> None:
    assert extra_args(chat(), "a") == {"nvext": {"cache_salt": "a"}}
