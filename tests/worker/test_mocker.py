"""The engines as handlers, without a wire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dynamo.worker import Context, EngineShutdown, InvalidArgument, WorkerUnavailable
from dynamo.worker.echo import EchoEngine
from dynamo.worker.latency import LatencyModel
from dynamo.worker.mocker import GenerateItem, MockerEngine
from dynamo.worker.scheduler import Scheduler, SchedulerConfig

WORDS = range(100, 200)
EOS = 3


def engine(speedup_ratio: float = 0, seed: int = 0, max_num_tokens: int = 1000, **config: int) -> MockerEngine:
    core = Scheduler(SchedulerConfig(**{"block_size": 4, "num_blocks": 256, **config}), LatencyModel(speedup_ratio))  # type: ignore[arg-type]
    return MockerEngine(core, WORDS, max_num_tokens, seed)


def request(num_prompt: int = 10, seed: int | None = None, **stop: Any) -> dict[str, Any]:
    return {
        "token_ids": list(range(num_prompt)),
        "stop_conditions": {"max_tokens": 5, **stop},
        "sampling_options": {"seed": seed},
        "eos_token_ids": [EOS],
    }


async def answer(engine: MockerEngine | EchoEngine, request: dict[str, Any]) -> list[GenerateItem]:
    async with asyncio.timeout(20):
        return [item async for item in engine.generate(request, Context())]


def tokens(items: list[GenerateItem]) -> list[int]:
    return [token for item in items for token in item.token_ids]


async def test_an_answer() -> None:
    items = await answer(engine(), request())
    assert [len(item.token_ids) for item in items] == [1, 1, 1, 1, 1, 0]
    assert [item.finish_reason for item in items] == [None] * 5 + ["length"]
    assert set(tokens(items)) <= set(WORDS)
    usages = [item.completion_usage for item in items if item.completion_usage]
    assert [(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) for usage in usages] == [
        (10, 1, 11),
        (10, 5, 15),
    ]


async def test_usage_tells_what_was_cached() -> None:
    mocker = engine()
    cached = []
    for _ in range(2):
        usage = (await answer(mocker, request()))[-1].completion_usage
        assert usage is not None
        cached.append(usage.prompt_tokens_details["cached_tokens"])
    assert cached == [0, 8]


async def test_prompt_and_seeds_decide_the_text_and_nothing_else_does() -> None:
    busy = engine(max_num_batched_tokens=8)
    alone = tokens(await answer(engine(), request(max_tokens=50)))
    answers = await asyncio.gather(*(answer(busy, request(max_tokens=50)) for _ in range(10)))
    assert all(tokens(items) == alone for items in answers)
    others = [
        tokens(await answer(engine(), request(11, max_tokens=50))),
        tokens(await answer(engine(), request(seed=1, max_tokens=50))),
        tokens(await answer(engine(seed=1), request(max_tokens=50))),
    ]
    assert alone not in others


async def test_without_max_tokens_the_text_ends_by_itself() -> None:
    items = await answer(engine(), request(max_tokens=None))
    assert items[-1].finish_reason == "eos"
    assert tokens(items)[-1] == EOS
    assert 16 <= len(tokens(items)) <= 257


async def test_min_tokens_delays_the_end() -> None:
    items = await answer(engine(), request(max_tokens=None, min_tokens=400))
    assert len(tokens(items)) == 401


async def test_ignore_eos_goes_on_to_the_limit() -> None:
    items = await answer(engine(max_num_tokens=100), request(max_tokens=None, ignore_eos=True))
    assert (len(tokens(items)), items[-1].finish_reason) == (90, "length")


async def test_stop_token_ids() -> None:
    text = tokens(await answer(engine(), request()))
    items = await answer(engine(), request(stop_token_ids=[text[2]]))
    assert (tokens(items), items[-1].finish_reason) == (text[:3], "stop")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(max_tokens=0), "max_tokens is 0"),
        (request(1000), "the prompt has 1000 tokens"),
        ({"token_ids": ["a"]}, r"token_ids\[0\]"),
        ({"token_ids": [-1]}, r"token_ids\[0\]"),
        ({}, "token_ids"),
    ],
)
async def test_requests_at_fault(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        await answer(engine(), bad)


async def test_too_many_waiting() -> None:
    mocker = engine(speedup_ratio=1, max_num_seqs=1, max_num_waiting=1)
    running = [asyncio.create_task(answer(mocker, request(max_tokens=500)))]
    await asyncio.sleep(0.1)
    running.append(asyncio.create_task(answer(mocker, request(max_tokens=500))))
    await asyncio.sleep(0)
    with pytest.raises(WorkerUnavailable, match="waiting already"):
        await answer(mocker, request())
    for task in running:
        task.cancel()


@pytest.mark.parametrize("speedup_ratio", [0, 1])
async def test_a_stopped_request_frees_its_blocks(speedup_ratio: float) -> None:
    core = Scheduler(SchedulerConfig(block_size=4), LatencyModel(speedup_ratio))
    mocker, context = MockerEngine(core, WORDS, 60_000), Context()
    items = []
    async with asyncio.timeout(20):
        async for item in mocker.generate(request(max_tokens=10**5), context):
            items.append(item)
            if len(items) == 2:
                context.stop_generating()
    assert core.num_running == core.num_waiting == core.pool.num_used == 0
    assert items[-1].finish_reason is None


async def test_paced_steps_serve_several_at_once() -> None:
    mocker = engine(speedup_ratio=20)
    answers = await asyncio.gather(*(answer(mocker, request(number)) for number in range(1, 9)))
    assert all(len(tokens(items)) == 5 for items in answers)


async def test_a_failed_engine_ends_its_requests_and_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Scheduler(SchedulerConfig(), LatencyModel(0))
    mocker = MockerEngine(core, WORDS, 1000)
    with monkeypatch.context() as patch:  # a bug of ours cannot be had otherwise
        patch.setattr(core, "step", lambda: 1 / 0)
        with pytest.raises(EngineShutdown):
            await answer(mocker, request())
    assert len(tokens(await answer(mocker, request()))) == 5


async def test_echo() -> None:
    items = await answer(EchoEngine(), request(3))
    assert [item.token_ids for item in items] == [[0], [1], [2], []]
    assert items[-1].finish_reason == "stop"
    items = await answer(EchoEngine(tokens_per_frame=4, delay_s=0.001), request(10, max_tokens=9))
    assert [item.token_ids for item in items] == [[0, 1, 2, 3], [4, 5, 6, 7], [8], []]
    assert items[-1].finish_reason == "length"


async def test_a_stopped_echo() -> None:
    context = Context()
    context.kill()
    assert [item async for item in EchoEngine(delay_s=60).generate(request(), context)] == []
    assert context.is_killed()
    assert context.is_stopped()
