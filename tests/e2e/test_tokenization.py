"""`/tokenize` and `/detokenize` against the whole product."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.gateway import Gateway

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüß dich 🦊"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


def post(gateway: Gateway, path: str, **body: Any) -> httpx.Response:
    return httpx.post(gateway.base_url + path, json=body, timeout=60)


def tokenize(gateway: Gateway, **body: Any) -> dict[str, Any]:
    answer = post(gateway, "/tokenize", model=gateway.model, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["count"] == len(found["tokens"])
    return found


def detokenize(gateway: Gateway, tokens: list[int]) -> str:
    answer = post(gateway, "/detokenize", model=gateway.model, tokens=tokens)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prompt"])


@pytest.mark.parametrize("text", ["hello world", "", "Grüß dich 🦊", "<|im_start|>user\nhi"])
def test_a_text_comes_back(gateway: Gateway, text: str) -> None:
    found = tokenize(gateway, prompt=text)
    assert found["token_strs"] is None
    assert found["max_model_len"] > 0
    assert detokenize(gateway, found["tokens"]) == text


def test_texts_of_tokens(gateway: Gateway) -> None:
    found = tokenize(gateway, prompt="hello world", return_token_strs=True)
    assert "".join(found["token_strs"]) == "hello world"
    assert len(found["token_strs"]) == found["count"]


def test_a_chat_has_the_tokens_that_its_worker_would_get(gateway: Gateway) -> None:
    dry_run = {"model": gateway.model, "nvext": {"annotations": ["query_instance_id:"]}}
    for options in ({}, {"tools": TOOLS}, {"add_generation_prompt": False}):
        body: dict[str, Any] = {"messages": MESSAGES, **options}
        asked = post(gateway, "/v1/chat/completions", **body, **dry_run).json()["nvext"]["token_ids"]
        assert tokenize(gateway, **body)["tokens"] == asked


def test_the_template_takes_what_a_chat_may_give_it(gateway: Gateway) -> None:
    opened = tokenize(gateway, messages=MESSAGES)["tokens"]
    closed = tokenize(gateway, messages=MESSAGES, add_generation_prompt=False)["tokens"]
    assert opened[: len(closed)] == closed
    assert len(opened) > len(closed)
    assert tokenize(gateway, messages=MESSAGES, chat_template_kwargs={"unheard_of": 1})["tokens"] == opened


def test_the_only_model_need_not_be_named_and_v1_is_the_same(gateway: Gateway) -> None:
    found = post(gateway, "/v1/tokenize", prompt="hello").json()
    assert found == tokenize(gateway, prompt="hello")
    assert post(gateway, "/v1/detokenize", tokens=found["tokens"]).json() == {"prompt": "hello"}


WRONG: list[tuple[str, dict[str, Any], str | None]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
    ("/tokenize", {"prompt": 5}, "prompt"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/tokenize", {"messages": [{"role": "nobody", "content": "a"}]}, "messages[0].role"),
    ("/tokenize", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools[0].function"),
    ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, "chat_template"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ("/detokenize", {"tokens": [1, 2**31]}, "tokens[1]"),
]


@pytest.mark.parametrize(("path", "body", "param"), WRONG, ids=str)
def test_what_is_wrong_is_named(gateway: Gateway, path: str, body: dict[str, Any], param: str | None) -> None:
    answer = post(gateway, path, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_unknown_models(gateway: Gateway, gateway_without_workers: Gateway) -> None:
    assert post(gateway, "/tokenize", model="nobody", prompt="a").status_code == 404
    answer = post(gateway_without_workers, "/tokenize", prompt="a")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
