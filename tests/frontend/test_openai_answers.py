"""Our bytes read by the official client's own types, and compared with what 1.6.1 sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model as OpenAIModel

from dynamo.frontend.openai_answers import (
    Alternative,
    Choice,
    Model,
    TokenLogprob,
    Usage,
    chat_response,
    completion_response,
    model_response,
    models_response,
)
from dynamo.frontend.openai_chunks import DONE, ChatStream, CompletionStream, Extra
from dynamo.frontend.parsers.message import ToolCallDelta
from dynamo.frontend.parsers.parts import Reasoning

USAGE = Usage(10, 4, cached_tokens=0)
CHAT_USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 4,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 0},
}
COMPLETION_USAGE = CHAT_USAGE | {"prompt_tokens_details": {"audio_tokens": None, "cached_tokens": 0}}
TOKENS = [
    TokenLogprob("é", -0.5, [195, 169], [Alternative("é", -0.5, [195, 169]), Alternative("e", -1.5, [101])], 100),
    TokenLogprob("ab", -0.25, [97, 98]),
]
CALL = ToolCallDelta(0, "c", "f", "{}")
NASTY = 'quote " backslash \\ newline \n nul \x00 é 日本 🎉 </script>'


def data_of(frame: bytes) -> Any:
    """The JSON of one server-sent event, which must be framed exactly so."""
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    assert frame.count(b"\n") == 2
    return json.loads(frame[6:])


def chat_chunk(frame: bytes) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate(data_of(frame), strict=True)


def completion_chunk(frame: bytes) -> Completion:
    """As in 1.6.1, finish_reason is left out until the end; the client does not validate chunks, so it is put back."""
    body = data_of(frame)
    for choice in body["choices"]:
        choice.setdefault("finish_reason", "stop")
    return Completion.model_validate(body, strict=True)


def chat_stream(index: int = 0) -> ChatStream:
    return ChatStream("chatcmpl-1", "org/test-model", 1795287986, index)


def completion_stream(index: int = 0) -> CompletionStream:
    return CompletionStream("cmpl-1", "org/test-model", 1795287986, index)


def test_first_chat_chunk_carries_the_role() -> None:
    body = data_of(chat_stream().first(" Un"))
    assert body == {
        "id": "chatcmpl-1",
        "choices": [
            {"index": 0, "delta": {"content": " Un", "role": "assistant"}, "finish_reason": None, "logprobs": None}
        ],
        "created": 1795287986,
        "model": "org/test-model",
        "object": "chat.completion.chunk",
    }


def test_later_chat_chunks_carry_text_alone() -> None:
    assert data_of(chat_stream(2).delta(NASTY))["choices"] == [
        {"index": 2, "delta": {"content": NASTY}, "finish_reason": None, "logprobs": None}
    ]


def test_chat_finish_has_an_empty_delta() -> None:
    assert data_of(chat_stream().finish("length"))["choices"] == [
        {"index": 0, "delta": {}, "finish_reason": "length", "logprobs": None}
    ]


def test_chat_usage_chunk_has_no_choices() -> None:
    body = data_of(chat_stream().usage(USAGE))
    assert (body["choices"], body["usage"]) == ([], CHAT_USAGE)


def test_chat_chunk_with_everything() -> None:
    frame = chat_stream().chunk(
        CALL,
        is_first=True,
        finish_reason="tool_calls",
        logprobs=TOKENS,
        usage=USAGE,
        extra=Extra(nvext={"worker_id": {"decode_worker_id": 1}}),
    )
    chunk = chat_chunk(frame)
    assert chunk.usage is not None
    assert chunk.usage.total_tokens == 14
    choice = chunk.choices[0]
    assert (choice.delta.role, choice.delta.content) == ("assistant", "")
    assert choice.delta.tool_calls is not None
    assert choice.delta.tool_calls[0].model_dump() == {
        "index": 0,
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [token.top_logprobs for token in choice.logprobs.content][1] == []
    assert data_of(frame)["choices"][0]["logprobs"]["content"][0]["token_id"] == 100
    assert data_of(frame)["nvext"] == {"worker_id": {"decode_worker_id": 1}}


@pytest.mark.parametrize("text", ["", " a", NASTY])
def test_every_chat_chunk_is_a_chunk_for_the_client(text: str) -> None:
    stream = chat_stream()
    assert chat_chunk(stream.first(text)).choices[0].delta.role == "assistant"
    assert chat_chunk(stream.delta(text)).choices[0].delta.content == text
    assert chat_chunk(stream.chunk(text)).choices[0].finish_reason is None
    assert chat_chunk(stream.finish("stop")).choices[0].finish_reason == "stop"
    assert chat_chunk(stream.usage(USAGE)).choices == []


def test_the_slow_way_says_the_same_as_the_fast() -> None:
    stream = chat_stream()
    assert data_of(stream.chunk("x", is_first=True)) == data_of(stream.first("x"))
    assert data_of(stream.chunk("x")) == data_of(stream.delta("x"))
    completion = completion_stream()
    assert data_of(completion.chunk("x", is_first=True)) == data_of(completion.first("x"))


def test_completion_chunks() -> None:
    stream = completion_stream(1)
    about = {
        "id": "cmpl-1",
        "created": 1795287986,
        "model": "org/test-model",
        "system_fingerprint": None,
        "object": "text_completion",
    }
    assert data_of(stream.delta("This")) == about | {"choices": [{"text": "This", "index": 1}], "usage": None}
    assert data_of(stream.finish("length")) == about | {
        "choices": [{"text": "", "index": 1, "finish_reason": "length"}],
        "usage": None,
    }
    assert data_of(stream.usage(USAGE)) == about | {"choices": [], "usage": COMPLETION_USAGE}
    assert data_of(stream.chunk("x", usage=USAGE))["usage"] == COMPLETION_USAGE


def test_every_completion_chunk_is_one_for_the_client() -> None:
    stream = completion_stream()
    assert completion_chunk(stream.first(NASTY)).choices[0].text == NASTY
    assert completion_chunk(stream.chunk("éab", logprobs=TOKENS)).choices[0].logprobs is not None
    assert completion_chunk(stream.finish("stop")).choices[0].finish_reason == "stop"
    assert completion_chunk(stream.usage(USAGE)).usage is not None


def test_offsets_continue_from_chunk_to_chunk() -> None:
    stream = completion_stream()
    first = data_of(stream.chunk("éab", logprobs=TOKENS))["choices"][0]["logprobs"]
    second = data_of(stream.chunk("éab", logprobs=TOKENS))["choices"][0]["logprobs"]
    assert first == {
        "tokens": ["é", "ab"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"é": -0.5, "e": -1.5}, {"ab": -0.25}],
        "text_offset": [0, 1],
    }
    assert second["text_offset"] == [3, 4]


def test_unary_chat() -> None:
    choices = [Choice(0, [NASTY], "stop", logprobs=TOKENS), Choice(1, [Reasoning("hm"), CALL], "tool_calls")]
    body = chat_response("chatcmpl-1", "m", 1795287985, choices, USAGE)
    assert json.loads(body)["usage"] == CHAT_USAGE
    assert json.loads(chat_response("chatcmpl-1", "m", 1, [Choice(0, ["hi"], "length")], USAGE))["choices"] == [
        {
            "index": 0,
            "message": {"content": "hi", "refusal": None, "role": "assistant"},
            "finish_reason": "length",
            "logprobs": None,
        }
    ]
    read = ChatCompletion.model_validate_json(body, strict=True)
    assert read.choices[0].message.content == NASTY
    assert read.choices[1].message.tool_calls is not None
    assert json.loads(body)["choices"][1]["message"] == {
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        "refusal": None,
        "role": "assistant",
        "reasoning_content": "hm",
    }


def test_parts_of_a_chat_message_in_a_stream() -> None:
    stream = ChatStream("c", "m", 1, reasoning_field="reasoning")

    def delta(frame: bytes) -> Any:
        return data_of(frame)["choices"][0]["delta"]

    assert delta(stream.part("x")) == {"content": "x"}
    assert delta(stream.part(Reasoning(NASTY))) == {"reasoning": NASTY}
    assert delta(stream.chunk(Reasoning("r"))) == {"reasoning": "r"}
    assert delta(stream.part(ToolCallDelta(1, arguments="{"))) == {
        "tool_calls": [{"index": 1, "function": {"arguments": "{"}}]
    }


def test_unary_completion() -> None:
    body = completion_response(
        "cmpl-1", "m", 1795287985, [Choice(0, ["hi"], "length"), Choice(1, ["éab"], "stop", None, TOKENS)], USAGE
    )
    assert json.loads(body)["usage"] == COMPLETION_USAGE
    assert json.loads(body)["choices"][0] == {"text": "hi", "index": 0, "finish_reason": "length"}
    read = Completion.model_validate_json(body, strict=True)
    assert read.choices[1].logprobs is not None
    assert read.choices[1].logprobs.text_offset == [0, 1]


def test_nvext_is_added_when_given() -> None:
    nvext = {"worker_id": {"decode_worker_id": 2**64 - 1}}
    for render in (chat_response, completion_response):
        assert json.loads(render("x", "m", 1, [Choice(0, [], "stop")], USAGE, nvext))["nvext"] == nvext
        assert "nvext" not in json.loads(render("x", "m", 1, [Choice(0, [], "stop")], USAGE))


def test_usage_leaves_out_what_nobody_counted() -> None:
    bare = json.loads(chat_response("x", "m", 1, [], Usage(1, 2)))["usage"]
    assert bare == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    thought = json.loads(chat_response("x", "m", 1, [], Usage(1, 2, 0, reasoning_tokens=1)))["usage"]
    assert thought["completion_tokens_details"] == {"reasoning_tokens": 1}


def test_models() -> None:
    model = Model(id="org/m", created=7, context_window=4096)
    listed = json.loads(models_response([model]))
    assert listed["object"] == "list"
    assert listed["data"] == [json.loads(model_response(model))]
    assert OpenAIModel.model_validate(listed["data"][0], strict=True).id == "org/m"


def test_the_end_of_a_stream() -> None:
    assert DONE == b"data: [DONE]\n\n"
