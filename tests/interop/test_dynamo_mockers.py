"""Two unmodified mockers of Dynamo 1.6.1 behind our frontend, found through a directory and through etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionUserMessageParam

from tests.interop.anchor import Mocker, Store, wait_until_everywhere
from tests.support.gateway import Gateway

MODEL = Mocker.model
BLOCK_SIZE = 16
NUM_REQUESTS = 2000
CONCURRENCY = 64


@pytest.fixture(scope="module")
def gateway(store: Store) -> Iterator[Gateway]:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Mocker(store, "--speedup-ratio=100"))
        gateway = Gateway("--workers=2", store.flag, mock_workers=0, environment=store.environment)
        stack.enter_context(gateway)
        wait_until_everywhere(
            lambda: gateway.models() == {MODEL} and len(gateway.instances()) == 2, "two workers of a model"
        )
        yield gateway
        assert "ERROR" not in gateway.log
        assert "Traceback" not in gateway.log


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.base_url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def many(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": "What does a gateway do?"}

Prompt = str | list[str] | list[int] | list[list[int]]
prompts = pytest.mark.parametrize(
    ("prompt", "num_prompts", "num_prompt_tokens"),
    [("Once upon a time", 1, None), (["a", "b"], 2, None), ([5, 6, 7], 1, 3), ([[5, 6], [7]], 2, 3)],
)


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[QUESTION], max_tokens=8)
    [choice] = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_chat_streamed(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=[QUESTION], max_tokens=40, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert last.usage is not None
    assert last.usage.completion_tokens == 40


@prompts
def test_completions(client: OpenAI, prompt: Prompt, num_prompts: int, num_prompt_tokens: int | None) -> None:
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=6)
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * num_prompts
    assert all(choice.text for choice in answer.choices)
    check_usage(answer.usage, num_prompts, num_prompt_tokens)


@prompts
def test_completions_streamed(client: OpenAI, prompt: Prompt, num_prompts: int, num_prompt_tokens: int | None) -> None:
    with client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=6, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = stream
    texts = [""] * num_prompts
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert all(texts)
    check_usage(last.usage, num_prompts, num_prompt_tokens)


def check_usage(usage: CompletionUsage | None, num_prompts: int, num_prompt_tokens: int | None) -> None:
    assert usage is not None
    assert usage.completion_tokens == 6 * num_prompts
    assert num_prompt_tokens in (None, usage.prompt_tokens)


def test_both_workers_take_turns_and_cache_prompts(client: OpenAI) -> None:
    """Round-robin: a prompt is new to each of two workers, and known to each when it comes again."""
    prompt = list(range(1000, 1000 + 6 * BLOCK_SIZE))
    cached = []
    for _ in range(4):
        usage = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 0, 5 * BLOCK_SIZE, 5 * BLOCK_SIZE]


def test_a_stop_token_ends_the_answer(client: OpenAI) -> None:
    """What the mocker makes up is random, but every token of the vocabulary stops this answer."""
    answer = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=50, extra_body={"stop_token_ids": list(range(16384))}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


async def test_load(many: AsyncOpenAI) -> None:
    """Every answer is whole: the right number of tokens, and a reason for its end."""
    free = asyncio.Semaphore(CONCURRENCY)

    async def ask(number: int) -> tuple[int, str | None]:
        async with free:
            return await (ask_streamed if number % 2 else ask_unary)(many, number)

    answers = await asyncio.gather(*map(ask, range(NUM_REQUESTS)))
    assert answers == [(num_tokens(number), "length") for number in range(NUM_REQUESTS)]


def num_tokens(number: int) -> int:
    return 1 + number % 24


async def ask_unary(client: AsyncOpenAI, number: int) -> tuple[int, str | None]:
    answer = await client.completions.create(model=MODEL, prompt=f"Number {number}", max_tokens=num_tokens(number))
    assert answer.usage is not None
    return answer.usage.completion_tokens, answer.choices[0].finish_reason


async def ask_streamed(client: AsyncOpenAI, number: int) -> tuple[int, str | None]:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": f"Number {number}"}],
        max_tokens=num_tokens(number),
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = [chunk async for chunk in stream]
    assert last.usage is not None
    return last.usage.completion_tokens, chunks[-1].choices[0].finish_reason


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nope", messages=[QUESTION])
