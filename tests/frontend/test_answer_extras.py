"""What answers tell of how they were served, to who asks; every byte from router and worker is the test's."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo.shared.messages import Explain, Explained, Free, Place, Placed, Receipt, Refused
from tests.support.scripted_router import Question
from tests.support.served_acceptor import MODEL, HttpAnswer
from tests.support.stage import CHAT, WORKER, Stage, open_stage

PROMPT = "Tell me about the sea, and tell me more than you told me yesterday, when we spoke of it."
MESSAGES = [{"role": "user", "content": PROMPT}]
RECEIPT = Receipt(
    "cost",
    num_candidates=2,
    request_blocks=3,
    device_blocks=1,
    host_blocks=1,
    cost=2.5,
    runner_up=0xAB,
    runner_up_dp_rank=3,
    runner_up_cost=9.0,
    queue_wait_ms=1.5,
)
IDS = {"prefill_worker_id": WORKER, "prefill_dp_rank": 0, "decode_worker_id": WORKER, "decode_dp_rank": 0}
ROUTE = (
    "worker=1f; rank=0; reason=cost; device=1; host=1; disk=0; blocks=3; cost=2.5; runner_up=ab; runner_up_cost=9; "
    "queue_ms=1.5; predicted=32"
)
ASKS_FOR_ROUTE = {"x-dynamo-route-receipt": "true"}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path) as stage:
        stage.router.answer = lambda place: Placed(place.request_id, WORKER, "set", 0, 1, receipt=RECEIPT)
        yield stage


def chunks(answer: HttpAnswer) -> list[dict[str, Any]]:
    lines = answer.body.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def extra(*fields: str) -> dict[str, Any]:
    return {"nvext": {"extra_fields": list(fields)}}


async def test_nobody_is_told_who_does_not_ask(stage: Stage) -> None:
    for body in ({"messages": MESSAGES}, {"messages": MESSAGES, "nvext": {"extra_fields": ["stop_reason"]}}):
        answer = await stage.ask(body, {"x-dynamo-route-receipt": "false"})
        assert "nvext" not in answer.json
        assert "x-dynamo-route" not in answer.headers
    assert [p.hints for p in stage.router.heard if isinstance(p, Place) and p.hints and p.hints.wants_receipt] == []


async def test_the_route_is_a_header_of_a_whole_answer(stage: Stage) -> None:
    answer = await stage.ask({"messages": MESSAGES}, ASKS_FOR_ROUTE)
    assert answer.headers["x-dynamo-route"] == f"{ROUTE}; cached=16"
    assert "nvext" not in answer.json
    (place,) = [message for message in stage.router.heard if isinstance(message, Place)]
    assert place.hints is not None
    assert place.hints.wants_receipt


async def test_the_route_is_two_comments_in_a_stream(stage: Stage) -> None:
    answer = await stage.ask({"messages": MESSAGES, "stream": True}, ASKS_FOR_ROUTE)
    events = answer.body.decode().split("\n\n")
    assert events[0].startswith("data: {")
    assert events[1].startswith(f": x-dynamo-route {ROUTE}")
    assert events[-3:] == [f": x-dynamo-route {ROUTE}; cached=16", "data: [DONE]", ""]
    assert all("nvext" not in chunk for chunk in chunks(answer))


async def test_the_receipt_in_a_body(stage: Stage) -> None:
    answer = await stage.ask({"messages": MESSAGES} | extra("route_receipt"))
    assert answer.json["nvext"] == {
        "route_receipt": {
            "worker_id": WORKER,
            "worker": "1f",
            "dp_rank": 0,
            "reason": "cost",
            "num_candidates": 2,
            "request_blocks": 3,
            "matched_blocks": {"device": 1, "host": 1, "disk": 0, "external": 0},
            "predicted_cached_tokens": 32,
            "cached_tokens": 16,
            "cost": 2.5,
            "runner_up": {"worker_id": 0xAB, "worker": "ab", "dp_rank": 3, "cost": 9.0},
            "queue_wait_ms": 1.5,
            "policy": "",
            "num_migrations": 0,
        }
    }
    assert "x-dynamo-route" not in answer.headers


async def test_extra_fields_in_a_stream(stage: Stage) -> None:
    body = {"prompt": PROMPT, "stream": True} | extra("worker_id", "timing", "route_receipt", "unheard_of")
    told = [chunk["nvext"] for chunk in chunks(await stage.ask(body, path="/v1/completions"))]
    assert told[:-1] == [{"worker_id": IDS}] * (len(told) - 1)
    assert list(told[-1]) == ["worker_id", "timing", "route_receipt"]
    assert told[-1]["route_receipt"]["cached_tokens"] == 16


async def test_the_usage_chunk_tells_nothing_of_the_route(stage: Stage) -> None:
    body = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}} | extra("worker_id")
    *before, usage = chunks(await stage.ask(body))
    assert usage["choices"] == []
    assert "nvext" not in usage
    assert all(chunk["nvext"] == {"worker_id": IDS} for chunk in before)


async def test_timing_adds_up(stage: Stage) -> None:
    answer = await stage.ask({"messages": MESSAGES} | extra("timing"))
    timing = answer.json["nvext"]["timing"]
    assert timing["prefill_wait_time_ms"] + timing["prefill_time_ms"] == pytest.approx(timing["ttft_ms"])
    assert 0 < timing["ttft_ms"] <= timing["total_time_ms"]
    assert timing["kv_hit_rate"] == pytest.approx(1 / 3)


async def test_without_a_rank_there_is_none(stage: Stage) -> None:
    stage.router.answer = lambda place: Placed(place.request_id, WORKER, "set", receipt=Receipt("mode", 1))
    answer = await stage.ask({"messages": MESSAGES} | extra("worker_id", "timing"), ASKS_FOR_ROUTE)
    assert answer.json["nvext"]["worker_id"] == {"prefill_worker_id": WORKER, "decode_worker_id": WORKER}
    assert "kv_hit_rate" not in answer.json["nvext"]["timing"]
    assert answer.headers["x-dynamo-route"].startswith("worker=1f; reason=mode; ")


async def test_a_request_placed_without_the_router_says_so(stage: Stage) -> None:
    stage.router.channel.close()
    answer = await stage.ask({"messages": MESSAGES} | extra("route_receipt"), ASKS_FOR_ROUTE)
    assert "reason=local" in answer.headers["x-dynamo-route"]
    assert answer.json["nvext"]["route_receipt"]["reason"] == "local"


# ---- dry runs


def place_of(question: Question) -> Place:
    assert isinstance(question, Explain)
    return question.place


def explained(question: Question) -> Explained:
    request_id = place_of(question).request_id
    return Explained(request_id, "placed", "set", 16, 4, Placed(request_id, WORKER, "set", 0, 1), [])


def dry(annotation: str = "query_instance_id:", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "nvext": {"annotations": [annotation]}} | more


async def test_a_dry_run_generates_nothing_and_reserves_nothing(stage: Stage) -> None:
    stage.router.answer_question = explained
    for annotation in ("query_instance_id:", "query_instance_id:me", "query_instance_id"):
        answer = await stage.acceptor.ask("POST", CHAT, dry(annotation))
        told = answer.json
        assert told.pop("nvext")["worker_id"] == IDS
        assert re.fullmatch(r"chatcmpl-[0-9a-f-]{36}", told.pop("id"))
        assert isinstance(told.pop("created"), int)
        assert told == {
            "choices": [
                {
                    "index": 0,
                    "message": {"content": None, "refusal": None, "role": "assistant"},
                    "finish_reason": None,
                    "logprobs": None,
                }
            ],
            "model": MODEL,
            "object": "chat.completion",
        }
    assert not any(isinstance(message, Place | Free) for message in stage.router.heard)
    assert stage.worker.num_connections == 0


async def test_a_dry_run_of_a_completion_tells_its_tokens(stage: Stage) -> None:
    stage.router.answer_question = explained
    body = {"model": MODEL, "prompt": [5, 6, 7], "nvext": {"annotations": ["query_instance_id:"]}}
    told = (await stage.acceptor.ask("POST", "/v1/completions", body)).json
    assert told["choices"] == [{"text": "", "index": 0}]
    assert told["usage"] is None
    assert told["nvext"] == {"worker_id": IDS, "token_ids": [5, 6, 7]}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_dry_run_in_a_stream_is_one_chunk(stage: Stage, path: str) -> None:
    stage.router.answer_question = explained
    prompt = {"messages": MESSAGES} if path == CHAT else {"prompt": PROMPT}
    body = {"model": MODEL, "stream": True, "nvext": {"annotations": ["query_instance_id:"]}} | prompt
    answer = await stage.acceptor.ask("POST", path, body)
    (chunk,) = chunks(answer)
    assert chunk["nvext"]["worker_id"] == IDS
    assert chunk["choices"] == (
        [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None, "logprobs": None}]
        if path == CHAT
        else [{"text": "", "index": 0}]
    )
    assert answer.body.endswith(b"\n\ndata: [DONE]\n\n")


async def test_a_dry_run_that_would_wait_or_be_refused(stage: Stage) -> None:
    stage.router.answer_question = lambda asked: Explained(place_of(asked).request_id, "queued", "set", 16, 4, None, [])
    assert (await stage.acceptor.ask("POST", CHAT, dry())).status == 529
    stage.router.answer_question = lambda asked: Refused(place_of(asked).request_id, "model_not_ready", "why")
    assert (await stage.acceptor.ask("POST", CHAT, dry(stream=True))).status == 503
    stage.router.channel.close()
    away = await stage.acceptor.ask("POST", CHAT, dry())
    assert (away.status, away.json["error"]["code"]) == (503, "router_away")
