"""The routes for operators over real HTTP and a real channel; the router at its end says what the test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dynamo.shared.messages import (
    Candidate,
    Explain,
    Explained,
    Free,
    GetThresholds,
    Place,
    Placed,
    Receipt,
    Refused,
    RouterMessage,
    SetThresholds,
    Thresholds,
    ThresholdsAre,
)
from tests.support.scripted_router import WORKERS, Question, ScriptedRouter
from tests.support.served_acceptor import MODEL, ServedAcceptor, demo_set, serve

OFF = {
    "model": MODEL,
    "active_decode_blocks_threshold": None,
    "active_prefill_tokens_threshold": None,
    "active_prefill_tokens_threshold_frac": None,
}
PATHS = ["/busy_threshold", "/v1/admin/busy_threshold"]
EXPLAIN = "/v1/admin/router/explain"


class Remembering:
    """Thresholds of one model, kept as a router keeps them."""

    def __init__(self) -> None:
        self.values: list[Any] = [None, None, None]
        self.asked: list[Question] = []

    def __call__(self, question: Question) -> RouterMessage | None:
        self.asked.append(question)
        match question:
            case GetThresholds(request_id, model) if model not in (None, MODEL):
                return Refused(request_id, "model_not_found", "no such model")
            case SetThresholds(request_id, thresholds) if thresholds.model != MODEL:
                return Refused(request_id, "model_not_found", "no such model")
            case SetThresholds(_, thresholds, replaces):
                given = [
                    thresholds.active_decode_blocks_threshold,
                    thresholds.active_prefill_tokens_threshold,
                    thresholds.active_prefill_tokens_threshold_frac,
                ]
                pairs = zip(self.values, given, strict=True)
                self.values = [old if new is None and not replaces else new for old, new in pairs]
            case Explain():
                return explanation_of(question)
        return ThresholdsAre(question.request_id, [Thresholds(MODEL, *self.values)])


def explanation_of(question: Explain) -> Explained:
    request_id = question.place.request_id
    receipt = Receipt("cost", num_candidates=3, request_blocks=4, device_blocks=2, cost=3.5)
    return Explained(
        request_id,
        "placed",
        "set",
        16,
        4,
        Placed(request_id, 2, "set", 1, 2, receipt),
        [
            Candidate(1, 0, "inhibited"),
            Candidate(2, 0, "eligible", 1, 1, 0, 0, 640, 12.5, 3, 2, cost=40.0),
            Candidate(2, 1, "eligible", 2, 0, 1, 0, 0, 0.0, 2, 0, cost=3.5),
        ],
    )


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/router.sock"


@pytest.fixture
async def router(endpoint: str) -> AsyncIterator[ScriptedRouter]:
    made = ScriptedRouter(endpoint, WORKERS, [demo_set([1, 2])])
    made.answer_question = Remembering()
    yield made
    made.channel.close()


@pytest.fixture
async def acceptor(endpoint: str, router: ScriptedRouter, tmp_path: Path) -> AsyncIterator[ServedAcceptor]:
    async with serve(endpoint, tmp_path) as served:
        yield served


@pytest.mark.parametrize("path", PATHS)
async def test_thresholds_are_set_one_by_one_and_read_back(acceptor: ServedAcceptor, path: str) -> None:
    assert (await acceptor.ask("GET", path)).json == {"thresholds": [OFF]}
    first = await acceptor.ask("POST", path, {"model": MODEL, "active_decode_blocks_threshold": 0.85})
    assert (first.status, first.json) == (200, OFF | {"active_decode_blocks_threshold": 0.85})
    second = await acceptor.ask(
        "POST",
        path,
        {"model": MODEL, "active_decode_blocks_threshold": None, "active_prefill_tokens_threshold": 1000},
    )
    now = OFF | {"active_decode_blocks_threshold": 0.85, "active_prefill_tokens_threshold": 1000}
    assert second.json == now
    assert (await acceptor.ask("POST", path, {"model": MODEL})).json == now
    assert (await acceptor.ask("GET", path)).json == {"thresholds": [now]}


async def test_put_replaces_all_and_null_switches_off(acceptor: ServedAcceptor) -> None:
    path = PATHS[0]
    await acceptor.ask("POST", path, {"model": MODEL, "active_prefill_tokens_threshold": 5})
    replaced = await acceptor.ask("PUT", path, {"model": MODEL, "active_prefill_tokens_threshold_frac": 2.0})
    assert replaced.json == OFF | {"active_prefill_tokens_threshold_frac": 2.0}
    assert (await acceptor.ask("PUT", path, {"model": MODEL})).json == OFF
    misspelt = await acceptor.ask("PUT", path, {"model": MODEL, "active_prefil_tokens_threshold": 1})
    assert misspelt.status == 400
    assert "active_prefil_tokens_threshold" in misspelt.body.decode()


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "model"),
        ({"model": None}, 422, "model"),
        ({"model": 7}, 422, "model"),
        ({"model": MODEL, "active_prefill_tokens_threshold": 1.5}, 422, "active_prefill_tokens_threshold"),
        ({"model": MODEL, "active_prefill_tokens_threshold": -1}, 400, "active_prefill_tokens_threshold"),
        ({"model": MODEL, "active_prefill_tokens_threshold": 2**63}, 400, "active_prefill_tokens_threshold"),
        ({"model": MODEL, "active_decode_blocks_threshold": 1.5}, 400, "active_decode_blocks_threshold"),
        ({"model": MODEL, "active_prefill_tokens_threshold_frac": -0.5}, 400, "active_prefill_tokens_threshold_frac"),
        ({"model": "nope", "active_decode_blocks_threshold": 0.5}, 404, "model"),
        (b"{bad", 400, None),
        (b"", 400, None),
        ([], 422, None),
    ],
)
async def test_what_is_wrong_names_the_field(
    acceptor: ServedAcceptor, method: str, body: Any, status: int, param: str | None
) -> None:
    versioned = await acceptor.ask(method, PATHS[1], body)
    assert (versioned.status, versioned.json["error"]["param"]) == (status, param)
    plain = await acceptor.ask(method, PATHS[0], body)
    assert (plain.status, plain.json) == (status, {"error": versioned.json["error"]["message"]})
    assert param is None or param in plain.json["error"]


async def test_methods_and_types(acceptor: ServedAcceptor) -> None:
    refused = await acceptor.ask("DELETE", PATHS[0])
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, POST, PUT")
    assert (await acceptor.ask("POST", PATHS[0], {}, {"content-type": "text/plain"})).status == 415


async def test_a_router_that_is_away_is_named(acceptor: ServedAcceptor, router: ScriptedRouter) -> None:
    router.channel.close()
    answer = await acceptor.ask("GET", PATHS[0])
    assert answer.status == 503
    assert answer.json["error"]["code"] == "router_away"
    assert "retry-after" in answer.headers


async def test_a_router_that_says_nothing_is_named(
    acceptor: ServedAcceptor, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo.frontend.router_questions.ANSWER_TIMEOUT_S", 0.05)
    router.answer_question = lambda _question: None
    answer = await acceptor.ask("GET", PATHS[0])
    assert (answer.status, answer.json["error"]["code"]) == (503, "router_away")


async def test_switched_off(endpoint: str, router: ScriptedRouter, tmp_path: Path) -> None:
    async with serve(endpoint, tmp_path, disable_frontend_admin_api=True) as acceptor:
        for path in (*PATHS, EXPLAIN):
            answer = await acceptor.ask("GET", path)
            assert answer.status == 404
            assert "--disable-frontend-admin-api" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic s3cret"}, 401),
        ({"authorization": "Bearer s3cré"}, 401),
        ({"authorization": "Bearer s3cret"}, 200),
        ({"authorization": "bearer s3cret"}, 200),
    ],
)
async def test_the_admin_key(
    endpoint: str, router: ScriptedRouter, tmp_path: Path, headers: Mapping[str, str], status: int
) -> None:
    async with serve(endpoint, tmp_path, admin_api_key="s3cret") as acceptor:
        answer = await acceptor.ask("GET", PATHS[0], headers=headers)
        assert answer.status == status
        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert (await acceptor.ask("GET", "/live")).status == 200


async def test_a_prompt_is_explained_without_being_placed(acceptor: ServedAcceptor, router: ScriptedRouter) -> None:
    answer = await acceptor.ask("GET", f"{EXPLAIN}?model={MODEL}&prompt=Tell%20me%20about%20the%20sea")
    assert answer.status == 200
    told = answer.json
    asked = await router.hear(Explain)
    assert isinstance(asked, Explain)
    assert told["num_tokens"] == asked.place.num_tokens
    assert (told["model"], told["block_size"], told["request_blocks"], told["outcome"]) == (MODEL, 16, 4, "placed")
    assert told["choice"] == {"worker_id": 2, "worker": "2", "dp_rank": 1, "overlap_blocks": 2, "reason": "cost"}
    assert [(one["worker"], one["dp_rank"], one["cost"]) for one in told["candidates"]] == [
        ("2", 1, 3.5),
        ("2", 0, 40.0),
        ("1", 0, None),
    ]
    assert told["candidates"][1] == {
        "worker_id": 2,
        "worker": "2",
        "dp_rank": 0,
        "verdict": "eligible",
        "cost": 40.0,
        "cached_blocks": {"device": 1, "host": 1, "disk": 0, "external": 0},
        "new_blocks": 3,
        "load": {"prefill_tokens": 640, "decode_blocks": 12.5, "requests": 2},
    }
    assert not any(isinstance(message, Place | Free) for message in router.heard)


async def test_a_chat_is_explained_as_it_would_be_sent(acceptor: ServedAcceptor, router: ScriptedRouter) -> None:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me about the sea"}]}
    assert (await acceptor.ask("POST", EXPLAIN, chat | {"n": 2})).status == 200
    assert (await acceptor.ask("POST", EXPLAIN, {"model": MODEL, "prompt": "Tell me about the sea"})).status == 200
    as_chat, as_text = [message.place for message in router.heard if isinstance(message, Explain)]
    assert as_chat.num_tokens > as_text.num_tokens


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": MODEL}, 400, "prompt"),
        ({"prompt": "x"}, 400, "model"),
        ({"model": "nope", "prompt": "x"}, 404, "model"),
        ({"model": MODEL, "prompt": ["x", "y"]}, 400, "prompt"),
        ({"model": MODEL, "messages": []}, 400, "messages"),
        (b"[", 400, None),
    ],
)
async def test_what_cannot_be_explained(acceptor: ServedAcceptor, body: Any, status: int, param: str | None) -> None:
    answer = await acceptor.ask("POST", EXPLAIN, body)
    assert (answer.status, answer.json["error"]["param"]) == (status, param)
