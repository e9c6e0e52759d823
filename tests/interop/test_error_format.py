"""`--error-format dynamo` beside the real 1.6.1: the same fields with the same values, but for what messages say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.interop.anchor import AnchorFrontend, ScriptedWorker, Store, file_store
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
NAMESPACE = "custom"
TOKENS = {"token_ids": [1000, 1001]}


class Pair(NamedTuple):
    worker: ScriptedWorker
    ours: str
    real: str

    def ask(self, base_url: str, method: str = "POST", path: str = CHAT, **fields: Any) -> httpx.Response:
        body = {"model": self.worker.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | fields
        return httpx.request(method, base_url + path, json=body, timeout=60)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A worker that fails on demand is asked again at once."""
    shared = file_store(tmp_path_factory.mktemp("store"))
    store = Store(shared.backend, {**shared.variables, "DYN_RUNTIME_INHIBITED_DURATION_SECS": "0"})
    worker = ScriptedWorker(store, f"{NAMESPACE}.backend.generate", "m")
    flags = (store.flag, f"--namespace={NAMESPACE}", "--error-format=dynamo")
    ours = Gateway(*flags, mock_workers=0, environment=store.environment)
    real = AnchorFrontend(store, f"--namespace={NAMESPACE}")
    with worker, ours, real:
        wait_until(lambda: ours.models() == real.models() == {"m"}, "the model")
        yield Pair(worker, ours.base_url, real.base_url)


ERRORS = [
    "InvalidArgument",
    "RuntimeError",
    "Disconnected",
    "ConnectionTimeout",
    "404",
    "413",
    "429",
    "501",
    "503",
    "529",
]


@pytest.mark.parametrize("name", ERRORS)
def test_an_answer(pair: Pair, name: str) -> None:
    pair.worker.plan(error=(name, "what happened"))
    ours, real = pair.ask(pair.ours), pair.ask(pair.real)
    assert wordless(ours.json()) == wordless(real.json())
    assert ours.status_code == real.status_code
    if name == "InvalidArgument":
        assert ours.json() == real.json()


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "501"])
def test_a_stream(pair: Pair, name: str) -> None:
    """A 501 in mid-stream stays one there, and is a 500 before the stream has begun; here it is a 500 at any time."""
    pair.worker.plan(TOKENS, error=(name, "what happened"))
    ours, real = pair.ask(pair.ours, stream=True), pair.ask(pair.real, stream=True)
    assert last_frame(ours) == last_frame(real)


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("POST", CHAT, {"model": "unknown"}),
        ("POST", CHAT, {"temperature": 5}),
        ("POST", CHAT, {"messages": None}),
        ("GET", "/nothing", {}),
        ("GET", "/v1/models/unknown", {}),
    ],
)
def test_a_refusal(pair: Pair, method: str, path: str, fields: dict[str, Any]) -> None:
    ours, real = (pair.ask(base_url, method, path, **fields) for base_url in (pair.ours, pair.real))
    assert (ours.status_code, wordless(ours.json())) == (real.status_code, wordless(real.json()))


def wordless(error: dict[str, Any]) -> dict[str, Any]:
    assert error["message"]
    return error | {"message": ""}


def last_frame(answer: httpx.Response) -> dict[str, Any]:
    *_, frame, end, nothing = answer.text.split("\n\n")
    assert (end, nothing) == ("data: [DONE]", "")
    return wordless(json.loads(frame.removeprefix("data: "))["error"])
