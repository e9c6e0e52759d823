"""Requests that name their worker, over the whole product."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

NUM_WORKERS = 2


@pytest.fixture(scope="module", params=["round-robin", "kv", "direct"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with Gateway(f"--router-mode={request.param}", mock_workers=NUM_WORKERS) as started:
        wait_until(lambda: len(started.instances()) == NUM_WORKERS, "both workers")
        yield started


def mode_of(gateway: Gateway) -> str:
    return next(flag for flag in gateway.arguments() if flag.startswith("--router-mode=")).partition("=")[2]


def ask(gateway: Gateway, headers: dict[str, str], **fields: Any) -> tuple[int, dict[str, Any], str]:
    """Status, body and the worker that answered."""
    body = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 2, **fields}
    request = urllib.request.Request(
        f"{gateway.base_url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-dynamo-route-receipt": "true", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            worker = answer.headers["x-dynamo-route"].partition("worker=")[2].partition(";")[0]
            return answer.status, json.load(answer), worker
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), ""


def test_a_pinned_request_goes_to_its_worker(gateway: Gateway) -> None:
    for worker in sorted(gateway.instances()) * 3:
        for headers, fields in (
            ({"x-dynamo-worker-instance-id": str(worker)}, {}),
            ({}, {"nvext": {"backend_instance_id": worker}}),
        ):
            assert ask(gateway, headers, **fields)[::2] == (200, f"{worker:x}")


def test_a_pin_to_nobody_names_itself(gateway: Gateway) -> None:
    for headers, fields, param in (
        ({"x-worker-instance-id": "7"}, {}, "x-worker-instance-id"),
        ({}, {"nvext": {"backend_instance_id": 7}}, "nvext.backend_instance_id"),
    ):
        status, body, _worker = ask(gateway, headers, **fields)
        assert (status, body["error"]["param"]) == (400, param)
        assert "7" in body["error"]["message"]


def test_allowed_workers_are_the_only_ones_asked(gateway: Gateway) -> None:
    if mode_of(gateway) == "direct":
        pytest.skip("there each request names its worker")
    worker = min(gateway.instances())
    asked = {ask(gateway, {}, nvext={"allowed_worker_ids": [worker]})[::2] for _ in range(6)}
    assert asked == {(200, f"{worker:x}")}


def test_only_in_direct_mode_must_a_request_name_its_worker(gateway: Gateway) -> None:
    status, body, _worker = ask(gateway, {})
    if mode_of(gateway) == "direct":
        assert (status, body["error"]["param"]) == (400, "nvext.backend_instance_id")
        assert "must name its worker" in body["error"]["message"]
    else:
        assert status == 200
