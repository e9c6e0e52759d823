"""Mockers that tell routers what they hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dynamo.shared.discovery import EVENT_SOURCES, INSTANCES
from dynamo.shared.discovery.mem import MemDiscovery
from dynamo.shared.hashing import block_hashes, pack_tokens, sequence_hashes
from dynamo.shared.runtime import DistributedRuntime, Endpoint
from dynamo.worker.config import WorkerConfig
from dynamo.worker.mocker_ranks import serve_mocker
from tests.support.waiting import PATIENCE_S, until
from tests.worker.frontend import Answer, Frontend, open_frontend
from tests.worker.router_view import held_after, open_view

PROMPT = list(range(100, 164))
HASHES = sequence_hashes(block_hashes(pack_tokens(PROMPT), 16))


class Mocker:
    def __init__(self, endpoint: Endpoint, frontend: Frontend) -> None:
        self.endpoint = endpoint
        self._frontend = frontend

    async def ask(self, dp_rank: int | None = None, max_tokens: int = 2) -> Answer:
        body = {
            "token_ids": PROMPT,
            "stop_conditions": {"max_tokens": max_tokens},
            "routing": {} if dp_rank is None else {"dp_rank": dp_rank},
        }
        return await self._frontend.ask_to_end(self.endpoint.target, body)

    async def clear(self) -> Any:
        target = self.endpoint.target.replace("/generate", "/clear_kv_blocks")
        return (await self._frontend.ask_to_end(target, {})).items


@asynccontextmanager
async def mocker(**options: Any) -> AsyncIterator[Mocker]:
    config = WorkerConfig(discovery_backend="mem", block_size=16, speedup_ratio=0, **options)
    runtime = DistributedRuntime(config=config)
    async with open_frontend() as frontend:
        try:
            endpoint = runtime.endpoint("demo.backend.generate")
            await serve_mocker(config, endpoint, None)
            yield Mocker(endpoint, frontend)
        finally:
            await runtime.wait_closed()


def cached_tokens(answer: Answer) -> int:
    cached: int = answer.items[-1]["completion_usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


async def entries(bucket: str) -> list[str]:
    async for changes in MemDiscovery().watch(bucket):
        return [change.key for change in changes]
    raise AssertionError("the watch ended")


async def test_a_prompt_is_held_and_reported() -> None:
    async with open_view() as view, mocker() as worker:
        await view.source()
        assert [cached_tokens(await worker.ask()) for _ in range(2)] == [0, 48]  # the last token is always computed
        dump = (await view.ask()).tree_dump
        assert dump is not None
        assert list(held_after(dump.events)["device"]) == HASHES
        assert dump.last_event_id == 1


async def test_load_rises_and_falls() -> None:
    async with open_view() as view, mocker() as worker:
        while not view.loads:  # reports of changes reach those who listen already
            await worker.ask(max_tokens=1000)
        asking = asyncio.create_task(worker.ask(max_tokens=4000))
        await until(lambda: (view.loads[-1].kv_used_blocks or 0) > 5)
        await asking
        await until(lambda: view.loads[-1].kv_used_blocks == 0)


async def test_a_reset_clears() -> None:
    async with open_view() as view, mocker() as worker:
        await view.source()
        await worker.ask()
        assert [item["status"] for item in await worker.clear()] == ["success"]
        dump = (await view.ask()).tree_dump
        assert dump is not None
        assert (dump.events, dump.last_event_id) == ([], 2)
        assert cached_tokens(await worker.ask()) == 0


async def test_a_busy_mocker_is_not_reset() -> None:
    async with mocker() as worker:
        asking = asyncio.create_task(worker.ask(max_tokens=4000))
        statuses = []
        while not asking.done():
            statuses += [item["status"] for item in await worker.clear()]
        assert "error" in statuses


async def test_each_rank_has_a_cache_of_its_own() -> None:
    async with mocker(data_parallel_size=3) as worker:
        async with asyncio.timeout(PATIENCE_S):
            while len(await entries(EVENT_SOURCES)) < 3:
                await asyncio.sleep(0.01)
        assert [cached_tokens(await worker.ask(rank)) for rank in (1, 1, 2, 0, None)] == [0, 48, 0, 0, 48]
        assert "the ranks 0 to 2" in (await worker.ask(3)).error["message"]


@pytest.mark.parametrize("options", [{"kv_events": False}, {"enable_prefix_caching": False}])
async def test_without_kv_events_only_load_is_told(options: dict[str, Any]) -> None:
    async with mocker(**options) as worker:
        assert await entries(EVENT_SOURCES) == []
        names = [key.split("/")[2] for key in await entries(INSTANCES)]
        assert names == ["generate", "clear_kv_blocks"]
        await worker.ask()
