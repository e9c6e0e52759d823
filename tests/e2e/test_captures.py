"""Requests that a running 1.6.1 was sent, sent to us: the same answer, or a difference listed with its reason.

Answers are compared but for what must vary (see tests/captures/comparable.py); errors are in `--error-format dynamo`.
`differences.toml` names the cases that differ on purpose and those that cannot be replayed as they are.
"""

from __future__ import annotations

import http.client
import json
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.captures.comparable import comparable_answer, facts
from tests.support.captured_fleet import CapturedGateway, captured_model
from tests.support.gateway import Gateway

CAPTURES = Path(__file__).parents[1] / "captures"
LISTS: dict[str, list[dict[str, Any]]] = tomllib.loads((CAPTURES / "differences.toml").read_text())
Case = dict[str, Any]


def key(case: Case) -> str:
    return f"{case['group']}: {case['case']}"


def keys(entry: dict[str, Any]) -> list[str]:
    return [f"{entry['group']}: {case}" for case in entry["cases"]]


def by_case(entries: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: entry for entry in entries for name in keys(entry)}


CASES: dict[str, Case] = {
    key(case): case for case in map(json.loads, (CAPTURES / "cases.jsonl").read_text().splitlines())
}
OTHER_STATUS = by_case(LISTS["status"])
NOT_REPLAYABLE = by_case(LISTS["not_replayable"])
REPLAYED = [name for name in CASES if name not in NOT_REPLAYABLE]
SAME_STATUS = [name for name in REPLAYED if name not in OTHER_STATUS]
ERRORS = [name for name in SAME_STATUS if CASES[name]["status"] >= 400]


class Answer(NamedTuple):
    status: int
    text: str
    comparable: dict[str, Any]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    store, model_dir = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("model")
    with captured_model(store, model_dir):
        yield store


@pytest.fixture(scope="module")
def answers(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    return replayed(fleet, tmp_path_factory.mktemp("no-workers"), "dynamo")


@pytest.fixture(scope="module")
def openai_answers(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    return replayed(fleet, tmp_path_factory.mktemp("no-workers"), "openai")


def replayed(store: Path, empty_store: Path, error_format: str) -> dict[str, Answer]:
    """In the order of the captures: some change what later ones are told."""
    flags = (f"--error-format={error_format}", "--router-mode=kv")
    with ExitStack() as stack:
        gateway = stack.enter_context(CapturedGateway(store, *flags))
        without_workers = stack.enter_context(CapturedGateway(empty_store, *flags))
        gateway.wait_for_model()
        return {
            name: replay(without_workers if is_without_workers(name) else gateway, CASES[name]) for name in REPLAYED
        }


def is_without_workers(name: str) -> bool:
    return bool(CASES[name]["group"] == "noworker")


def replay(gateway: Gateway, case: Case) -> Answer:
    connection = http.client.HTTPConnection(*gateway.address, timeout=60)
    try:
        connection.request(case["method"], case["path"], body_of(case["body"]), case["headers"])
        answer = connection.getresponse()
        text = answer.read().decode()
        return Answer(answer.status, text, comparable_answer(answer.getheaders(), text))
    finally:
        connection.close()


def body_of(body: Any) -> bytes | None:
    if body is None:
        return None
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def changes(theirs: dict[str, Any], ours: dict[str, Any]) -> set[str]:
    """What they tell and we do not, and the other way round. More headers than theirs do no harm."""
    ours = {name: value for name, value in ours.items() if name in theirs}
    before, after = set(facts(theirs)), set(facts(ours))
    told = {f"- {fact}" for fact in before - after} | {f"+ {fact}" for fact in after - before}
    return told if told or theirs == ours else {"the order of what is told"}


@pytest.mark.parametrize("name", REPLAYED)
def test_the_status_is_that_of_1_6_1_or_a_listed_one(name: str, answers: dict[str, Answer]) -> None:
    listed = OTHER_STATUS.get(name)
    assert answers[name].status == (CASES[name]["status"] if listed is None else listed["ours"])


@pytest.mark.parametrize("name", SAME_STATUS)
def test_the_answer_is_that_of_1_6_1_but_for_listed_changes(name: str, answers: dict[str, Answer]) -> None:
    listed = {change for entry in LISTS["answer"] if name in keys(entry) for change in entry["changes"]}
    assert changes(CASES[name]["answer"], answers[name].comparable) - listed == set()


@pytest.mark.parametrize("name", [name for name in ERRORS if CASES[name]["path"] != "/busy_threshold"])
def test_errors_are_in_the_envelope_of_openai_unless_asked_otherwise(
    name: str, openai_answers: dict[str, Answer]
) -> None:
    answer = openai_answers[name]
    assert answer.status == CASES[name]["status"]
    error = json.loads(answer.text)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]


def test_what_is_listed_exists_once_and_differs(answers: dict[str, Answer]) -> None:
    assert OTHER_STATUS.keys() | NOT_REPLAYABLE.keys() <= CASES.keys()
    assert not OTHER_STATUS.keys() & NOT_REPLAYABLE.keys()
    assert [name for name, entry in OTHER_STATUS.items() if entry["ours"] == CASES[name]["status"]] == []
    assert all(entry["reason"] for entries in LISTS.values() for entry in entries)


@pytest.mark.parametrize("entry", LISTS["answer"], ids=lambda entry: entry["reason"])
def test_listed_changes_are_seen(entry: dict[str, Any], answers: dict[str, Answer]) -> None:
    seen = [changes(CASES[name]["answer"], answers[name].comparable) for name in keys(entry)]
    assert set(entry["changes"]) <= set().union(*seen)
    assert all(set(entry["changes"]) & of_case for of_case in seen)
