"""Workers written with our SDK behind the real frontend of Dynamo 1.6.1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from dynamo.worker import (
    DEMO_MODEL_DIR,
    Context,
    DistributedRuntime,
    InvalidArgument,
    ModelInput,
    ModelType,
    WorkerType,
    register_llm,
)
from tests.interop.anchor import AnchorFrontend, Store
from tests.interop.our_worker import our_worker
from tests.support.waiting import until, wait_until

MODEL = "mocked"
MESSAGES: Any = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.fixture(scope="module")
def frontend(store: Store) -> Iterator[AnchorFrontend]:
    with AnchorFrontend(store, "--router-mode=round-robin") as frontend:
        yield frontend


@pytest.fixture(scope="module")
def client(store: Store, frontend: AnchorFrontend) -> Iterator[OpenAI]:
    """Talks to the real frontend in front of one mocker of ours."""
    with our_worker(store, MODEL, "--speedup-ratio=0", "--block-size=16"):
        wait_until(lambda: MODEL in frontend.models(), "our mocker's model")
        with OpenAI(base_url=f"{frontend.base_url}/v1", api_key="none", max_retries=0) as client:
            yield client


def test_chat(client: OpenAI) -> None:
    answers = [
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=24, seed=seed) for seed in (1, 1, 2)
    ]
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0]
    assert texts[0].isprintable()
    assert all(answer.choices[0].finish_reason == "length" for answer in answers)


def test_usage(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Count to one hundred, slowly, in words, and then back again. " * 8}]
    usages = [client.chat.completions.create(model=MODEL, messages=messages, max_tokens=7).usage for _ in range(2)]
    assert usages[0] is not None
    assert usages[1] is not None
    assert usages[0].completion_tokens == usages[1].completion_tokens == 7
    first, second = (usage.prompt_tokens_details for usage in usages if usage)
    assert first is not None
    assert second is not None
    assert first.cached_tokens is not None
    assert second.cached_tokens == usages[1].prompt_tokens // 16 * 16 > first.cached_tokens


def test_a_stream(client: OpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=24, stream=True, stream_options=options
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=24)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


def test_a_text_that_ends_by_itself(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon a time")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text


async def test_many_at_once(client: OpenAI, frontend: AnchorFrontend) -> None:
    async with AsyncOpenAI(base_url=f"{frontend.base_url}/v1", api_key="none", max_retries=0) as many:
        answers = await asyncio.gather(
            *(
                many.completions.create(model=MODEL, prompt=f"Number {number}", max_tokens=1 + number % 30)
                for number in range(300)
            )
        )
    assert [answer.usage.completion_tokens for answer in answers if answer.usage] == [1 + n % 30 for n in range(300)]


async def test_a_client_that_leaves_and_errors_that_arrive(
    store: Store, frontend: AnchorFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler of our own, in this process, so that its context can be looked at."""
    for name, value in {**store.environment, "DYN_DISCOVERY_BACKEND": store.backend}.items():
        monkeypatch.setenv(name, value)
    contexts: list[Context] = []

    async def handler(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        if request["stop_conditions"]["max_tokens"] == 13:
            raise InvalidArgument("thirteen is unlucky")
        contexts.append(context)
        while not context.is_stopped():
            yield {"token_ids": request["token_ids"][:1]}
            await asyncio.sleep(0.01)

    runtime = DistributedRuntime()
    endpoint = runtime.endpoint("interop.backend.generate")
    await endpoint.open(handler)
    await register_llm(
        ModelInput.Tokens,
        ModelType.Chat | ModelType.Completions,
        endpoint,
        str(DEMO_MODEL_DIR),
        "ours",
        worker_type=WorkerType.Aggregated,
    )
    await until(lambda: "ours" in frontend.models(), "this worker's model")
    async with AsyncOpenAI(base_url=f"{frontend.base_url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="ours", messages=MESSAGES, max_tokens=4000, stream=True)
        await anext(aiter(stream))
        assert not contexts[0].is_stopped()
        await stream.close()
        async with asyncio.timeout(20):
            await contexts[0].async_killed_or_stopped()
        with pytest.raises(BadRequestError, match="thirteen is unlucky"):
            await client.chat.completions.create(model="ours", messages=MESSAGES, max_tokens=13)
    await runtime.wait_closed()


def test_a_worker_that_left_is_asked_no_more(store: Store, frontend: AnchorFrontend) -> None:
    with our_worker(store, "leaving", "--engine=echo", "--endpoint=dyn://leaving.backend.generate"):
        wait_until(lambda: "leaving" in frontend.models(), "the model")
    wait_until(lambda: "leaving" not in frontend.models(), "the end of the model")
