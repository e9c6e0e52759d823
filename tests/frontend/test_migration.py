"""Requests that lose their worker in mid-answer: what the next worker is asked, and what the client sees.

The router and every byte of the workers are the test's; the acceptor between them is real.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tokenizers import Tokenizer

from dynamo.frontend.migration import MAX_DISPATCH_ATTEMPTS
from dynamo.shared.hashing import packed_sequence_hashes
from dynamo.shared.messages import Free, Place, Placed, Refused, Settings, Worker, WorkerFailed
from tests.support.raw_worker import PATH, Call, RawWorker, raw_worker
from tests.support.scripted_router import ScriptedRouter
from tests.support.served_acceptor import DEMO_MODEL, MODEL, HttpAnswer, ServedAcceptor, demo_set, serve
from tests.support.waiting import until

PROMPT = list(range(300, 320))
OUTPUT = list(range(400, 406))


class Gateway:
    """One acceptor, and workers with the ids 1, 2, ... that the router hands out in this order."""

    def __init__(self, acceptor: ServedAcceptor, router: ScriptedRouter, workers: list[RawWorker]) -> None:
        self.router = router
        self.workers = workers
        self._acceptor = acceptor

    def chat(self, **fields: Any) -> asyncio.Task[HttpAnswer]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
        return asyncio.create_task(self._acceptor.ask("POST", "/v1/chat/completions", body))

    def complete(self, **fields: Any) -> asyncio.Task[HttpAnswer]:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": len(OUTPUT), **fields}
        return asyncio.create_task(self._acceptor.ask("POST", "/v1/completions", body))

    async def called(self, instance_id: int) -> Call:
        """The next call of this worker, accepted."""
        call = await self.offered(instance_id)
        call.ack()
        await call.call_home()
        call.prologue()
        return call

    async def offered(self, instance_id: int) -> Call:
        return await self.workers[instance_id - 1].next_call()

    async def metric(self, name: str, **labels: str) -> float:
        answer = await self._acceptor.ask("GET", "/metrics")
        lines = [line for line in answer.body.decode().splitlines() if line.startswith(name)]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in wanted))

    @property
    def places(self) -> list[Place]:
        return [message for message in self.router.heard if isinstance(message, Place)]


@asynccontextmanager
async def gateway(
    directory: Path, num_workers: int = 2, *, settings: Settings | None = None, **options: Any
) -> AsyncIterator[Gateway]:
    endpoint = f"ipc://{directory}/router.sock"
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(raw_worker()) for _ in range(num_workers)]
        ids = list(range(1, num_workers + 1))
        table = [Worker(i, worker.address, PATH, codec="msgpack") for i, worker in zip(ids, workers, strict=True)]
        router = ScriptedRouter(endpoint, table, [demo_set(ids)], settings)
        stack.callback(router.channel.close)
        router.answer = lambda place: Placed(
            place.request_id, place.instance_id or next(i for i in ids if i not in place.excluded), "set"
        )
        acceptor = await stack.enter_async_context(serve(endpoint, directory, **options))
        yield Gateway(acceptor, router, workers)


# ---- how a worker can fail in mid-answer

Fail: TypeAlias = Callable[[Call], None]


def die(call: Call) -> None:
    call.writer.transport.abort()


def fails_with(error_type: Any, klass: str | None = None) -> Fail:
    error = {"error_type": error_type, "message": "because"} | ({} if klass is None else {"class": klass})
    return lambda call: call.item(event="error", error=error)


MOVES = {
    "dies": (die, "worker_disconnected"),
    "drains": (fails_with({"Backend": "EngineShutdown"}, "Unavailable"), "worker_disconnected"),
    "loses its engine": (fails_with({"Backend": "StreamIncomplete"}), "worker_disconnected"),
    "is unavailable": (fails_with("Unavailable", "Unavailable"), "worker_unavailable"),
    "is at capacity": (fails_with("ResourceExhausted", "CapacityExhausted"), "overloaded"),
    "times out": (fails_with({"Backend": "ResponseTimeout"}), "worker_timeout"),
}
STAYS = {
    "finds fault": (fails_with({"Backend": "InvalidArgument"}, "InvalidRequest"), 400),
    "was cancelled": (fails_with({"Backend": "Cancelled"}, "Cancelled"), 503),
    "has a bug": (fails_with("Unknown", "Internal"), 500),
}


def text_of(answer: HttpAnswer) -> str:
    return "".join(choice["text"] for choice in answer.json["choices"])


async def unbroken(gateway: Gateway, **fields: Any) -> HttpAnswer:
    answer = gateway.complete(**fields)
    call = await gateway.called(1)
    call.tokens(*OUTPUT, finish_reason="length")
    call.complete()
    return await answer


@pytest.mark.parametrize("kind", MOVES)
async def test_another_worker_continues_where_one_failed(tmp_path: Path, kind: str) -> None:
    fail, reason = MOVES[kind]
    async with gateway(tmp_path) as gate:
        whole = await unbroken(gate, min_tokens=4)
        answer = gate.complete(min_tokens=4)
        first = await gate.called(1)
        first.tokens(*OUTPUT[:1])
        first.tokens(*OUTPUT[1:3])
        fail(first)
        second = await gate.called(2)
        second.tokens(*OUTPUT[3:], finish_reason="length")
        second.complete()

        moved = await answer
        assert (moved.status, moved.json["choices"], moved.json["usage"]) == (
            200,
            whole.json["choices"],
            whole.json["usage"],
        )
        assert first.request["token_ids"] == PROMPT
        assert second.request["token_ids"] == PROMPT + OUTPUT[:3]
        assert second.control.id == first.control.id
        stops = [call.request["stop_conditions"] for call in (first, second)]
        assert [(stop["max_tokens"], stop["min_tokens"]) for stop in stops] == [(6, 4), (3, 1)]
        assert {**first.request, "token_ids": 0, "stop_conditions": 0} == {
            **second.request,
            "token_ids": 0,
            "stop_conditions": 0,
        }
        assert [(place.excluded, place.num_tokens) for place in gate.places[1:]] == [([], 20), ([1], 23)]
        assert len({place.label for place in gate.places[1:]}) == 1
        name = "dynamo_frontend_model_migration"
        assert await gate.metric(f"{name}_total", migration_type="ongoing_request") == 1
        assert await gate.metric(f"{name}_reasons_total", reason=reason) == 1
        assert await gate.metric("dynamo_frontend_dispatch_retries_total") == 0


@pytest.mark.parametrize("kind", STAYS)
async def test_a_fault_that_another_worker_would_share_ends_the_answer(tmp_path: Path, kind: str) -> None:
    fail, status = STAYS[kind]
    async with gateway(tmp_path) as gate:
        answer = gate.complete()
        first = await gate.called(1)
        first.tokens(*OUTPUT[:3])
        fail(first)
        assert (await answer).status == status
        assert len(gate.places) == 1
        assert await gate.metric("dynamo_frontend_model_migration_exhausted_total") == 0


async def test_a_stream_goes_on_unbroken(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.complete(stream=True, logprobs=1, stream_options={"include_usage": True})
        first = await gate.called(1)
        first.tokens(*OUTPUT[:3], log_probs=[-0.5, -0.25, -0.125])
        die(first)
        second = await gate.called(2)
        usage = {"prompt_tokens": 23, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 23}}
        second.tokens(*OUTPUT[3:], log_probs=[-1, -2, -4], finish_reason="length", completion_usage=usage)
        second.complete()

        events = [line.removeprefix("data: ") for line in (await answer).body.decode().split("\n\n") if line]
        assert events.pop() == "[DONE]"
        *chunks, last = map(json.loads, events)
        assert len({chunk["id"] for chunk in chunks}) == 1
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert [choice["finish_reason"] for choice in choices if choice.get("finish_reason")] == ["length"]
        logprobs = [p for choice in choices if choice.get("logprobs") for p in choice["logprobs"]["token_logprobs"]]
        assert logprobs == [-0.5, -0.25, -0.125, -1, -2, -4]
        assert last["usage"]["prompt_tokens"] == 20
        assert last["usage"]["completion_tokens"] == 6
        assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 20  # no more than there were


async def test_a_stop_string_may_begin_at_one_worker_and_end_at_another(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        text = text_of(await unbroken(gate))
        answer = gate.complete(max_tokens=3, prompt=PROMPT)
        first = await gate.called(1)
        first.tokens(*OUTPUT[:3], finish_reason="length")
        first.complete()
        seam = len(text_of(await answer))

        answer = gate.complete(stop=[text[seam - 2 : seam + 2]])
        first = await gate.called(1)
        first.tokens(*OUTPUT[:3])
        die(first)
        second = await gate.called(2)
        second.tokens(*OUTPUT[3:])
        stopped = await answer
        assert text_of(stopped) == text[: text.index(text[seam - 2 : seam + 2])]
        assert stopped.json["choices"][0]["finish_reason"] == "stop"


async def test_a_worker_that_failed_before_its_first_token_is_replaced_too(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.complete()
        die(await gate.called(1))
        second = await gate.called(2)
        assert second.request["token_ids"] == PROMPT
        second.tokens(*OUTPUT, finish_reason="length")
        second.complete()
        assert (await answer).status == 200
        assert await gate.metric("dynamo_frontend_model_migration_total", migration_type="new_request") == 1
        failed = [message for message in gate.router.heard if isinstance(message, WorkerFailed)]
        assert [message.instance_id for message in failed] == [1]


async def test_limit_0_never_moves_what_was_begun(tmp_path: Path) -> None:
    async with gateway(tmp_path, migration_limit=0) as gate:
        for ids in ((), OUTPUT[:3], OUTPUT):
            answer = gate.complete()
            call = await gate.called(1)
            if ids:
                call.tokens(*ids)
            die(call)
            assert (await answer).json["error"]["code"] == "worker_disconnected"
        refused = gate.complete()
        (await gate.offered(1)).ack(b"Server overloaded: worker at capacity")
        call = await gate.called(2)
        call.tokens(*OUTPUT, finish_reason="length")
        call.complete()
        assert (await refused).status == 200


async def test_the_limit_is_a_limit(tmp_path: Path) -> None:
    async with gateway(tmp_path, num_workers=4, migration_limit=2) as gate:
        answer = gate.complete()
        for instance_id in (1, 2, 3):
            call = await gate.called(instance_id)
            call.tokens(OUTPUT[instance_id])
            die(call)
        failed = await answer
        assert (failed.status, failed.json["error"]["code"]) == (503, "worker_disconnected")
        assert call.request["token_ids"] == PROMPT + OUTPUT[1:3]
        assert await gate.metric("dynamo_frontend_model_migration_total") == 2
        assert await gate.metric("dynamo_frontend_model_migration_exhausted_total") == 1


async def test_nobody_is_left_to_ask(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.complete(stream=True)
        for instance_id in (1, 2):
            call = await gate.called(instance_id)
            call.tokens(OUTPUT[instance_id])
            die(call)
        failed = await answer
        assert failed.status == 200
        assert '"code":"worker_disconnected"' in failed.body.decode()
        assert "[DONE]" not in failed.body.decode()
        assert await gate.metric("dynamo_frontend_model_migration_exhausted_total") == 1


async def test_a_moved_request_that_is_refused_unbegun_is_offered_to_others(tmp_path: Path) -> None:
    """Such a refusal is none of the moves."""
    num_workers = MAX_DISPATCH_ATTEMPTS
    async with gateway(tmp_path, num_workers=num_workers, migration_limit=1) as gate:
        answer = gate.complete()
        first = await gate.called(1)
        first.tokens(*OUTPUT[:3])
        die(first)
        for instance_id in range(2, num_workers):
            (await gate.offered(instance_id)).ack(b"Server unavailable: unknown endpoint")
        last = await gate.called(num_workers)
        assert last.request["token_ids"] == PROMPT + OUTPUT[:3]
        last.tokens(*OUTPUT[3:], finish_reason="length")
        last.complete()
        assert (await answer).json["usage"]["completion_tokens"] == len(OUTPUT)


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "a+"},
        {"nvext": {"backend_instance_id": 1}},
    ],
)
async def test_what_cannot_move_does_not(tmp_path: Path, fields: dict[str, Any]) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.complete(**fields)
        call = await gate.called(1)
        call.tokens(*OUTPUT[:3])
        die(call)
        assert (await answer).status == 503
        assert len(gate.places) == 1


@pytest.mark.parametrize(
    ("max_seq_len", "num_output", "moves"),
    [(19, 0, False), (20, 0, True), (20, 1, False), (22, 3, False), (23, 3, True)],
)
async def test_beyond_the_maximum_length_a_request_stays(
    tmp_path: Path, max_seq_len: int, num_output: int, moves: bool
) -> None:
    async with gateway(tmp_path, migration_max_seq_len=max_seq_len) as gate:
        answer = gate.complete()
        call = await gate.called(1)
        if num_output:
            call.tokens(*OUTPUT[:num_output])
        die(call)
        if moves:
            call = await gate.called(2)
            call.tokens(*OUTPUT[num_output:], finish_reason="length")
            call.complete()
        assert (await answer).status == (200 if moves else 503)
        assert await gate.metric("dynamo_frontend_model_migration_max_seq_len_exceeded_total") == 1  # 26 in the end


async def test_text_whose_tokens_are_not_told_cannot_be_continued(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.complete()
        call = await gate.called(1)
        call.tokens(*OUTPUT[:1])
        call.item(data={"token_ids": [], "text": "words"})
        die(call)
        assert (await answer).status == 503
        assert len(gate.places) == 1


@pytest.mark.parametrize("fields", [{}, {"max_tokens": None, "prompt": [300] * (1024 - len(OUTPUT))}])
async def test_an_answer_that_is_as_long_as_it_may_be_is_complete(tmp_path: Path, fields: dict[str, Any]) -> None:
    """By max_tokens, or by the context of the model: nothing is left to ask another worker for."""
    async with gateway(tmp_path) as gate:
        answer = gate.complete(**fields)
        call = await gate.called(1)
        call.tokens(*OUTPUT)
        die(call)
        whole = await answer
        assert whole.json["choices"][0]["finish_reason"] == "length"
        assert whole.json["usage"]["completion_tokens"] == len(OUTPUT)
        assert len(gate.places) == 1


async def test_choices_move_one_by_one(tmp_path: Path) -> None:
    """1.6.1 never moves n above 1; here every choice is a call with an id of its own."""
    async with gateway(tmp_path) as gate:
        answer = gate.complete(n=2, temperature=1)
        calls = sorted([await gate.called(1), await gate.called(1)], key=lambda call: call.control.id)
        calls[0].tokens(*OUTPUT, finish_reason="length")
        calls[0].complete()
        calls[1].tokens(*OUTPUT[:2])
        die(calls[1])
        moved = await gate.called(2)
        assert moved.control.id == calls[1].control.id
        moved.tokens(*OUTPUT[2:], finish_reason="length")
        moved.complete()
        first, second = (await answer).json["choices"]
        assert first["text"] == second["text"]
        assert (await answer).json["usage"]["completion_tokens"] == 2 * len(OUTPUT)


async def test_a_request_that_finds_no_new_place_tells_why(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        answer = gate.complete()
        first = await gate.called(1)
        first.tokens(*OUTPUT[:3])
        gate.router.answer = lambda place: Refused(place.request_id, "overloaded", "Everybody has enough to do.")
        die(first)
        refused = await answer
        assert (refused.status, refused.json["error"]["message"]) == (529, "Everybody has enough to do.")
        await until(lambda: len([m for m in gate.router.heard if isinstance(m, Free)]) == 2)


async def test_the_second_placement_is_asked_with_the_blocks_of_the_whole_sequence(tmp_path: Path) -> None:
    prompt = list(range(300, 330))
    async with gateway(tmp_path, settings=Settings(needs_block_hashes=True)) as gate:
        answer = gate.complete(prompt=prompt)
        first = await gate.called(1)
        first.tokens(*OUTPUT[:3])
        die(first)
        second = await gate.called(2)
        second.tokens(*OUTPUT[3:], finish_reason="length")
        second.complete()
        await answer
        sequence = b"".join(i.to_bytes(4, "little") for i in prompt + OUTPUT[:3])
        hashes = packed_sequence_hashes(sequence, 16)
        assert [place.block_hashes for place in gate.places] == [hashes[:8], hashes]


# ---- messages of reasoning and calls

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
MESSAGE = '<think>hm</think>Well. <tool_call>{"name": "weather", "arguments": {"city": "K\u00f6ln"}}</tool_call>'
MESSAGE_IDS = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json")).encode(MESSAGE, add_special_tokens=False).ids


def read_message(choice: dict[str, Any]) -> tuple[Any, ...]:
    message = choice["message"]
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
    return message["reasoning_content"], message["content"].rstrip(), calls, choice["finish_reason"]


@pytest.mark.parametrize("num_told", range(1, len(MESSAGE_IDS), 3))
async def test_thoughts_and_calls_go_on_at_another_worker(tmp_path: Path, num_told: int) -> None:
    """The demo model's template implies parsers that read this."""
    async with gateway(tmp_path) as there:
        asked = there.chat(tools=[WEATHER])
        first = await there.called(1)
        first.tokens(*MESSAGE_IDS[:num_told])
        die(first)
        second = await there.called(2)
        assert second.request["token_ids"][-num_told:] == MESSAGE_IDS[:num_told]
        second.tokens(*MESSAGE_IDS[num_told:], finish_reason="stop")
        second.complete()
        body = json.loads((await asked).body)
    assert read_message(body["choices"][0]) == ("hm", "Well.", [("weather", {"city": "Köln"})], "tool_calls")
    reasoning_tokens = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < reasoning_tokens < body["usage"]["completion_tokens"] == len(MESSAGE_IDS)


async def test_each_choice_has_parsers_of_its_own(tmp_path: Path) -> None:
    async with gateway(tmp_path) as there:
        asked = there.chat(tools=[WEATHER], n=2)
        calls = [await there.called(1), await there.called(1)]
        for start in range(0, len(MESSAGE_IDS), 4):
            for call in calls:
                call.tokens(*MESSAGE_IDS[start : start + 4])
        for call in calls:
            call.tokens(finish_reason="stop")
            call.complete()
        choices = json.loads((await asked).body)["choices"]
    expected = ("hm", "Well.", [("weather", {"city": "Köln"})], "tool_calls")
    assert [read_message(choice) for choice in choices] == [expected, expected]
    assert len({choice["message"]["tool_calls"][0]["id"] for choice in choices}) == 2
