"""What answers tell besides text: token ids, logprobs of the prompt, why they stopped, and the prompt itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from dynamo.shared.messages import Placed
from tests.support.served_acceptor import MODEL, HttpAnswer
from tests.support.stage import CHAT, WORKER, Stage, open_stage

COMPLETIONS = "/v1/completions"
PROMPT = [5, 6]
OF_PROMPT = [None, {"6": {"logprob": -2.0, "rank": 3}, "7": {"logprob": 0.0, "rank": 1, "decoded_token": "(!"}}]
EARLY: list[dict[str, Any]] = [
    {"token_ids": [300], "engine_data": {"prompt_logprobs": OF_PROMPT, "routed_experts": {"data": "QQ=="}}},
    {"token_ids": [301], "engine_data": {"b": 2}},
    {"token_ids": [302], "finish_reason": "stop", "stop_reason": 302},
]
LATE: list[dict[str, Any]] = [
    {"token_ids": [300], "log_probs": [-0.25]},
    {"token_ids": [302], "log_probs": [-0.5], "finish_reason": "stop", "engine_data": {"prompt_logprobs": OF_PROMPT}},
]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path_factory.mktemp("stage")) as stage:
        stage.router.answer = lambda place: Placed(place.request_id, WORKER, "set", 0)
        yield stage


async def ask(
    stage: Stage,
    path: str,
    items: list[dict[str, Any]] = EARLY,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> HttpAnswer:
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": PROMPT}
    asked = asyncio.create_task(stage.acceptor.ask("POST", path, {"model": MODEL} | prompt | fields, headers))
    for _ in range(fields.get("n", 1)):
        call = await stage.worker.next_call()
        call.ack()
        await call.call_home()
        call.prologue()
        for item in items:
            call.item(data=item)
        call.complete()
    return await asked


def chunks(answer: HttpAnswer) -> list[dict[str, Any]]:
    lines = answer.body.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def extra(*fields: str) -> dict[str, Any]:
    return {"nvext": {"extra_fields": list(fields)}}


async def test_extra_fields_of_a_whole_answer(stage: Stage) -> None:
    fields = ("completion_token_ids", "engine_data", "routed_experts", "prompt_logprobs", "stop_reason", "token_ids")
    answer = await ask(stage, COMPLETIONS, **extra(*fields))
    assert answer.json["nvext"] == {
        "token_ids": PROMPT,
        "completion_token_ids": [300, 301, 302],
        "routed_experts": {"data": "QQ=="},
        "engine_data": {"b": 2},
        "stop_reason": 302,
        "prompt_logprobs": OF_PROMPT,
    }
    assert answer.json["choices"][0]["stop_reason"] == 302


async def test_extra_fields_of_a_stream_are_told_once(stage: Stage) -> None:
    fields = ("completion_token_ids", "engine_data", "prompt_logprobs", "stop_reason", "formatted_prompt", "request_id")
    told = [
        chunk["nvext"] for chunk in chunks(await ask(stage, CHAT, stream=True, **extra(*fields))) if "nvext" in chunk
    ]
    assert [token_id for nvext in told for token_id in nvext.get("completion_token_ids", ())] == [300, 301, 302]
    assert told[0]["formatted_prompt"].endswith("<|im_start|>assistant\n")
    assert all(set(nvext) <= {"completion_token_ids", "engine_data"} for nvext in told[1:-1])
    assert (told[-1]["stop_reason"], told[-1]["prompt_logprobs"]) == (302, OF_PROMPT)


async def test_fields_of_which_nothing_is_known_are_left_out(stage: Stage) -> None:
    answer = await ask(
        stage, CHAT, [{"token_ids": [300], "finish_reason": "length"}], **extra("engine_data", "stop_reason")
    )
    assert "nvext" not in answer.json


async def test_ids_of_several_choices_have_no_place_in_nvext(stage: Stage) -> None:
    body = {"model": MODEL, "prompt": ["a", "b"]} | extra("completion_token_ids")
    answer = await stage.acceptor.ask("POST", COMPLETIONS, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "nvext.extra_fields")


async def test_token_ids_are_where_vllm_has_them(stage: Stage) -> None:
    answer = (await ask(stage, COMPLETIONS, return_token_ids=True, n=2)).json
    for choice in answer["choices"]:
        assert (choice["prompt_token_ids"], choice["token_ids"]) == (PROMPT, [300, 301, 302])
    chat = (await ask(stage, CHAT, return_token_ids=True)).json
    assert chat["choices"][0]["token_ids"] == [300, 301, 302]
    assert chat["prompt_token_ids"][0] == 16376


async def test_token_ids_in_streams(stage: Stage) -> None:
    told = chunks(await ask(stage, COMPLETIONS, stream=True, return_token_ids=True))
    assert told[0]["choices"][0]["prompt_token_ids"] == PROMPT
    assert [i for chunk in told for i in chunk["choices"][0].get("token_ids", ())] == [300, 301, 302]
    assert all("prompt_token_ids" not in chunk["choices"][0] for chunk in told[1:])
    told = chunks(await ask(stage, CHAT, stream=True, return_token_ids=True))
    assert told[0]["prompt_token_ids"][0] == 16376
    assert [i for chunk in told for i in chunk["choices"][0].get("token_ids", ())] == [300, 301, 302]


async def test_prompt_logprobs_are_where_vllm_has_them(stage: Stage) -> None:
    assert (await ask(stage, CHAT, prompt_logprobs=1)).json["prompt_logprobs"] == OF_PROMPT
    assert (await ask(stage, COMPLETIONS, prompt_logprobs=1)).json["choices"][0]["prompt_logprobs"] == OF_PROMPT


@pytest.mark.parametrize("items", [EARLY, LATE], ids=["first", "last"])
async def test_an_echo_has_the_logprobs_of_the_prompt_whenever_they_come(
    stage: Stage, items: list[dict[str, Any]]
) -> None:
    (choice,) = (await ask(stage, COMPLETIONS, items, echo=True, logprobs=2)).json["choices"]
    assert choice["text"].startswith("&' self")
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][:2] == ["&", "'"]
    assert logprobs["token_logprobs"][:2] == [None, -2]
    assert logprobs["top_logprobs"][:2] == [None, {"'": -2, "(!": 0}]
    assert logprobs["text_offset"][:2] == [0, 1]


async def test_an_echo_without_logprobs_is_text(stage: Stage) -> None:
    (choice,) = (await ask(stage, COMPLETIONS, echo=True, prompt="Once")).json["choices"]
    assert choice["text"].startswith("Once self")
    assert "logprobs" not in choice
    told = chunks(await ask(stage, COMPLETIONS, echo=True, prompt="Once", stream=True))
    assert told[0]["choices"][0]["text"].startswith("Once")


async def test_logprobs_of_a_streamed_echo_are_null_until_they_are_known(stage: Stage) -> None:
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "echo": True, "logprobs": 0, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(*stage.acceptor.address)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    call = await stage.worker.next_call()
    call.ack()
    await call.call_home()
    call.prologue()
    call.item(data=LATE[0])
    first = (await reader.readuntil(b"}\n\n")).decode()
    call.item(data=LATE[1])
    call.complete()
    last = (await reader.readuntil(b"data: [DONE]")).decode()
    writer.close()
    (choice,) = json.loads(first[first.index("data: ") + 6 :])["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, None, -0.25]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert '"text_offset":[7]' in last


async def test_a_chat_echoes_what_it_continues(stage: Stage) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]
    fields: dict[str, Any] = {
        "messages": messages,
        "echo": True,
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    assert (await ask(stage, CHAT, **fields)).json["choices"][0]["message"]["content"].startswith("Well, self")


async def test_tokens_are_named_by_their_ids(stage: Stage) -> None:
    fields: dict[str, Any] = {"logprobs": True, "return_tokens_as_token_ids": True}
    (choice,) = (await ask(stage, CHAT, LATE, **fields)).json["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["token_id:300", "token_id:302"]
    assert [entry["token_id"] for entry in choice["logprobs"]["content"]] == [300, 302]


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"logprobs": True, "top_logprobs": 2}], ids=str)
async def test_logprobs_are_null_where_the_worker_tells_none(stage: Stage, fields: dict[str, Any]) -> None:
    (choice,) = (await ask(stage, CHAT, EARLY, **fields)).json["choices"]
    assert choice["logprobs"] is None


async def test_annotations_are_events_that_strict_readers_do_not_see(stage: Stage) -> None:
    asked = {"annotations": ["formatted_prompt", "token_ids", "request_id", "llm_metrics", "unknown"]}
    answer = await ask(stage, CHAT, stream=True, nvext=asked)
    events = answer.body.decode().split("\n\n")
    names = [event.split("\n")[0] for event in events[:4]]
    assert names[:3] == ["event: request_id", "event: token_ids", "event: formatted_prompt"]
    values = [json.loads(event.split("\n: ")[1]) for event in events[:3]]
    assert chunks(answer)[0]["id"] == f"chatcmpl-{values[0]}"
    assert json.loads(values[1])[0] == 16376
    assert values[2].endswith("assistant\n")
    assert names[3].startswith("data: ")
    assert "event: " not in "".join(events[3:])


async def test_each_prompt_of_a_batch_is_annotated(stage: Stage) -> None:
    asked = {"annotations": ["token_ids"]}
    body = {"model": MODEL, "prompt": [[5], [6]], "n": 1, "stream": True, "nvext": asked}
    running = asyncio.create_task(stage.acceptor.ask("POST", COMPLETIONS, body))
    for _ in range(2):
        call = await stage.worker.next_call()
        call.ack()
        await call.call_home()
        call.prologue()
        call.tokens(300, finish_reason="stop")
        call.complete()
    text = (await running).body.decode()
    assert text.startswith('event: token_ids\n: "[5]"\n\nevent: token_ids\n: "[6]"\n\ndata: ')


async def test_the_client_names_the_answer(stage: Stage) -> None:
    uuid = "4B1F9F3E-0000-4000-8000-000000000001"
    answer = await ask(stage, CHAT, headers={"x-dynamo-request-id": uuid})
    assert answer.json["id"] == f"chatcmpl-{uuid.lower()}"
    assert (await ask(stage, COMPLETIONS, request_id="mine")).json["id"] == "cmpl-mine"
    refused = await stage.acceptor.ask(
        "POST", CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}, {"x-dynamo-request-id": "mine"}
    )
    assert (refused.status, refused.json["error"]["param"]) == (400, "x-dynamo-request-id")


async def test_usage_has_what_the_worker_counts(stage: Stage) -> None:
    usage = {"completion_tokens_details": {"reasoning_tokens": 2}, "prompt_tokens_details": {"cached_tokens": 1}}
    items = [{"token_ids": [300, 301, 302], "finish_reason": "stop", "completion_usage": usage}]
    told = (await ask(stage, COMPLETIONS, items)).json["usage"]
    assert told["completion_tokens_details"]["reasoning_tokens"] == 2
    assert told["prompt_tokens_details"]["cached_tokens"] == 1
    assert (told["prompt_tokens"], told["completion_tokens"]) == (2, 3)


async def test_usage_so_far_is_in_every_chunk(stage: Stage) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    told = chunks(await ask(stage, CHAT, stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in told]
    assert counts == sorted(counts)
    assert (counts[-1], told[-1]["choices"]) == (3, [])


async def test_logprobs_are_those_of_the_prompt_alone(stage: Stage) -> None:
    longer = {"prompt_logprobs": [*OF_PROMPT, {"300": {"logprob": -0.5}}]}
    items = [{"token_ids": [300], "finish_reason": "stop", "engine_data": longer}]
    (choice,) = (await ask(stage, COMPLETIONS, items, prompt_logprobs=1)).json["choices"]
    assert choice["prompt_logprobs"] == OF_PROMPT


@pytest.mark.parametrize("data", [5, {"prompt_logprobs": 5}, {"prompt_logprobs": [5, {"6": 5}]}], ids=str)
async def test_nonsense_of_a_worker_is_no_harm(stage: Stage, data: Any) -> None:
    items = [{"token_ids": [300], "finish_reason": "stop", "engine_data": data}]
    answer = await ask(stage, COMPLETIONS, items, echo=True, logprobs=1, **extra("engine_data", "prompt_logprobs"))
    assert answer.status == 200
