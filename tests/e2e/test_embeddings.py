"""Embeddings by the official client, and what is wrong with a body."""

from __future__ import annotations

import math
import struct
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.support.gateway import Gateway
from tests.support.mock_worker import MockWorker
from tests.support.waiting import wait_until

MODEL, CHAT_MODEL = "vectors", "words"


@pytest.fixture(scope="module")
def embedding_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = {
        "DYN_FILE_KV": str(tmp_path_factory.mktemp("store")),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    }
    flags = "--discovery-backend=file"
    gateway = Gateway(flags, "--router-mode=kv", mock_workers=0, environment=environment)
    workers = [
        MockWorker(flags, "--engine=embedder", f"--model-name={MODEL}", environment=environment),
        MockWorker(
            flags,
            "--engine=text-echo",
            f"--model-name={CHAT_MODEL}",
            "--endpoint=dynamo.text.generate",
            environment=environment,
        ),
    ]
    with ExitStack() as stack:
        for server in (gateway, *workers):
            stack.enter_context(server)
        wait_until(lambda: gateway.models() == {MODEL, CHAT_MODEL}, "both models are listed")
        yield gateway
        assert "Traceback" not in gateway.log


@pytest.fixture(scope="module")
def client(embedding_gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{embedding_gateway.base_url}/v1", api_key="-", max_retries=0, timeout=60) as client:
        yield client


def embed(gateway: Gateway, **body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.base_url}/v1/embeddings", json={"model": MODEL} | body, timeout=60)


def metric(gateway: Gateway, name: str, **labels: str) -> float:
    lines = httpx.get(f"{gateway.base_url}/metrics", timeout=60).text.splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    found = (line for line in lines if line.startswith(name) and all(label in line for label in wanted))
    return sum(float(line.rpartition(" ")[2]) for line in found)


# ---- what the client gets


def test_the_client_s_own_choice_of_format_and_numbers_are_the_same_vector(client: OpenAI) -> None:
    """It asks for base64 unless it is told otherwise."""
    texts = ["hello world", "good morning"]
    by_default = client.embeddings.create(model=MODEL, input=texts)
    numbers = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    for decoded, printed in zip(by_default.data, numbers.data, strict=True):
        assert struct.pack("<64f", *decoded.embedding) == struct.pack("<64f", *printed.embedding)
        assert math.hypot(*printed.embedding) == pytest.approx(1, abs=1e-5)
    assert [entry.index for entry in numbers.data] == [0, 1]
    assert numbers.usage.prompt_tokens == numbers.usage.total_tokens > 0


def test_token_ids_embed_as_their_text(embedding_gateway: Gateway, client: OpenAI) -> None:
    body = {"model": MODEL, "prompt": "hello world"}
    tokens = httpx.post(f"{embedding_gateway.base_url}/tokenize", json=body, timeout=60).json()["tokens"]
    text, ids, batch = (
        client.embeddings.create(model=MODEL, input=given).data[0].embedding
        for given in ("hello world", tokens, [tokens, tokens])
    )
    assert text == ids == batch


def test_dimensions(client: OpenAI) -> None:
    assert len(client.embeddings.create(model=MODEL, input="hi", dimensions=7).data[0].embedding) == 7


def test_base64_is_a_string_of_little_endian_floats(embedding_gateway: Gateway) -> None:
    text, numbers = (
        embed(embedding_gateway, input="hi", encoding_format=encoding_format).json()["data"][0]["embedding"]
        for encoding_format in ("base64", "float")
    )
    assert b64decode(text) == struct.pack("<64f", *numbers)


def test_truncated_inputs_keep_their_beginning(embedding_gateway: Gateway) -> None:
    cut = embed(embedding_gateway, input="hello world and more", truncate_prompt_tokens=1).json()
    assert cut["data"] == embed(embedding_gateway, input="hello").json()["data"]
    assert cut["usage"]["prompt_tokens"] == 1


def test_requests_are_counted(embedding_gateway: Gateway) -> None:
    before = metric(embedding_gateway, "dynamo_frontend_requests_total", endpoint="embeddings", status="success")
    embed(embedding_gateway, input="hi")
    after = metric(embedding_gateway, "dynamo_frontend_requests_total", endpoint="embeddings", status="success")
    assert after == before + 1
    assert metric(embedding_gateway, "dynamo_frontend_embedding_latency_seconds_count", model=MODEL) == after


# ---- what is wrong with a body

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "input", "missing_field"),
    ({"input": None}, "input", "invalid_type"),
    ({"input": ""}, "input", "out_of_range"),
    ({"input": []}, "input", "out_of_range"),
    ({"input": ["a", ""]}, "input[1]", "out_of_range"),
    ({"input": [[1], []]}, "input[1]", "out_of_range"),
    ({"input": ["a", 1]}, "input[1]", "invalid_type"),
    ({"input": [1, "a"]}, "input[1]", "invalid_type"),
    ({"input": [True]}, "input", "invalid_type"),
    ({"input": [-1]}, "input[0]", "out_of_range"),
    ({"input": [2**31]}, "input", "invalid_value"),
    ({"input": {"text": "a"}}, "input", "invalid_type"),
    ({"input": ["a"] * 2049}, "input", "out_of_range"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid_value"),
    ({"input": "a", "dimensions": 0}, "dimensions", "out_of_range"),
    ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "out_of_range"),
    ({"input": "a", "nvext": {"backend_instance_id": 2**64}}, "nvext.backend_instance_id", "out_of_range"),
]


