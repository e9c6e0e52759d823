"""Workers that take text, on the real Dynamo 1.6.1's Python bindings, behind our frontend and behind the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.interop.anchor import AnchorFrontend, ScriptedWorker, Store, file_store
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 1},
}


def chat_chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "w", "object": "chat.completion.chunk", "created": 5, "model": "w", "choices": [choice]} | more


def text_chunk(text: str, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}
    return {"id": "w", "object": "text_completion", "created": 5, "model": "w", "choices": [choice]} | more


def call_chunk(**call: Any) -> dict[str, Any]:
    return chat_chunk({"tool_calls": [{"index": 0} | call]})


@dataclass
class Frontends:
    ours: str
    real: str
    gateway: Gateway


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Frontends, ScriptedWorker]]:
    shared = file_store(tmp_path_factory.mktemp("store"))
    store = Store(shared.backend, {**shared.variables, "DYN_RUNTIME_INHIBITED_DURATION_SECS": "0"})
    worker = ScriptedWorker(store, "custom.backend.generate", "text", model_input="Text")
    ours = Gateway(store.flag, mock_workers=0, environment=store.environment)
    real = AnchorFrontend(store)
    with ExitStack() as stack:
        for server in (worker, ours, real):
            stack.enter_context(server)
        wait_until(lambda: ours.models() == real.models() == {"text"}, "both frontends see the model")
        yield Frontends(ours.base_url, real.base_url, ours), worker
        assert "Traceback" not in ours.log


@pytest.fixture
def frontends(stage: tuple[Frontends, ScriptedWorker]) -> Frontends:
    return stage[0]


@pytest.fixture
def worker(stage: tuple[Frontends, ScriptedWorker]) -> ScriptedWorker:
    return stage[1]


def post(base_url: str, path: str, **body: Any) -> httpx.Response:
    defaults = {"messages": MESSAGES} if path == CHAT else {"prompt": "hi"}
    return httpx.post(base_url + path, json={"model": "text"} | defaults | body, timeout=60)


def both(frontends: Frontends, path: str, **body: Any) -> tuple[httpx.Response, httpx.Response]:
    return post(frontends.ours, path, **body), post(frontends.real, path, **body)


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(event) for event in data if event != "[DONE]"]


def deltas(answer: httpx.Response) -> list[Any]:
    """What a stream adds up from, without `role`, and the empty content that ours tells with it."""
    found = []
    for chunk in chunks(answer):
        for choice in chunk.get("choices", ()):
            told = {name: value for name, value in choice.get("delta", {}).items() if value and name != "role"}
            found += [told] if told else []
            found += [choice["text"]] if choice.get("text") else []
    return found


def of_worker(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what names the answer, which ours does itself."""
    return {name: value for name, value in answer.items() if name not in ("id", "created", "model")}


