"""Requests that a running 1.6.1 was sent, sent to us: the same status, or a difference listed with its reason.

`differences.toml` names the cases that differ on purpose and those that cannot be replayed as they are.
"""

from __future__ import annotations

import http.client
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway

CAPTURES = Path(__file__).parents[1] / "captures"
CASES: list[dict[str, Any]] = [json.loads(line) for line in (CAPTURES / "cases.jsonl").read_text().splitlines()]
LISTS: dict[str, list[dict[str, Any]]] = tomllib.loads((CAPTURES / "differences.toml").read_text())
CAPTURED_MODEL = "test-model"


def key(case: dict[str, Any]) -> str:
    return f"{case['group']}: {case['case']}"


def listed(kind: str) -> dict[str, dict[str, Any]]:
    return {f"{entry['group']}: {case}": entry for entry in LISTS[kind] for case in entry["cases"]}


DIFFERENCES = listed("difference")
NOT_REPLAYABLE = listed("not_replayable")


def replay(gateway: Gateway, case: dict[str, Any]) -> int:
    connection = http.client.HTTPConnection(*gateway.address, timeout=60)
    try:
        path = case["path"].replace(CAPTURED_MODEL, gateway.model)
        connection.request(case["method"], path, body_of(case["body"], gateway.model), case["headers"])
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def body_of(body: Any, model: str) -> bytes | None:
    if body is None:
        return None
    text = body if isinstance(body, str) else json.dumps(body)
    return text.replace(f'"{CAPTURED_MODEL}"', f'"{model}"').encode()


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=key(case)) for case in CASES if key(case) not in NOT_REPLAYABLE]
)
def test_status_is_that_of_1_6_1_or_a_listed_difference(case: dict[str, Any], request: pytest.FixtureRequest) -> None:
    fixture = "gateway_without_workers" if case["group"] == "noworker" else "gateway"
    status = replay(request.getfixturevalue(fixture), case)
    difference = DIFFERENCES.get(key(case))
    if difference is None:
        assert status == case["status"]
    else:
        assert status == difference["ours"], f"listed: {difference['reason']}"


def test_the_lists_name_cases_that_exist_once_and_differ() -> None:
    statuses = {key(case): case["status"] for case in CASES}
    assert DIFFERENCES.keys() | NOT_REPLAYABLE.keys() <= statuses.keys()
    assert not DIFFERENCES.keys() & NOT_REPLAYABLE.keys()
    assert [name for name, entry in DIFFERENCES.items() if entry["ours"] == statuses[name]] == []
    assert all(entry["reason"] for entry in (*LISTS["difference"], *LISTS["not_replayable"]))
