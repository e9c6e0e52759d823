"""What a worker is told of the trace that a request belongs to: as 1.6.1, but with the client's own span as parent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.raw_worker import Call
from tests.support.served_acceptor import MODEL
from tests.support.stage import CHAT, Stage, open_stage

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
OURS = {"request-id", "x-endpoint-path", "x-frontend-send-ts-ns"}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


async def told(stage: Stage, headers: dict[str, str]) -> dict[str, str]:
    """Headers of the worker's frame, without those that every request has."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    asked = asyncio.create_task(stage.acceptor.ask("POST", CHAT, body, headers))
    call = await answered(stage)
    assert (await asked).status == 200
    return {name: value for name, value in call.headers.items() if name not in OURS}


async def answered(stage: Stage) -> Call:
    call = await stage.worker.next_call()
    call.ack()
    await call.call_home()
    call.prologue()
    call.tokens(300, finish_reason="stop")
    call.complete()
    return call


@pytest.mark.parametrize(
    "parent",
    [
        PARENT,
        f"00-{TRACE}-{SPAN}-00",
        pytest.param(f"01-{TRACE}-{SPAN}-01", id="of a later version"),
        pytest.param(f"01-{TRACE}-{SPAN}-01-more", id="of a later version that says more"),
    ],
)
async def test_a_parent_is_passed_on(stage: Stage, parent: str) -> None:
    assert await told(stage, {"traceparent": parent}) == {"traceparent": parent}


@pytest.mark.parametrize(
    "parent",
    [
        "garbage",
        "",
        pytest.param(f"00-{TRACE}-{SPAN}", id="without flags"),
        pytest.param(f"00-{TRACE}-{SPAN}-01-more", id="more than version 00 has"),
        pytest.param(f"ff-{TRACE}-{SPAN}-01", id="no version"),
        pytest.param(f"00-{TRACE.upper()}-{SPAN}-01", id="in capitals"),
        pytest.param(f"00-{'0' * 32}-{SPAN}-01", id="no trace"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", id="no span"),
        pytest.param(f"01-{TRACE}-{SPAN}-01-{'m' * 100}", id="too long"),
    ],
)
async def test_an_invalid_parent_is_ignored_and_its_state_with_it(stage: Stage, parent: str) -> None:
    assert await told(stage, {"traceparent": parent, "tracestate": "a=b"}) == {}


@pytest.mark.parametrize(
    ("state", "passed_on"),
    [
        ("a=b, c=d", "a=b, c=d"),
        ('a="b\\', 'a="b\\'),
        ("a=" + "b" * 510, "a=" + "b" * 510),
        pytest.param("a=" + "b" * 511, None, id="too long"),
        pytest.param("a=é", None, id="not ASCII"),
    ],
)
async def test_state_is_passed_on_as_it_is(stage: Stage, state: str, passed_on: str | None) -> None:
    expected = {"traceparent": PARENT} if passed_on is None else {"traceparent": PARENT, "tracestate": passed_on}
    assert await told(stage, {"traceparent": PARENT, "tracestate": state}) == expected


async def test_state_alone_says_nothing(stage: Stage) -> None:
    assert await told(stage, {"tracestate": "a=b"}) == {}


@pytest.mark.parametrize(
    ("path", "fields", "num_calls"),
    [
        ("/v1/completions", {"prompt": ["hi", "ho"]}, 2),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "n": 2}, 2),
        ("/v1/responses", {"input": "hi"}, 1),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}, 1),
    ],
)
async def test_every_call_of_every_api_is_part_of_the_trace(
    stage: Stage, path: str, fields: dict[str, Any], num_calls: int
) -> None:
    asked = asyncio.create_task(stage.acceptor.ask("POST", path, {"model": MODEL} | fields, {"traceparent": PARENT}))
    calls = [await answered(stage) for _ in range(num_calls)]
    assert (await asked).status == 200
    assert [call.headers["traceparent"] for call in calls] == [PARENT] * num_calls