# ---- what a worker is asked

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("path", "options"),
    [
        (CHAT, {}),
        (CHAT, {"max_tokens": 5, "temperature": 0.5, "stop": ["x"], "seed": 3, "user": "u"}),
        (CHAT, {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": False}}),
        (CHAT, {"logprobs": True, "top_logprobs": 2, "nvext": {"annotations": ["x"]}}),
        (CHAT, {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False}),
        (CHAT, {"response_format": {"type": "json_object"}, "chat_template_args": {"a": 1}}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
        (COMPLETIONS, {}),
        (COMPLETIONS, {"prompt": [1000, 1001], "max_tokens": 3, "stream": True}),
        (COMPLETIONS, {"prompt": "hi", "temperature": 0.0, "logprobs": 2, "stop": ["x"]}),
    ],
)
def test_workers_are_asked_the_same(
    frontends: Frontends, worker: ScriptedWorker, path: str, options: dict[str, Any]
) -> None:
    worker.plan(chat_chunk({"content": "a"}, "stop") if path == CHAT else text_chunk("a", "stop"))
    ours, real = both(frontends, path, **options)
    assert (ours.status_code, real.status_code) == (200, 200)
    asked, expected = (call["request"] for call in worker.calls[-2:])
    assert asked == expected


def test_each_prompt_is_a_call(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan(text_chunk("hel"), text_chunk("lo", "stop", usage=USAGE))
    num_before = len(worker.calls)
    ours, real = both(frontends, COMPLETIONS, prompt=["a", "b"])
    asked = [call["request"] for call in worker.calls[num_before:]]
    assert sorted(call["prompt"] for call in asked) == ["a", "a", "b", "b"]
    assert ours.json()["choices"] == real.json()["choices"]
    assert ours.json()["usage"]["completion_tokens"] == 8  # the real frontend tells those of one of them


def test_each_choice_is_a_call_with_a_seed_of_its_own(frontends: Frontends, worker: ScriptedWorker) -> None:
    """The real frontend leaves `n` to the worker, and clients with however many choices that makes."""
    worker.plan(chat_chunk({"content": "a"}, "stop", usage=USAGE))
    answer = post(frontends.ours, CHAT, n=2, seed=7).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert sorted(call["request"]["seed"] for call in worker.calls[-2:]) == [7, 8]
    assert all("n" not in call["request"] for call in worker.calls[-2:])
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 8)


# ---- what becomes of its answers

PLANS: dict[str, list[dict[str, Any]]] = {
    "content": [
        chat_chunk({"role": "assistant", "content": "hel"}),
        chat_chunk({"content": "lo"}, "stop", usage=USAGE),
    ],
    "reasoning": [
        chat_chunk({"reasoning_content": "hm"}),
        chat_chunk({"content": "so"}),
        chat_chunk({}, "length", usage=USAGE),
    ],
}


@pytest.mark.parametrize("name", PLANS)
def test_whole_chats(frontends: Frontends, worker: ScriptedWorker, name: str) -> None:
    worker.plan(*PLANS[name])
    ours, real = both(frontends, CHAT)
    assert of_worker(ours.json()) == of_worker(real.json())


@pytest.mark.parametrize("name", PLANS)
def test_streamed_chats(frontends: Frontends, worker: ScriptedWorker, name: str) -> None:
    worker.plan(*PLANS[name])
    ours, real = both(frontends, CHAT, stream=True)
    assert deltas(ours) == deltas(real)
    assert chunks(ours)[-1]["choices"][0]["finish_reason"] == chunks(real)[-1]["choices"][0]["finish_reason"]


def test_calls_are_streamed_as_they_come_and_whole_in_one_piece(frontends: Frontends, worker: ScriptedWorker) -> None:
    """The real frontend loses them where it puts an answer together."""
    worker.plan(
        call_chunk(id="c1", type="function", function={"name": "f", "arguments": '{"a":'}),
        call_chunk(function={"arguments": "1}"}),
        chat_chunk({}, "tool_calls"),
    )
    ours, real = both(frontends, CHAT, stream=True, tools=TOOLS)
    assert deltas(ours) == deltas(real)
    choice = post(frontends.ours, CHAT, tools=TOOLS).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert choice["message"]["tool_calls"] == [call]


def test_completions(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan(text_chunk("hel"), text_chunk("lo", "stop", usage=USAGE))
    ours, real = both(frontends, COMPLETIONS)
    assert ours.json()["choices"] == real.json()["choices"]
    assert ours.json()["usage"]["total_tokens"] == real.json()["usage"]["total_tokens"] == 7
    ours, real = both(frontends, COMPLETIONS, stream=True)
    assert deltas(ours) == deltas(real) == ["hel", "lo"]


def test_logprobs(frontends: Frontends, worker: ScriptedWorker) -> None:
    token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.5}]}
    chunk = chat_chunk({"content": "a"}, "stop")
    chunk["choices"][0]["logprobs"] = {"content": [token], "refusal": None}
    worker.plan(chunk)
    ours, real = both(frontends, CHAT, logprobs=True, top_logprobs=1)
    found, expected = (answer.json()["choices"][0]["logprobs"]["content"] for answer in (ours, real))
    assert [(one["token"], one["logprob"]) for one in found] == [(one["token"], one["logprob"]) for one in expected]
    assert found[0]["top_logprobs"][0]["token"] == "b"


def test_usage_may_come_after_the_end_in_a_chunk_of_its_own(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan(chat_chunk({"content": "a"}, "stop"), chat_chunk({}) | {"choices": [], "usage": USAGE})
    assert post(frontends.ours, CHAT).json()["usage"] == USAGE
    streamed = chunks(post(frontends.ours, CHAT, stream=True, stream_options={"include_usage": True}))
    assert (streamed[-1]["choices"], streamed[-1]["usage"]) == ([], USAGE)


def test_without_usage_chunks_are_counted(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan(chat_chunk({"content": "a"}), chat_chunk({"content": "b"}), chat_chunk({}, "stop"))
    usage = post(frontends.ours, CHAT).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (0, 2)


def test_errors(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan(error=("InvalidArgument", "what happened"))
    for is_streamed in (False, True):
        ours, real = both(frontends, CHAT, stream=is_streamed)
        assert ours.status_code == 400
        assert "what happened" in ours.text
        assert "what happened" in real.text
    worker.plan(chat_chunk({"content": "a"}), error=("InvalidArgument", "what happened"))
    streamed = post(frontends.ours, CHAT, stream=True)
    assert deltas(streamed)[0] == {"content": "a"}
    assert chunks(streamed)[-1]["error"]["message"] == "what happened"


def test_what_is_no_chunk_is_the_worker_s_fault(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan({"token_ids": [1]})
    ours, real = both(frontends, CHAT)
    assert ours.status_code >= 500 <= real.status_code


def test_a_client_that_leaves_kills_the_generation(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan(chat_chunk({"content": "a"}), waits=True)
    body = {"model": "text", "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", frontends.ours + CHAT, json=body, timeout=60) as answer:
        assert '"a"' in next(answer.iter_lines())
    last = worker.calls[-1]["id"]
    endings = {"killed"}
    wait_until(
        lambda: {ending["ending"] for ending in worker.endings if ending["id"] == last} == endings, "the worker is told"
    )


def test_only_the_worker_can_count_its_tokens(frontends: Frontends, worker: ScriptedWorker) -> None:
    answer = httpx.post(
        f"{frontends.ours}/v1/responses/input_tokens", json={"model": "text", "input": "hi"}, timeout=60
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    assert "tokenize by themselves" in answer.json()["error"]["message"]
