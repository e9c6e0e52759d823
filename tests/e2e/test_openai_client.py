"""The official client against the whole product."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

from tests.support.gateway import Gateway

QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": "What does a gateway do?"}


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.base_url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_models(client: OpenAI, gateway: Gateway) -> None:
    assert [model.id for model in client.models.list()] == [gateway.model]
    assert client.models.retrieve(gateway.model).object == "model"


def test_chat(client: OpenAI, gateway: Gateway) -> None:
    answer = client.chat.completions.create(model=gateway.model, messages=[QUESTION], max_tokens=8)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", gateway.model)
    [choice] = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_chat_streamed(client: OpenAI, gateway: Gateway) -> None:
    with client.chat.completions.create(model=gateway.model, messages=[QUESTION], max_tokens=8, stream=True) as stream:
        chunks = list(stream)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_streamed_text_is_the_text(client: OpenAI, gateway: Gateway) -> None:
    """The mock worker's text depends on the prompt and the seed alone."""
    unary = client.chat.completions.create(model=gateway.model, messages=[QUESTION], max_tokens=40, seed=7)
    with client.chat.completions.create(
        model=gateway.model, messages=[QUESTION], max_tokens=40, seed=7, stream=True
    ) as stream:
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert streamed == unary.choices[0].message.content


def test_usage_comes_last(client: OpenAI, gateway: Gateway) -> None:
    with client.chat.completions.create(
        model=gateway.model, messages=[QUESTION], max_tokens=5, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = stream
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5


def test_usage_with_every_chunk(client: OpenAI, gateway: Gateway) -> None:
    with client.chat.completions.create(
        model=gateway.model,
        messages=[QUESTION],
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ) as stream:
        counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage is not None]
    assert counts[-1] == 5
    assert all(earlier <= later for earlier, later in pairwise(counts))


def test_completions(client: OpenAI, gateway: Gateway) -> None:
    answer = client.completions.create(model=gateway.model, prompt="Once upon a time", max_tokens=6)
    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.choices[0].finish_reason) == ("text_completion", "length")
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


def test_completions_streamed(client: OpenAI, gateway: Gateway) -> None:
    with client.completions.create(
        model=gateway.model, prompt="Once", max_tokens=6, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage is not None
    assert last.usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("prompt", "num_prompt_tokens"),
    [(["a", "b"], None), ([5, 6, 7], 3), ([[5, 6], [7]], 3)],
)
def test_other_shapes_of_a_prompt(
    client: OpenAI, gateway: Gateway, prompt: list[str] | list[int] | list[list[int]], num_prompt_tokens: int | None
) -> None:
    answer = client.completions.create(model=gateway.model, prompt=prompt, max_tokens=4)
    num_prompts = 1 if isinstance(prompt[0], int) else len(prompt)
    assert [choice.index for choice in answer.choices] == list(range(num_prompts))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 * num_prompts
    if num_prompt_tokens is not None:
        assert answer.usage.prompt_tokens == num_prompt_tokens


def test_a_stop_string_ends_the_answer_before_it(client: OpenAI, gateway: Gateway) -> None:
    whole = client.chat.completions.create(model=gateway.model, messages=[QUESTION], max_tokens=40, seed=7)
    text = whole.choices[0].message.content
    assert text is not None
    stop = text[len(text) // 2 :][:6]
    cut = client.chat.completions.create(model=gateway.model, messages=[QUESTION], max_tokens=40, seed=7, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nope", messages=[QUESTION])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_a_bad_value_is_a_bad_request_that_names_it(client: OpenAI, gateway: Gateway) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=gateway.model, messages=[QUESTION], temperature=5)
    assert (caught.value.param, caught.value.code, caught.value.type) == (
        "temperature",
        "out_of_range",
        "invalid_request_error",
    )
    assert "temperature" in caught.value.message


def test_a_stream_refused_is_refused_before_it_begins(client: OpenAI, gateway: Gateway) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=gateway.model, prompt="", stream=True)
    assert caught.value.param == "prompt"


def test_many_at_once(client: OpenAI, gateway: Gateway) -> None:
    def ask(number: int) -> str | None:
        answer = client.chat.completions.create(
            model=gateway.model, messages=[{"role": "user", "content": f"Question {number}"}], max_tokens=5
        )
        return answer.choices[0].finish_reason

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(64))) == {"length"}


def test_the_request_id_comes_back(client: OpenAI) -> None:
    answer = client.models.with_raw_response.list(extra_headers={"x-request-id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    assert client.models.with_raw_response.list().headers["x-request-id"]
