"""What the gateway says of its own routing, asked over HTTP: two acceptors, one router and two workers as processes."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

NUM_CONNECTIONS = 24  # the kernel gives each to any acceptor: one of two is left out once in ten million times
PROMPT = "Tell me about the sea and its many inhabitants, please. " * 12
THRESHOLDS = "/v1/admin/busy_threshold"
EXPLAIN = "/v1/admin/router/explain"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Gateway]:
    """Without KV events the router expects what it placed, so that the second placement of a prompt has a match."""
    with Gateway("--router-mode=kv", "--no-router-kv-events", "--workers=2", mock_workers=2) as gateway:
        wait_until(lambda: len(gateway.instances()) == 2, "both workers")
        yield gateway


def ask(gateway: Gateway, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    with closing(http.client.HTTPConnection(*gateway.address, timeout=30)) as connection:
        sent = None if body is None else json.dumps({"model": gateway.model} | body)
        connection.request(method, path, sent, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())


def test_a_threshold_holds_for_every_acceptor_at_once(fleet: Gateway) -> None:
    for limit in (10_000_000, 20_000_000):
        status, _, told = ask(fleet, "PUT", THRESHOLDS, {"active_prefill_tokens_threshold": limit})
        assert (status, told["active_prefill_tokens_threshold"]) == (200, limit)
        for _ in range(NUM_CONNECTIONS):
            assert ask(fleet, "GET", THRESHOLDS)[2]["thresholds"] == [told]
    assert ask(fleet, "PUT", THRESHOLDS, {})[2]["active_prefill_tokens_threshold"] is None


def test_questions_leave_no_load_behind(fleet: Gateway) -> None:
    """Nor do they make the router expect the prompt anywhere: the last of them says what all of them have left."""
    dry = {"prompt": PROMPT, "nvext": {"annotations": ["query_instance_id:"]}}
    for _ in range(20):
        status, _, answer = ask(fleet, "POST", "/v1/completions", dry)
        assert status == 200
        assert answer["usage"] is None
    status, _, told = ask(fleet, "POST", EXPLAIN, {"prompt": PROMPT})
    assert (status, told["outcome"]) == (200, "placed")
    assert [worker["load"]["requests"] for worker in told["candidates"]] == [0, 0]
    assert [worker["cached_blocks"]["device"] for worker in told["candidates"]] == [0, 0]
    assert told["choice"]["worker"] in {worker["worker"] for worker in told["candidates"]}


def test_the_explained_choice_is_the_one_that_is_made(fleet: Gateway) -> None:
    """A pin makes it certain; costs that are equal are drawn anew for each request."""
    for wanted in fleet.instances():
        body = {"prompt": PROMPT, "max_tokens": 2, "nvext": {"backend_instance_id": wanted}}
        assert ask(fleet, "POST", EXPLAIN, body)[2]["choice"]["worker_id"] == wanted
        _, headers, _ = ask(fleet, "POST", "/v1/completions", body, **{"x-dynamo-route-receipt": "true"})
        assert headers["x-dynamo-route"].startswith(f"worker={wanted:x}; rank=0; reason=pinned; ")


def test_a_receipt_compares_what_was_expected_with_what_was_found(fleet: Gateway) -> None:
    prompt = PROMPT + "Once more."
    wanted = min(fleet.instances())
    fields = {"extra_fields": ["route_receipt"], "backend_instance_id": wanted}
    body = {"prompt": prompt, "max_tokens": 2, "nvext": fields}

    def receipt() -> dict[str, Any]:
        told: dict[str, Any] = ask(fleet, "POST", "/v1/completions", body)[2]["nvext"]["route_receipt"]
        return told

    assert receipt()["reason"] == "pinned"
    told = receipt()
    assert told["predicted_cached_tokens"] == told["cached_tokens"] > 0
    assert told["matched_blocks"]["device"] == cached_blocks(fleet, prompt, wanted)
    assert told["worker_id"] == wanted


def cached_blocks(gateway: Gateway, prompt: str, worker_id: int) -> int:
    told = ask(gateway, "POST", EXPLAIN, {"prompt": prompt})[2]
    (blocks,) = [one["cached_blocks"]["device"] for one in told["candidates"] if one["worker_id"] == worker_id]
    return int(blocks)
