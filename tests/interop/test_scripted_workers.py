"""Workers on the real Dynamo 1.6.1's Python bindings behind our frontend and behind the real one, at once.

What the two frontends ask of a worker is the same; so is what they make of its answers, but for what is listed here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.interop.anchor import AS_THEIRS, AnchorFrontend, ScriptedWorker, Store, file_store
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

NAMESPACE = "custom"
INK, AT, QUOTE, CTORY, UME = 1000, 1001, 1002, 1004, 1003  # tokens of the demo model
TEXT = "ink @ctory"
END = 16377
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def likely(token_id: int, logprob: float, rank: int = 1) -> dict[str, Any]:
    return {"rank": rank, "token_id": token_id, "token": None, "logprob": logprob}


FRAMES: list[dict[str, Any]] = [
    {
        "token_ids": [INK, AT],
        "log_probs": [-0.5, -0.25],
        "top_logprobs": [[likely(INK, -0.5), likely(QUOTE, -1.5, 2)], [likely(AT, -0.25), likely(UME, -2.5, 2)]],
    },
    {
        "token_ids": [CTORY],
        "log_probs": [-0.75],
        "top_logprobs": [[likely(CTORY, -0.75)]],
        "finish_reason": "length",
        "completion_usage": {
            "prompt_tokens": 11,
            "completion_tokens": 3,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    },
]


@dataclass
class Frontends:
    """Their base URLs, and by codec the workers that both of them see."""

    gateway: Gateway
    ours: str
    real: str
    workers: dict[str, ScriptedWorker]


@pytest.fixture(scope="module")
def frontends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontends]:
    """A worker that fails on demand is asked again at once. One worker is in a namespace that nobody looks at."""
    shared = file_store(tmp_path_factory.mktemp("store"))
    store = Store(shared.backend, {**shared.variables, "DYN_RUNTIME_INHIBITED_DURATION_SECS": "0"})
    workers = {
        codec: ScriptedWorker(store, f"{NAMESPACE}.{codec}.generate", codec, codec=codec)
        for codec in ("msgpack", "json")
    }
    elsewhere = ScriptedWorker(store, f"{NAMESPACE}2.backend.generate", "elsewhere")
    ours = Gateway(store.flag, AS_THEIRS, f"--namespace={NAMESPACE}", mock_workers=0, environment=store.environment)
    real = AnchorFrontend(store, f"--namespace={NAMESPACE}")
    with ExitStack() as stack:
        for server in (*workers.values(), elsewhere, ours, real):
            stack.enter_context(server)
        wait_until(lambda: ours.models() == real.models() == set(workers), "the models of the namespace, and no others")
        yield Frontends(ours, ours.base_url, real.base_url, workers)
        assert "Traceback" not in ours.log
        assert elsewhere.calls == []


@pytest.fixture(params=["msgpack", "json"])
def worker(frontends: Frontends, request: pytest.FixtureRequest) -> ScriptedWorker:
    return frontends.workers[request.param]


def post(base_url: str, path: str, /, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    if path == CHAT:
        body = {"messages": MESSAGES} | body
    return httpx.post(base_url + path, json=body, headers=headers, timeout=60)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(event) for event in data if event != "[DONE]"]


# ---- what a worker is asked

TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {}),
    (CHAT, {"temperature": 0.3, "top_p": 0.5, "max_tokens": 5, "stop": ["foo"], "seed": 3}),
    (CHAT, {"frequency_penalty": 0.1, "presence_penalty": -0.2, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"max_completion_tokens": 5, "ignore_eos": True, "min_tokens": 2, "stop_token_ids": [7], "stop": ["x"]}),
    (CHAT, {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}}),
    (CHAT, {"response_format": {"type": "json_object"}}),
    (CHAT, {"nvext": {"annotations": ["x"], "cache_salt": "s", "agent_hints": {"priority": 3, "osl": 100}}}),
    (CHAT, {"nvext": {"token_data": [1, 2, 3], "max_thinking_tokens": 12}}),
    (CHAT, {"guided_regex": "a+"}),
    (CHAT, {"guided_grammar": "start: A", "guided_decoding_backend": "xgrammar"}),
    (CHAT, {"chat_template_args": {"enable_thinking": False}, "reasoning_effort": "low", "logit_bias": {"5": 3}}),
    (CHAT, {"tools": TOOLS, "tool_choice": "required"}),
    (CHAT, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}),
    (CHAT, {"tools": TOOLS, "tool_choice": "none", "parallel_tool_calls": False}),
    (CHAT, {"tools": TOOLS}),
    (CHAT, {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES]}),
    (COMPLETIONS, {"prompt": "Once upon a time", "max_tokens": 4, "logprobs": 2, "temperature": 0}),
    (COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 4, "skip_special_tokens": False}),
]


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_worker_is_asked_as_by_the_real_frontend(
    frontends: Frontends, worker: ScriptedWorker, path: str, body: dict[str, Any]
) -> None:
    worker.plan({"token_ids": [INK], "finish_reason": "length"})
    for base_url in (frontends.ours, frontends.real):
        assert post(base_url, path, model=worker.model, **body).status_code == 200
    [ours, real] = [call["request"] for call in worker.calls[-2:]]
    assert at_single_precision(ours) == at_single_precision(real)


TOOL_RESULT = [
    *MESSAGES,
    {
        "role": "assistant",
        "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "x", "content": "b"},
]
ROUTED: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    (CHAT, {"x-dynamo-request-priority": "+5"}, {"nvext": {"agent_hints": {"priority": 7, "strict_priority": 9}}}),
    (CHAT, {"x-dynamo-request-strict-priority": "3", "x-dynamo-request-priority": "-5"}, {}),
    (CHAT, {}, {"nvext": {"agent_hints": {"latency_sensitivity": 0.5, "osl": 4}}}),
    (CHAT, {"x-prefill-instance-id": "5", "x-dynamo-prefill-dp-rank": "1", "x-prefill-dp-rank": "2"}, {}),
    (CHAT, {"x-tenant-id": "t t"}, {"cache_salt": "a", "nvext": {"cache_salt": "b"}}),
    (CHAT, {"x-tenant-id": ""}, {"cache_salt": "a"}),
    (CHAT, {}, {"cache_salt": ""}),
    (CHAT, {"x-dynamo-meta-policy-class": "gold", "X-Dynamo-Meta-Foo-Bar": "x"}, {}),
    (CHAT, {"x-dynamo-session-id": "s s", "x-dynamo-session-final": "TRUE", "x-session-id": "n"}, {}),
    (CHAT, {"x-dynamo-session-id": "s", "x-dynamo-parent-session-id": "p"}, {"messages": TOOL_RESULT}),
    (CHAT, {"x-claude-code-session-id": "c", "x-claude-code-agent-id": "a", "thread-id": "t"}, {}),
    (CHAT, {"x-claude-code-session-id": "c", "x-claude-code-parent-agent-id": "pa"}, {}),
    (CHAT, {"thread-id": "t", "x-codex-parent-thread-id": "pt", "x-session-id": "n"}, {}),
    (CHAT, {"x-claude-code-agent-id": "a", "x-parent-session-id": "p"}, {}),
    (COMPLETIONS, {"x-session-id": "n", "x-parent-session-id": "p"}, {"prompt": "Once"}),
    (CHAT, {}, {"nvext": {"routing_constraints": {"required_taints": [], "preferred_taints": {"a": 0.5}}}}),
    (CHAT, {}, {"nvext": {"router": {"ttft_target": 5}, "request_timestamp_ms": 5}}),
]


@pytest.mark.parametrize(("path", "headers", "body"), ROUTED)
def test_a_worker_is_told_of_its_routing_as_by_the_real_frontend(
    frontends: Frontends, worker: ScriptedWorker, path: str, headers: dict[str, str], body: dict[str, Any]
) -> None:
    worker.plan({"token_ids": [INK], "finish_reason": "length"})
    for base_url in (frontends.ours, frontends.real):
        assert post(base_url, path, headers, model=worker.model, **body).status_code == 200
    [ours, real] = worker.calls[-2:]
    assert at_single_precision(ours["request"]) == at_single_precision(real["request"])
    assert ours["metadata"] == real["metadata"]


@pytest.mark.parametrize("name", ["x-worker-instance-id", "nvext.backend_instance_id"])
def test_a_pin_is_told_as_by_the_real_frontend(frontends: Frontends, worker: ScriptedWorker, name: str) -> None:
    worker.plan({"token_ids": [INK], "finish_reason": "length"})
    health = httpx.get(f"{frontends.ours}/health").json()["instances"]
    [pinned] = [instance["instance_id"] for instance in health if instance["component"] == worker.model]
    for base_url in (frontends.ours, frontends.real):
        for asked, status in ((pinned, 200), (7, 400)):
            if name.startswith("x-"):
                answer = post(base_url, CHAT, {name: str(asked), "x-dp-rank": "0"}, model=worker.model)
            else:
                nvext = {"backend_instance_id": asked, "dp_rank": 0}
                answer = post(base_url, CHAT, model=worker.model, nvext=nvext)
            assert answer.status_code == status
    [ours, real] = [call["request"]["routing"] for call in worker.calls[-2:]]
    assert ours == real
    assert ours["backend_instance_id"] == pinned


def at_single_precision(value: Any) -> Any:
    """The real frontend keeps sampling options in 32 bits."""
    match value:
        case float():
            return struct.unpack("f", struct.pack("f", value))[0]
        case dict():
            return {key: at_single_precision(item) for key, item in value.items()}
        case list():
            return [at_single_precision(item) for item in value]
        case _:
            return value


def test_what_it_is_asked(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan({"token_ids": [INK], "finish_reason": "length"})
    post(frontends.ours, COMPLETIONS, model=worker.model, prompt=[5, 6, 7], temperature=0.3, max_tokens=9, stop="foo")
    call = worker.calls[-1]
    request = call["request"]
    assert request["token_ids"] == [5, 6, 7]
    assert request["stop_conditions"]["max_tokens"] == 9
    assert request["stop_conditions"]["stop"] == ["foo"]
    assert request["stop_conditions"]["stop_token_ids_hidden"] == request["eos_token_ids"] == [END, 16375]
    assert request["sampling_options"]["temperature"] == 0.3
    assert len(call["id"]) == 36


@pytest.mark.parametrize(
    ("path", "body"), [(COMPLETIONS, {"prompt": list("abcdefgh")}), (CHAT, {"n": 8, "temperature": 1})]
)
def test_choices_are_calls_that_a_worker_can_tell_apart(
    frontends: Frontends, worker: ScriptedWorker, path: str, body: dict[str, Any]
) -> None:
    worker.plan({"token_ids": [INK], "finish_reason": "length"})
    num_before = len(worker.calls)
    for _ in range(20):
        answer = post(frontends.ours, path, model=worker.model, **body)
        assert [choice["index"] for choice in answer.json()["choices"]] == list(range(8))
    ids = [call["id"] for call in worker.calls[num_before:]]
    assert len(ids) == len(set(ids)) == 160


# ---- what becomes of its answers


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, {"logprobs": True, "top_logprobs": 2}), (COMPLETIONS, {"prompt": "Once", "logprobs": 2})]
)
def test_tokens_and_their_probabilities(
    frontends: Frontends, worker: ScriptedWorker, path: str, body: dict[str, Any], is_streamed: bool
) -> None:
    worker.plan(*FRAMES)
    ours, real = (
        post(base_url, path, model=worker.model, stream=is_streamed, **body)
        for base_url in (frontends.ours, frontends.real)
    )
    text, logprobs, finish_reason = told(ours)
    assert (text, logprobs, finish_reason) == told(real)
    assert (text, len(logprobs), finish_reason) == (TEXT, 3, "length")


def test_usage_with_what_the_worker_had_cached(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan(*FRAMES)
    ours, real = (post(base_url, CHAT, model=worker.model).json() for base_url in (frontends.ours, frontends.real))
    assert ours["usage"] == real["usage"] == FRAMES[-1]["completion_usage"]


def told(answer: httpx.Response) -> tuple[str, list[Any], str | None]:
    """Text, log probabilities and finish reason of a body or of a stream, wherever a frontend cuts its chunks."""
    is_streamed = answer.headers["content-type"].startswith("text/event-stream")
    parts = events(answer) if is_streamed else [answer.json()]
    text, logprobs, finish_reason = "", [], None
    for choice in (choice for part in parts for choice in part.get("choices", ())):
        message = choice.get("message") or choice.get("delta") or {}
        text += choice.get("text") or message.get("content") or ""
        logprobs += of_tokens(choice.get("logprobs") or {})
        finish_reason = choice.get("finish_reason") or finish_reason
    return text, logprobs, finish_reason


def of_tokens(logprobs: dict[str, Any]) -> list[Any]:
    """Without `token_id`, which only the real frontend adds, and `text_offset`, which only ours fills."""
    if "content" in logprobs:
        return [{key: value for key, value in token.items() if key != "token_id"} for token in logprobs["content"]]
    columns = [logprobs.get(key, ()) for key in ("tokens", "token_logprobs", "top_logprobs")]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("reason", ["eos", "stop", "length", "cancelled", "content_filter"])
def test_reasons_to_finish(frontends: Frontends, worker: ScriptedWorker, reason: str) -> None:
    worker.plan({"token_ids": [INK]}, {"token_ids": [END], "finish_reason": reason})
    for is_streamed in (False, True):
        body: dict[str, Any] = {"model": worker.model, "stream": is_streamed}
        assert told(post(frontends.ours, CHAT, **body)) == told(post(frontends.real, CHAT, **body))


def test_a_stop_string_kills_the_generation(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan({"token_ids": [INK, AT, CTORY]}, waits=True)
    answer = post(frontends.ours, CHAT, model=worker.model, stop=[" @c"])
    assert answer.json()["choices"][0]["message"]["content"] == "ink"
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    wait_until(lambda: ending_of_the_last_call(worker) == "killed", "the worker is told")


def test_a_client_that_leaves_kills_the_generation(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan({"token_ids": [INK]}, waits=True)
    body = {"model": worker.model, "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", frontends.ours + CHAT, json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert "ink" in next(lines)
        assert ending_of_the_last_call(worker) is None
    wait_until(lambda: ending_of_the_last_call(worker) == "killed", "the worker is told")


def ending_of_the_last_call(worker: ScriptedWorker) -> str | None:
    last = worker.calls[-1]["id"]
    return next((ending["ending"] for ending in worker.endings if ending["id"] == last), None)


# ---- what becomes of its errors

ERRORS = {
    "InvalidArgument": 400,
    "ValueError": 400,
    "TypeError": 400,
    "RuntimeError": 500,
    "Unknown": 500,
    "CannotConnect": 503,
    "Disconnected": 503,
    "EngineShutdown": 503,
    "StreamIncomplete": 503,
    "WorkerUnavailable": 503,
    "ConnectionTimeout": 504,
    "TimeoutError": 504,
}


@pytest.mark.parametrize(("name", "status"), ERRORS.items())
def test_exceptions_have_the_status_of_the_real_frontend(frontends: Frontends, name: str, status: int) -> None:
    """What a worker says of a failure of its own, or of its going away, is for our log and not for the client."""
    worker = frontends.workers["msgpack"]
    worker.plan(error=(name, "what happened"))
    ours = post(frontends.ours, CHAT, model=worker.model)
    assert ours.status_code == status == post(frontends.real, CHAT, model=worker.model).status_code
    assert ("what happened" in ours.json()["error"]["message"]) == (status not in (500, 503))
    assert "what happened" in frontends.gateway.log
    assert post(frontends.ours, CHAT, model=worker.model, stream=True).status_code == status


@pytest.mark.parametrize("chosen", [400, 401, 403, 404, 409, 413, 415, 422, 429, 451, 500, 501, 502, 503, 504, 529])
def test_a_handler_s_own_choice_of_a_status_is_that_of_the_real_frontend(frontends: Frontends, chosen: int) -> None:
    """The real frontend has phrases of its own in place of the worker's words, and turns a 4xx that it does not know
    into 400."""
    worker = frontends.workers["msgpack"]
    worker.plan(error=(str(chosen), "what happened"))
    real = post(frontends.real, CHAT, model=worker.model)
    for stream in (False, True):
        ours = post(frontends.ours, CHAT, model=worker.model, stream=stream)
        assert ours.status_code == (chosen if real.status_code == 400 else real.status_code)
        error = ours.json()["error"]
        assert error["message"].startswith("what happened") == (ours.status_code != 500)
        assert error.get("details") == real.json().get("details")


def test_a_generation_cancelled_by_its_worker_may_be_tried_again(frontends: Frontends) -> None:
    """The real frontend answers 499, as if the client had left."""
    worker = frontends.workers["msgpack"]
    worker.plan(error=("Cancelled", "what happened"))
    assert post(frontends.real, CHAT, model=worker.model).status_code == 499
    answer = post(frontends.ours, CHAT, model=worker.model)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_cancelled")


def test_an_invalid_argument_is_told_in_the_worker_s_words(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan(error=("InvalidArgument", "the prompt is too long by 7"))
    answer = post(frontends.ours, CHAT, model=worker.model)
    assert answer.json()["error"] == {
        "message": "the prompt is too long by 7",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_request",
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("InvalidArgument", "what happened"),
        ("RuntimeError", "The worker failed to serve this request"),
        ("Disconnected", "The worker went away before the answer was complete"),
    ],
)
def test_an_error_after_tokens_is_a_frame_of_the_stream(
    frontends: Frontends, worker: ScriptedWorker, name: str, message: str
) -> None:
    worker.plan({"token_ids": [INK, AT]}, error=(name, "what happened"))
    answer = post(frontends.ours, CHAT, model=worker.model, stream=True)
    assert answer.status_code == 200
    assert told(answer)[0] == "ink @"
    assert message in events(answer)[-1]["error"]["message"]
    assert "[DONE]" not in answer.text


def test_the_finish_reason_error_is_an_error(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan({"token_ids": [INK], "finish_reason": {"error": "out of ideas"}})
    answer = post(frontends.ours, CHAT, model=worker.model)
    assert answer.status_code == 500
    assert "out of ideas" not in answer.text
    assert "out of ideas" in frontends.gateway.log