@pytest.mark.parametrize(("body", "param", "code"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named(embedding_gateway: Gateway, body: dict[str, Any], param: str, code: str) -> None:
    answer = embed(embedding_gateway, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


def test_an_input_that_is_too_long_is_told_by_how_much(embedding_gateway: Gateway) -> None:
    answer = embed(embedding_gateway, input=[[7], [7] * 40000])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input[1]")
    assert "40000" in error["message"]


def test_two_thousand_inputs_are_one_request(embedding_gateway: Gateway) -> None:
    answer = embed(embedding_gateway, input=["a"] * 2048, dimensions=1).json()
    assert [entry["index"] for entry in answer["data"]] == list(range(2048))


def test_models_that_do_not_embed(client: OpenAI, embedding_gateway: Gateway) -> None:
    for model in (CHAT_MODEL, "nobody"):
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model=model, input="hi")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])


# ---- workers that take text


def test_a_chat_with_a_worker_that_takes_text(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=[{"role": "user", "content": "one two three"}])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two three", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)


def test_a_streamed_chat_with_a_worker_that_takes_text(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "one two three"}],
        max_tokens=2,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, reasons, usage = {0: "", 1: ""}, set(), None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons.add(choice.finish_reason)
    assert (texts, reasons) == ({0: "one two", 1: "one two"}, {None, "length"})
    assert usage is not None
    assert usage.completion_tokens == 4


def test_completions_of_a_worker_that_takes_text(client: OpenAI, embedding_gateway: Gateway) -> None:
    before = metric(embedding_gateway, "dynamo_frontend_output_tokens_total", model=CHAT_MODEL)
    answer = client.completions.create(model=CHAT_MODEL, prompt=["a b", "c"])
    assert [choice.text for choice in answer.choices] == ["a b", "c"]
    assert metric(embedding_gateway, "dynamo_frontend_output_tokens_total", model=CHAT_MODEL) == before + 3


def test_what_a_worker_that_takes_text_cannot_read(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="neither a last message nor a prompt"):
        client.completions.create(model=CHAT_MODEL, prompt=[1, 2])


def test_other_apis_with_a_worker_that_takes_text(client: OpenAI, embedding_gateway: Gateway) -> None:
    assert client.responses.create(model=CHAT_MODEL, input="one two").output_text == "one two"
    body = {"model": CHAT_MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "one two"}]}
    message = httpx.post(f"{embedding_gateway.base_url}/v1/messages", json=body, timeout=60).json()
    assert message["content"] == [{"type": "text", "text": "one two"}]
    assert message["usage"]["output_tokens"] == 2


def test_no_dry_run_without_tokens_fails(embedding_gateway: Gateway) -> None:
    body = {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "nvext": {"annotations": ["query_instance_id:"]},
    }
    answer = httpx.post(f"{embedding_gateway.base_url}/v1/chat/completions", json=body, timeout=60)
    assert (answer.status_code, answer.json()["nvext"]["token_ids"]) == (200, [])
