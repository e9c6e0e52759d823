"""Embedding workers on the real Dynamo 1.6.1's Python bindings behind our frontend and behind the real one, at once."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.interop.anchor import AnchorFrontend, ScriptedWorker, Store, file_store
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

PATH = "/v1/embeddings"
AWKWARD = [0.1, -1.5, 3.4028235e38, 1e-45, 1 / 3, 16777216.0, 1e-7, 100000.0, -0.0]


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@dataclass
class Frontends:
    ours: str
    real: str
    workers: dict[str, ScriptedWorker]


@pytest.fixture(scope="module")
def frontends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontends]:
    shared = file_store(tmp_path_factory.mktemp("store"))
    store = Store(shared.backend, {**shared.variables, "DYN_RUNTIME_INHIBITED_DURATION_SECS": "0"})
    workers = {
        model_input: ScriptedWorker(
            store, f"custom.{model_input}.generate", model_input, model_input=model_input, model_types=["Embedding"]
        )
        for model_input in ("Tokens", "Text")
    }
    ours = Gateway(store.flag, mock_workers=0, environment=store.environment)
    real = AnchorFrontend(store)
    with ExitStack() as stack:
        for server in (*workers.values(), ours, real):
            stack.enter_context(server)
        wait_until(lambda: ours.models() == real.models() == set(workers), "both frontends see both models")
        yield Frontends(ours.base_url, real.base_url, workers)
        assert "Traceback" not in ours.log


def plan(worker: ScriptedWorker, *vectors: Any) -> None:
    """Answer every request with these, in the words that its frontends expect of it."""
    if worker.model == "Tokens":
        worker.plan({"embeddings": list(vectors), "prompt_tokens": 5, "total_tokens": 5})
        return
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    worker.plan({"object": "list", "model": worker.model, "data": data, "usage": usage})


def embed(base_url: str, worker: ScriptedWorker, **body: Any) -> httpx.Response:
    return httpx.post(base_url + PATH, json={"model": worker.model} | body, timeout=60)


def answers(frontends: Frontends, worker: ScriptedWorker, **body: Any) -> tuple[httpx.Response, httpx.Response]:
    """Ours and the real one's, to calls that were the same."""
    pair = embed(frontends.ours, worker, **body), embed(frontends.real, worker, **body)
    ours, real = worker.calls[-2:]
    assert ours["request"] == real["request"]
    return pair


@pytest.fixture(params=["Tokens", "Text"])
def worker(frontends: Frontends, request: pytest.FixtureRequest) -> ScriptedWorker:
    return frontends.workers[request.param]


@pytest.mark.parametrize("encoding_format", [None, "float", "base64"])
def test_answers_are_the_same_to_the_byte(
    frontends: Frontends, worker: ScriptedWorker, encoding_format: str | None
) -> None:
    plan(worker, packed(*AWKWARD))
    chosen = {} if encoding_format is None else {"encoding_format": encoding_format}
    ours, real = answers(frontends, worker, input="hello world", **chosen)
    assert (ours.status_code, ours.content) == (200, real.content)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_workers_that_take_text_may_send_numbers(frontends: Frontends, encoding_format: str) -> None:
    """The real frontend sends them on as numbers, whatever the client has asked for."""
    worker = frontends.workers["Text"]
    plan(worker, [1.5, -2])
    ours, real = answers(frontends, worker, input="hi", encoding_format=encoding_format)
    assert real.json()["data"][0]["embedding"] == [1.5, -2]
    expected = [1.5, -2] if encoding_format == "float" else packed(1.5, -2)
    assert ours.json()["data"][0]["embedding"] == expected


@pytest.mark.parametrize(
    "inputs", [["a", "b"], [[1000, 1001], [1002]], [[1000], [1000]]], ids=["texts", "arrays of ids", "the same twice"]
)
def test_several_inputs_are_one_call(frontends: Frontends, worker: ScriptedWorker, inputs: list[Any]) -> None:
    plan(worker, packed(1, 2), packed(3, 4))
    ours, real = answers(frontends, worker, input=inputs)
    assert ours.content == real.content
    assert [entry["embedding"] for entry in ours.json()["data"]] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "options",
    [
        {"input": [1000, 1001]},
        {"input": "hi", "dimensions": 4, "user": "u"},
        {"input": "hi", "nvext": {"annotations": ["x"]}},
        {"input": "hello world and all", "truncate_prompt_tokens": 2},
        {"input": "hi", "truncate_prompt_tokens": -1, "add_special_tokens": False},
    ],
)
def test_workers_are_asked_the_same(frontends: Frontends, worker: ScriptedWorker, options: dict[str, Any]) -> None:
    plan(worker, packed(1, 2))
    ours, real = answers(frontends, worker, **options)
    assert ours.content == real.content


def test_fields_that_are_unknown_stay_here(frontends: Frontends, worker: ScriptedWorker) -> None:
    plan(worker, packed(1, 2))
    answers(frontends, worker, input="hi", unheard_of=1)
    assert "unheard_of" not in worker.calls[-1]["request"]


def test_what_the_worker_finds_wrong_is_told(frontends: Frontends, worker: ScriptedWorker) -> None:
    worker.plan(error=("InvalidArgument", "this model has one length"))
    for base_url in (frontends.ours, frontends.real):
        answer = embed(base_url, worker, input="hi", dimensions=7)
        assert (answer.status_code, "this model has one length" in answer.text) == (400, True)


def test_models_of_another_kind_are_not_found(frontends: Frontends, worker: ScriptedWorker) -> None:
    body = {"model": worker.model, "messages": [{"role": "user", "content": "hi"}]}
    for base_url in (frontends.ours, frontends.real):
        assert httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=60).status_code == 404


# ---- where ours differs


@pytest.mark.parametrize(("vectors", "inputs"), [([packed(1)], ["a", "b"]), ([packed(1), packed(2)], "a")])
def test_embeddings_that_do_not_match_their_inputs_are_no_answer(
    frontends: Frontends, worker: ScriptedWorker, vectors: list[str], inputs: Any
) -> None:
    """The real frontend passes on what there is, and a client takes one input's vector for another's."""
    plan(worker, *vectors)
    assert embed(frontends.real, worker, input=inputs).status_code == 200
    assert embed(frontends.ours, worker, input=inputs).status_code == 500


def test_empty_inputs_do_not_reach_the_worker(frontends: Frontends, worker: ScriptedWorker) -> None:
    plan(worker, packed(1, 2))
    empty: list[Any] = ["", [], [""], [[]]]
    for given in empty:
        assert embed(frontends.real, worker, input=given).status_code == 200
        assert embed(frontends.ours, worker, input=given).status_code == 400
