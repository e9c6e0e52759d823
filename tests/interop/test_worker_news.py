"""What a worker tells besides text has the places and the words of the real frontend, standing beside ours."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from tests.interop.anchor import AnchorFrontend, ScriptedWorker, file_store
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPTS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"prompt": "hi there, you two"},
}
TOPS = [[{"rank": 1, "token_id": 300, "logprob": -0.5}, {"rank": 2, "token_id": 301, "logprob": -1.5}]]
PROMPT_LOGPROBS = [None, {"5": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}}]
ITEMS: list[dict[str, Any]] = [
    {"token_ids": [300], "log_probs": [-0.5], "top_logprobs": TOPS},
    {"token_ids": [301], "log_probs": [-0.25], "top_logprobs": [[{"rank": 1, "token_id": 301, "logprob": -0.25}]]},
    {
        "token_ids": [302],
        "log_probs": [-0.125],
        "top_logprobs": [[{"rank": 1, "token_id": 302, "logprob": -0.125}]],
        "finish_reason": "stop",
        "stop_reason": 302,
        "engine_data": {"a": 1, "prompt_logprobs": PROMPT_LOGPROBS, "routed_experts": {"data": "QQ==", "shape": [1]}},
    },
]


class Pair(NamedTuple):
    theirs: str
    ours: str
    worker: ScriptedWorker


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    store = file_store(tmp_path_factory.mktemp("store"))
    with ExitStack() as stack:
        worker = stack.enter_context(ScriptedWorker(store, "dynamo.backend.generate", "scripted"))
        worker.plan(*ITEMS)
        theirs = stack.enter_context(AnchorFrontend(store))
        ours = stack.enter_context(Gateway(store.flag, mock_workers=0, environment=store.environment))
        wait_until(lambda: "scripted" in theirs.models(), "the model at the real frontend")
        wait_until(lambda: "scripted" in (ours.models() or ()), "the model at ours")
        yield Pair(theirs.base_url, ours.base_url, worker)


def ask(base_url: str, path: str, fields: dict[str, Any], headers: dict[str, str] | None = None) -> str:
    data = json.dumps({"model": "scripted"} | PROMPTS[path] | fields).encode()
    asked = urllib.request.Request(base_url + path, data, {"content-type": "application/json", **(headers or {})})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def told(text: str) -> dict[str, Any]:
    """All that the `nvext` of an answer, or of its chunks, say; ids add up."""
    found: dict[str, Any] = {}
    lines = [line.removeprefix("data: ") for line in text.splitlines()]
    for part in (json.loads(line) for line in lines if line.startswith("{")):
        nvext = part.get("nvext", {})
        ids = found.get("completion_token_ids", []) + nvext.get("completion_token_ids", [])
        found |= nvext | ({"completion_token_ids": ids} if ids else {})
    return found


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_extra_fields_of_engines(pair: Pair, path: str, is_stream: bool) -> None:
    names = ["completion_token_ids", "engine_data", "routed_experts", "stop_reason", "prompt_logprobs"]
    fields = {"stream": is_stream, "nvext": {"extra_fields": names}}
    theirs, ours = told(ask(pair.theirs, path, fields)), told(ask(pair.ours, path, fields))
    assert set(theirs) == set(names)
    assert ours == theirs


def test_prompt_logprobs_of_a_chat(pair: Pair) -> None:
    theirs, ours = (json.loads(ask(url, CHAT, {"prompt_logprobs": 1})) for url in pair[:2])
    assert ours["prompt_logprobs"] == theirs["prompt_logprobs"] == PROMPT_LOGPROBS


@pytest.mark.parametrize("names_ids", [False, True])
@pytest.mark.parametrize("num_tops", [0, 2])
def test_logprobs(pair: Pair, num_tops: int, names_ids: bool) -> None:
    fields = {"return_tokens_as_token_ids": names_ids}
    chat = fields | {"logprobs": True, "top_logprobs": num_tops}
    theirs, ours = (json.loads(ask(url, CHAT, chat))["choices"][0]["logprobs"] for url in pair[:2])
    assert ours == theirs
    text = fields | {"logprobs": num_tops}
    theirs, ours = (json.loads(ask(url, COMPLETIONS, text))["choices"][0]["logprobs"] for url in pair[:2])
    assert (ours["tokens"], ours["token_logprobs"]) == (theirs["tokens"], theirs["token_logprobs"])
    if num_tops:  # of no alternatives they show some all the same, and none of the last token
        assert ours["top_logprobs"][:2] == theirs["top_logprobs"][:2]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_annotations(pair: Pair, path: str) -> None:
    uuid = "4b1f9f3e-0000-4000-8000-000000000001"
    asked = {"annotations": ["formatted_prompt", "llm_metrics", "token_ids", "request_id", "unknown"]}
    texts = [ask(url, path, {"stream": True, "nvext": asked}, {"x-dynamo-request-id": uuid}) for url in pair[:2]]
    theirs, ours = (text[: text.index("data: ")].split("\n\n") for text in texts)
    assert len(theirs) == (4 if path == CHAT else 3)  # an empty end after the events
    assert sorted(ours) == sorted(theirs)  # whose order the real one leaves to chance


@pytest.mark.parametrize(
    "fields",
    [
        {"bad_words_token_ids": [[1]], "allowed_token_ids": [5], "detokenize": False},
        {"nvext": {"metadata_upload": {"url": "http://a/b"}, "cache_salt": "s", "extra_fields": ["x"]}},
        {"media_io_kwargs": {"a": 1}, "mm_processor_kwargs": {"b": 2}},
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": {"type": "adaptive"}, "chat_template_kwargs": {"enable_thinking": False}},
        {"max_tokens": 9, "max_completion_tokens": 3, "thinking_token_budget": 2},
        {"logprobs": True, "prompt_logprobs": 2, "return_tokens_as_token_ids": True, "skip_special_tokens": True},
        {"nvext": {"agent_hints": {"priority": -3, "osl": 7}, "token_data": [5, 6]}},
        {"no_stop_trim": True, "best_of": 2, "echo": True, "logprobs": 1},
    ],
    ids=str,
)
def test_the_worker_is_told_the_same(pair: Pair, fields: dict[str, Any]) -> None:
    path = COMPLETIONS if "no_stop_trim" in fields else CHAT
    for url in pair[:2]:
        ask(url, path, fields)
    theirs, ours = (call["request"] for call in pair.worker.calls[-2:])
    assert ours == theirs
