"""What a client may send, and what it is told when it may not."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from dynamo.frontend.openai import RequestPolicy, decode_chat, decode_completion, reject_media
from dynamo.shared.errors import InvalidRequest

USER = {"role": "user", "content": "Say hi"}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def chat_body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def completion_body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "Hello", **fields}).encode()


def chat_error(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode_chat(chat_body(**fields))
    return caught.value


def completion_error(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode_completion(completion_body(**fields))
    return caught.value


def malformed(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode_chat(body)
    return caught.value


def assistant_call(arguments: Any) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]}


def test_messages_stay_plain_dicts() -> None:
    assert decode_chat(chat_body()).messages == [USER]


def test_null_means_absent() -> None:
    request = decode_chat(chat_body(temperature=None, stream=None, stop=None, nvext=None, tools=None, max_tokens=None))
    assert (request.temperature, request.stop, request.max_output_tokens) == (None, None, None)


def test_max_completion_tokens_wins() -> None:
    assert decode_chat(chat_body(max_tokens=5, max_completion_tokens=3)).max_output_tokens == 3
    assert decode_chat(chat_body(max_tokens=5)).max_output_tokens == 5


def test_stop_may_be_text_or_token_ids() -> None:
    assert decode_chat(chat_body(stop="x")).stop_strings == ["x"]
    assert decode_chat(chat_body(stop=["x", "y"])).stop_strings == ["x", "y"]
    request = decode_chat(chat_body(stop=[7], stop_token_ids=[5]))
    assert (request.stop_strings, request.all_stop_token_ids) == ([], [5, 7])


def test_stream_options() -> None:
    request = decode_chat(
        chat_body(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    )
    assert request.include_usage
    assert request.continuous_usage_stats
    assert not decode_chat(chat_body(stream=True)).include_usage


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"logprobs": True}, 1),
        ({"logprobs": True, "top_logprobs": 0}, 0),
        ({"logprobs": True, "top_logprobs": 2}, 2),
        ({"top_logprobs": 2}, None),
        ({}, None),
    ],
)
def test_how_many_logprobs_a_chat_asks_for(fields: dict[str, Any], expected: int | None) -> None:
    assert decode_chat(chat_body(**fields)).logprobs_count == expected


@pytest.mark.parametrize("name", ["chat_template_args", "chat_template_kwargs"])
def test_template_arguments_have_two_names(name: str) -> None:
    assert decode_chat(chat_body(**{name: {"enable_thinking": False}})).template_args == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_tokens": 0}, "max_tokens", "out_of_range"),
        ({"max_tokens": -1}, "max_tokens", "out_of_range"),
        ({"max_tokens": 2**20 + 1}, "max_tokens", "out_of_range"),
        ({"max_tokens": 10**30}, "max_tokens", "out_of_range"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "out_of_range"),
        ({"temperature": 2.1}, "temperature", "out_of_range"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "out_of_range"),
        ({"top_k": -2}, "top_k", "out_of_range"),
        ({"min_p": 2}, "min_p", "out_of_range"),
        ({"repetition_penalty": 0}, "repetition_penalty", "out_of_range"),
        ({"frequency_penalty": -3}, "frequency_penalty", "out_of_range"),
        ({"presence_penalty": 3}, "presence_penalty", "out_of_range"),
        ({"seed": 2**63}, "seed", "out_of_range"),
        ({"n": 0}, "n", "out_of_range"),
        ({"n": 129}, "n", "out_of_range"),
        ({"n": 2, "temperature": 0}, "n", "conflicting_fields"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "out_of_range"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": "x"}}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"1": 200}}, "logit_bias.1", "out_of_range"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stop": []}, "stop", "out_of_range"),
        ({"stop": ""}, "stop", "out_of_range"),
        ({"stop": ["x"] * 33}, "stop", "out_of_range"),
        ({"stop": [""]}, "stop[0]", "out_of_range"),
        ({"stop": ["x", 5]}, "stop[1]", "invalid_type"),
        ({"stream": 1}, "stream", "invalid_type"),
        ({"stream_options": {}}, "stream_options", "conflicting_fields"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"user": ""}, "user", "out_of_range"),
        ({"service_tier": "bogus"}, "service_tier", "invalid_value"),
        ({"reasoning_effort": "bogus"}, "reasoning_effort", "invalid_value"),
        ({"thinking": {"type": "x"}}, "thinking.type", "invalid_value"),
        ({"response_format": {}}, "response_format.type", "missing_field"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_field"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
            "missing_field",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex", "conflicting_fields"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format", "conflicting_fields"),
        ({"guided_regex": "a", "tools": [WEATHER], "tool_choice": "required"}, "tool_choice", "conflicting_fields"),
        ({"guided_choice": []}, "guided_choice", "out_of_range"),
        ({"guided_json": {"maximum": 10**30}}, "guided_json.maximum", "out_of_range"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"maximum": 10**30}}}},
            "response_format.json_schema.schema.maximum",
            "out_of_range",
        ),
        ({"continue_final_message": True}, "continue_final_message", "conflicting_fields"),
        ({"chat_template_args": {}, "chat_template_kwargs": {}}, "chat_template_kwargs", "duplicate_field"),
        ({"nvext": "x"}, "nvext", "invalid_type"),
        ({"nvext": {"ignore_eos": True}}, "nvext.ignore_eos", "unsupported_field"),
        ({"nvext": {"agent_hints": {"osl": -1}}}, "nvext.agent_hints.osl", "out_of_range"),
        ({"nvext": {"backend_instance_id": 2**64}}, "nvext.backend_instance_id", "out_of_range"),
        ({"tools": []}, "tools", "out_of_range"),
        ({"tools": 5}, "tools", "invalid_type"),
        ({"tools": [5]}, "tools[0]", "invalid_type"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_field"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_field"),
        (
            {"tools": [WEATHER, {"type": "function", "function": {"name": "a b"}}]},
            "tools[1].function.name",
            "invalid_value",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
            "tools[0].function.parameters",
            "invalid_type",
        ),
        ({"tool_choice": "required"}, "tool_choice", "conflicting_fields"),
        ({"tool_choice": "bogus", "tools": [WEATHER]}, "tool_choice", "invalid_value"),
        ({"tool_choice": {}, "tools": [WEATHER]}, "tool_choice", "invalid_type"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "nope"}}, "tools": [WEATHER]},
            "tool_choice.function.name",
            "invalid_value",
        ),
        ({"model": ""}, "model", "out_of_range"),
        ({"model": 5}, "model", "invalid_type"),
        ({"messages": []}, "messages", "out_of_range"),
        ({"messages": "hi"}, "messages", "invalid_type"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = chat_error(**fields)
    assert (error.param, error.code) == (param, code)
    assert param.split(".")[0].split("[")[0] in error.message


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        (5, "messages[1]", "invalid_type"),
        ({"content": "x"}, "messages[1].role", "missing_field"),
        ({"role": "bogus", "content": "x"}, "messages[1].role", "invalid_value"),
        ({"role": ["user"], "content": "x"}, "messages[1].role", "invalid_value"),
        ({"role": "user"}, "messages[1].content", "invalid_type"),
        ({"role": "user", "content": None}, "messages[1].content", "invalid_type"),
        ({"role": "user", "content": 5}, "messages[1].content", "invalid_type"),
        ({"role": "user", "content": []}, "messages[1].content", "out_of_range"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0]", "invalid_type"),
        ({"role": "user", "content": [{"type": "zzz"}]}, "messages[1].content[0].type", "invalid_value"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text", "missing_field"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            "messages[1].content[0].image_url",
            "invalid_type",
        ),
        ({"role": "user", "content": "x", "name": 5}, "messages[1].name", "invalid_type"),
        ({"role": "system", "content": None}, "messages[1].content", "invalid_type"),
        ({"role": "assistant", "content": 5}, "messages[1].content", "invalid_type"),
        ({"role": "assistant", "tool_calls": 5}, "messages[1].tool_calls", "invalid_type"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0].id", "missing_field"),
        (assistant_call("{"), "messages[1].tool_calls[0].function.arguments", "invalid_value"),
        (assistant_call("[]"), "messages[1].tool_calls[0].function.arguments", "invalid_value"),
        (assistant_call(5), "messages[1].tool_calls[0].function.arguments", "invalid_type"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id", "missing_field"),
        ({"role": "tool", "tool_call_id": "c", "content": None}, "messages[1].content", "invalid_type"),
        ({"role": "function", "content": "x"}, "messages[1].name", "missing_field"),
    ],
)
def test_a_bad_message_is_named(message: Any, param: str, code: str) -> None:
    error = chat_error(messages=[USER, message])
    assert (error.param, error.code) == (param, code)
    assert param in error.message or param.rpartition(".")[0] in error.message


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "x"},
        {"role": "system", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": ""},
        {"role": "user", "content": "x", "name": "ann", "unheard_of": 1},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "assistant"},
        {"role": "assistant", "content": []},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": "x", "tool_calls": None, "reasoning_content": "hm"},
        assistant_call('{"city":"x"}'),
        assistant_call(""),
        assistant_call({"city": "x"}),
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]},
        {"role": "function", "name": "f", "content": None},
    ],
)
def test_good_messages_pass(message: dict[str, Any]) -> None:
    assert decode_chat(chat_body(messages=[USER, message])).messages[1] == message


def test_a_text_model_takes_no_pictures() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    request = decode_chat(chat_body(messages=[USER, {"role": "user", "content": parts}]))
    with pytest.raises(InvalidRequest) as caught:
        reject_media(request.messages)
    assert caught.value.param == "messages[1].content[1]"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"   ", "empty"),
        (b'{"model":', "byte 9"),
        (b'{"model":"a"', "byte 12"),
        (b'{"model":"a",}', "byte 13"),
        (chat_body() + b" x", "near byte"),
        (b'{"model":"a","messages":@}', "byte 24"),
        (b'{"model":"\xff"}', "byte 10"),
        (b'{"model":"a","messages":[{"\xff":1}]}', "byte 27"),
        (b'{"model":"a\\ud800","messages":[]}', "byte 17"),
        (b'{"model":"a","messages":[{"a":' + b"[" * 100_000, "nested too deeply"),
        (b"\x1f\x8b\x08\x00", "byte 1"),
    ],
)
def test_malformed_json_is_placed(body: bytes, words: str) -> None:
    error = malformed(body)
    assert (error.param, error.code) == (None, "invalid_json")
    assert words in error.message


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"5"])
def test_a_body_is_an_object(body: bytes) -> None:
    error = malformed(body)
    assert (error.param, error.code) == (None, "invalid_type")
    assert "The body must be an object" in error.message


def test_a_number_too_large_for_json_readers_is_refused() -> None:
    error = malformed(b'{"model":"a","messages":[{"role":"user","content":1e999}]}')
    assert (error.param, error.code) == ("messages[0]", "out_of_range")


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_is_missing_is_named(missing: str) -> None:
    fields = {"model": "m", "messages": [USER]}
    del fields[missing]
    error = malformed(json.dumps(fields).encode())
    assert (error.param, error.code) == (missing, "missing_field")


@pytest.mark.parametrize("name", ["model", "mod\\u0065l"])
def test_a_name_given_twice_is_refused(name: str) -> None:
    error = malformed(f'{{"model":"a","{name}":"b","messages":[{json.dumps(USER)}]}}'.encode())
    assert (error.param, error.code) == ("model", "duplicate_field")


def test_names_inside_values_are_no_duplicates() -> None:
    tool = {"type": "function", "function": {"name": "model", "parameters": {"model": {}, "messages": {}}}}
    assert decode_chat(chat_body(tools=[tool, WEATHER])).unknown_fields == ()


def test_unknown_fields_are_kept_for_the_log_unless_refused() -> None:
    body = chat_body(best_of_n=1, tempurature=1)
    assert decode_chat(body).unknown_fields == ("best_of_n", "tempurature")
    assert decode_chat(body, RequestPolicy(unknown_fields="ignore")).unknown_fields == ()
    with pytest.raises(InvalidRequest, match="best_of_n") as caught:
        decode_chat(body, RequestPolicy(unknown_fields="reject"))
    assert caught.value.code == "unsupported_field"
    with pytest.raises(InvalidRequest, match="Did you mean temperature"):
        decode_chat(chat_body(tempurature=1), RequestPolicy(unknown_fields="reject"))


def test_a_client_cannot_set_what_the_gateway_notes() -> None:
    assert decode_chat(chat_body(unknown_fields=["x"])).unknown_fields == ("unknown_fields",)


@pytest.mark.parametrize("field", ["messages", "temperature", "stop", "logit_bias", "tools", "nvext", "thinking"])
def test_no_words_of_the_decoder_reach_the_client(field: str) -> None:
    message = chat_error(**{field: 1.5 if field != "temperature" else [1]}).message
    assert "`" not in message
    assert "$" not in message


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Hello", ["Hello"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_shapes_of_a_prompt(prompt: Any, prompts: Any) -> None:
    assert decode_completion(completion_body(prompt=prompt)).prompts == prompts


@pytest.mark.parametrize(
    "prompt", ["", [], [""], [[]], ["a", 1], [1, "a"], [1, [2]], [[1], "a"], [-1], [2**32], [1.5], {}, 5, None]
)
def test_prompts_that_are_none(prompt: Any) -> None:
    error = completion_error(prompt=prompt)
    assert error.param is not None
    assert error.param.startswith("prompt")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"best_of": 21}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"echo": "x"}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"prompt": [1, 2], "stream": "x"}, "stream"),
        ({"prompt": [[1, 2]], "temperature": 9}, "temperature"),
    ],
)
def test_a_bad_field_of_a_completion_is_named(fields: dict[str, Any], param: str) -> None:
    assert completion_error(**fields).param == param


def test_every_named_param_can_be_encoded() -> None:
    error = chat_error(messages=[USER, {"role": {"a": "é" * 100}}])
    assert msgspec.json.encode({"message": error.message, "param": error.param})
    assert len(error.message) < 300


def test_without_nvext_only_its_salt_is_left() -> None:
    policy = RequestPolicy(takes_nvext=False)
    fields = {"cache_salt": "s", "agent_hints": {"priority": 1}, "extra_fields": ["timing"]}
    request = decode_chat(chat_body(nvext=fields), policy)
    assert msgspec.to_builtins(request.nvext) == {"cache_salt": "s"}
    assert decode_chat(chat_body(nvext={"extra_fields": ["timing"]}), policy).nvext is None


@pytest.mark.parametrize("options", [None, {"continuous_usage_stats": True}])
def test_usage_can_be_forced_on_streams(options: dict[str, bool] | None) -> None:
    policy = RequestPolicy(forces_usage=True)
    for request in (
        decode_chat(chat_body(stream=True, stream_options=options), policy),
        decode_completion(completion_body(stream=True, stream_options=options), policy),
    ):
        assert request.include_usage
        assert request.continuous_usage_stats == bool(options)
    assert decode_chat(chat_body(), policy).stream_options is None


def test_a_template_is_taken_from_a_request_only_where_that_is_allowed() -> None:
    error = chat_error(chat_template="{{ 1 }}")
    assert (error.param, error.code) == ("chat_template", "unsupported_field")
    assert "--trust-request-chat-template" in error.message
    trusted = RequestPolicy(trusts_chat_templates=True)
    assert decode_chat(chat_body(chat_template="{{ 1 }}"), trusted).chat_template == "{{ 1 }}"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"documents": [{"a": 1}], "verbosity": "low"}, {"documents": [{"a": 1}], "verbosity": "low"}),
        ({"verbosity": "low", "chat_template_kwargs": {"verbosity": "high"}}, {"verbosity": "high"}),
        ({"thinking": True}, {"enable_thinking": True, "thinking": True, "thinking_mode": "enabled"}),
        (
            {"reasoning_effort": "none"},
            {"reasoning_effort": "none", "enable_thinking": False, "thinking": False, "thinking_mode": "disabled"},
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "max"}},
            {"reasoning_effort": "low", "enable_thinking": False, "thinking": False, "thinking_mode": "disabled"},
        ),
        (
            {"reasoning_effort": "high", "thinking": {"type": "adaptive"}},
            {"reasoning_effort": "high", "thinking_mode": "adaptive"},
        ),
    ],
)
def test_what_a_template_is_told_is_what_dynamo_tells_it(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert decode_chat(chat_body(**fields)).template_args == expected


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "out_of_range"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "out_of_range"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"request_id": "two words"}, "request_id", "out_of_range"),
        ({"bad_words": ["a"] * 257}, "bad_words", "out_of_range"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_value"),
        ({"modalities": ["smell"]}, "modalities[0]", "invalid_value"),
        (
            {"chat_template_kwargs": {"chat_template": "x"}},
            "chat_template_kwargs.chat_template",
            "unsupported_field",
        ),
        ({"n": 2, "nvext": {"extra_fields": ["completion_token_ids"]}}, "nvext.extra_fields", "conflicting_fields"),
    ],
)
def test_a_bad_vendor_field_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = chat_error(**fields)
    assert (error.param, error.code) == (param, code)


def test_a_form_is_said_as_it_is() -> None:
    assert chat_error(request_id="two words").message.startswith("request_id must be a string of the form ^[")


def test_neutral_values_of_refused_fields_are_taken() -> None:
    decode_completion(completion_body(use_beam_search=False, length_penalty=1, suffix="", lora_request=None))
