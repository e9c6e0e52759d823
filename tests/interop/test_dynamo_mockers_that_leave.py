"""Mockers of Dynamo 1.6.1 that come, leave and die, and clients that leave them, as seen through our frontend."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types import Completion

from tests.interop.anchor import Mocker, Store, wait_until_everywhere
from tests.interop.conftest import open_store
from tests.support.gateway import Gateway
from tests.support.waiting import until

MODEL = Mocker.model
REAL_TIME = "--speedup-ratio=1"  # some milliseconds for a token
ONE_SEAT = "--max-num-seqs=1"
NEW_PROMPT = list(range(2000, 2032))  # two blocks


@pytest.fixture(params=["file", "etcd"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """One for each test: a worker that was killed stays in it for a while."""
    with open_store(request.param, tmp_path) as store:
        yield store


@pytest.fixture
def gateway(store: Store, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """A test may parametrize it with flags."""
    flags = getattr(request, "param", ())
    with Gateway("--workers=2", store.flag, *flags, mock_workers=0, environment=store.environment) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


async def test_workers_come_and_go(store: Store, gateway: Gateway, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await ask(client)
    with Mocker(store) as early:
        wait_until_everywhere(lambda: gateway.models() == {MODEL}, "the first worker's model")
        assert [await num_cached(client, NEW_PROMPT) for _ in range(2)] == [0, 16]
        with Mocker(store):
            wait_until_everywhere(lambda: len(gateway.instances()) == 2, "the second worker")
            assert {await num_cached(client, NEW_PROMPT) for _ in range(2)} == {0, 16}
            early.stop()
            wait_until_everywhere(lambda: len(gateway.instances()) == 1, "the first worker is gone")
            assert [await num_cached(client, NEW_PROMPT) for _ in range(2)] == [16, 16]
    wait_until_everywhere(lambda: gateway.models() == set(), "the model is gone")
    with pytest.raises(openai.NotFoundError):
        await ask(client)


@pytest.mark.parametrize("gateway", [("--migration-limit=0",)], indirect=True)
async def test_a_worker_killed_mid_stream(store: Store, gateway: Gateway, client: AsyncOpenAI) -> None:
    with Mocker(store, REAL_TIME) as doomed, Mocker(store, REAL_TIME) as survivor:
        wait_until_everywhere(lambda: len(gateway.instances()) == 2, "two workers")
        streams = [await open_stream(client, max_tokens=1000) for _ in range(2)]
        unary = [asyncio.create_task(ask(client, max_tokens=1000)) for _ in range(2)]
        await until_placed(gateway, 4)
        doomed.kill()
        ends = await asyncio.gather(*map(read_to_end, streams), return_exceptions=True)
        ends += await asyncio.gather(*unary, return_exceptions=True)

        [in_stream, in_body] = [end for end in ends if end not in ("length", 1000)]
        assert isinstance(in_stream, openai.APIError)
        assert not isinstance(in_stream, openai.APIStatusError)  # its status was sent before: it is a frame
        assert isinstance(in_body, openai.InternalServerError)
        assert in_body.status_code == 503
        assert in_body.response.headers["content-type"] == "application/json"
        for error in (in_stream, in_body):
            assert (error.type, error.code) == ("service_unavailable", "worker_disconnected")
            assert "worker" in error.message

        assert [await ask(client) for _ in range(10)] == [2] * 10
        doomed.start()
        wait_until_everywhere(lambda: len(gateway.instances()) >= 2, "the worker is back")
        survivor.stop()
        assert [await ask(client) for _ in range(10)] == [2] * 10


async def test_answers_of_a_killed_worker_are_continued_by_another(
    store: Store, gateway: Gateway, client: AsyncOpenAI
) -> None:
    with Mocker(store, REAL_TIME) as doomed, Mocker(store, REAL_TIME):
        wait_until_everywhere(lambda: len(gateway.instances()) == 2, "two workers")
        streams = [await open_stream(client, max_tokens=1000) for _ in range(2)]
        unary = [asyncio.create_task(ask(client, max_tokens=1000)) for _ in range(2)]
        await until_placed(gateway, 4)
        for stream in streams:
            await anext(stream)
        doomed.kill()
        assert await asyncio.gather(*map(read_to_end, streams)) == ["length"] * 2
        assert await asyncio.gather(*unary) == [1000] * 2


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_leaves_frees_the_worker(
    store: Store, gateway: Gateway, client: AsyncOpenAI, is_streamed: bool
) -> None:
    """The worker serves one request at a time: another one waits until the first is cancelled."""
    with Mocker(store, REAL_TIME, ONE_SEAT):
        wait_until_everywhere(lambda: gateway.models() == {MODEL}, "the model")
        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(leave_late(client) if is_streamed else ask(client, max_tokens=30_000))
            await until_placed(gateway, 1)
            waiting = tasks.create_task(ask(client))
            await until_placed(gateway, 2)
            await asyncio.sleep(0.5)  # many tokens long
            assert not waiting.done()
            leaving.cancel()
            assert await waiting == 2
        await until_placed(gateway, 0)


async def ask(client: AsyncOpenAI, prompt: str | list[int] = "Once upon a time", max_tokens: int = 2) -> int:
    """The number of tokens that came."""
    answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=max_tokens)
    assert answer.usage is not None
    return answer.usage.completion_tokens


async def num_cached(client: AsyncOpenAI, prompt: list[int]) -> int | None:
    answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens


async def open_stream(client: AsyncOpenAI, max_tokens: int) -> AsyncStream[Completion]:
    return await client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=max_tokens, stream=True)


async def read_to_end(stream: AsyncStream[Completion]) -> Any:
    return [chunk async for chunk in stream][-1].choices[0].finish_reason


async def leave_late(client: AsyncOpenAI) -> None:
    await read_to_end(await open_stream(client, max_tokens=30_000))


async def until_placed(gateway: Gateway, count: int) -> None:
    """Until the router says that so many requests are with workers."""
    await until(lambda: num_placed(gateway) == count, f"{count} requests with workers")


def num_placed(gateway: Gateway) -> int:
    with urllib.request.urlopen(f"{gateway.base_url}/metrics", timeout=10) as answer:
        samples = re.findall(r"^dynamo_router_active_requests{.*} (\S+)$", answer.read().decode(), re.MULTILINE)
    return sum(int(float(sample)) for sample in samples)
