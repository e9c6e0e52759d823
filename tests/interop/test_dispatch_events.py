"""Calls and reasoning that streams tell of in one piece, by the real frontend and by ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.interop.parser_oracle import Case, ParserOracle, model_name
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

FLAGS = (
    "--enable-streaming-tool-dispatch",
    "--enable-streaming-reasoning-dispatch",
    "--reasoning-field-name=reasoning",
)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
PING = '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
THOUGHT = "<think>hm, let me</think>"
CHOICE = {"type": "function", "function": {"name": "get_weather"}}


def case(text: str, finish_reason: str = "stop", **body: Any) -> Case:
    return Case(text, "hermes", "qwen3", body=body, finish_reason=finish_reason)


SAME = {
    "thought and calls": case(f"{THOUGHT}Let me see. {CALL}{PING}"),
    "thought alone": case("<think>hm, let me"),
    "thought and content": case(f"{THOUGHT}Yes."),
    "content alone": case("Yes."),
    "required": case('[{"name": "ping", "parameters": {}}]', tool_choice="required"),
    "too long": case(f"{THOUGHT}{CALL} and", "length"),
}
DIFFERENT = {
    # It tells of a named call before its arguments have come.
    "named": (case('{"city": "Köln"}', tool_choice=CHOICE), ["{"], ['{"city": "Köln"}']),
    # It completes what was cut off; here that is not to be run.
    "cut off": (case(CALL.partition("}")[0], "length"), ['{"city": "Köln"}'], []),
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[ParserOracle]:
    with ParserOracle([("hermes", "qwen3")], *FLAGS) as oracle:
        yield oracle


@pytest.fixture(scope="module")
def ours(oracle: ParserOracle) -> Iterator[Gateway]:
    gateway = Gateway(*FLAGS, oracle.store.flag, mock_workers=0, environment=oracle.store.environment)
    with gateway:
        wait_until(lambda: gateway.models() == set(oracle.worker.models), "the models of all parsers")
        yield gateway


@pytest.mark.parametrize("name", SAME)
def test_the_same_is_told(oracle: ParserOracle, ours: Gateway, name: str) -> None:
    asked = SAME[name]
    real = _events(oracle, oracle.base_url, asked)
    # It tells of calls first where one chunk ends the thought and has a call; here each comes in its turn.
    assert sorted(_events(oracle, ours.base_url, asked), key=str) == sorted(real, key=str)


@pytest.mark.parametrize("name", DIFFERENT)
def test_differences(oracle: ParserOracle, ours: Gateway, name: str) -> None:
    asked, by_real, by_ours = DIFFERENT[name]
    assert _arguments(_events(oracle, oracle.base_url, asked)) == by_real
    assert _arguments(_events(oracle, ours.base_url, asked)) == by_ours


def _events(oracle: ParserOracle, base_url: str, asked: Case) -> list[tuple[str, Any]]:
    """In order, without the ids of calls."""
    body = {
        "model": model_name(asked.pair),
        "messages": [{"role": "user", "content": "Hello"}],
        "seed": oracle.worker.plan(asked),
        "max_tokens": 20_000,
        "tools": asked.tools,
        "stream": True,
        **asked.body,
    }
    answer = httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    named = [block.split("\n", 1) for block in answer.text.split("\n\n") if block.startswith("event: ")]
    return [(name, _without_id(json.loads(data.removeprefix("data: ")))) for name, data in named]


def _without_id(data: dict[str, Any]) -> dict[str, Any]:
    if "tool_call" in data:
        assert data["tool_call"].pop("id").startswith("call")
    return data


def _arguments(events: list[tuple[str, Any]]) -> list[str]:
    return [data["tool_call"]["function"]["arguments"] for _name, data in events if "tool_call" in data]
