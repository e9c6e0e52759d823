"""Three whole gateways in one fleet: each knows the load of all, and what was set at one holds at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from openai import OpenAI

from tests.support.kv_gateway import KvGateway, Rank, prompt_of
from tests.support.nats import NatsServer
from tests.support.processes import paused
from tests.support.waiting import wait_until

MODEL = "demo"
BLOCK_SIZE = 64
THRESHOLDS = "/v1/admin/busy_threshold"


@pytest.fixture(scope="module", params=["zmq", "nats"])
def gateways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[KvGateway]]:
    """The first brings two workers along."""
    environment = {
        "DYN_FILE_KV": os.fspath(tmp_path_factory.mktemp("store")),
        "DYN_EVENT_PLANE": request.param,
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    }
    with ExitStack() as stack:
        environment["NATS_SERVER"] = stack.enter_context(NatsServer()).url
        flags = ("--discovery-backend=file", "--router-replica-sync", "--workers=1")
        gateways = [
            KvGateway(*flags, model=MODEL, environment=environment, mock_workers=num_workers)
            for num_workers in (2, 0, 0)
        ]
        for gateway in gateways:
            stack.enter_context(gateway)
            gateway.wait_until_it_has(2)
        yield gateways


@contextmanager
def held(gateway: KvGateway, prompt: list[int], at: Rank) -> Iterator[None]:
    """A request that runs as long as the block."""
    with OpenAI(base_url=f"{gateway.base_url}/v1", api_key="unused", max_retries=0) as client:
        stream = client.completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=2000,
            stream=True,
            extra_body={"nvext": {"backend_instance_id": at.worker_id}},
        )
        with closing(stream):
            next(iter(stream))
            yield


def loads(gateway: KvGateway) -> dict[Rank, int]:
    return {rank: int(one["load"]["decode_blocks"]) for rank, one in gateway.candidates([1, 2, 3]).items()}


def is_prefilled(gateway: KvGateway) -> bool:
    """Nobody's prompt counts any more, only what runs."""
    return not any(one["load"]["prefill_tokens"] for one in gateway.candidates([1, 2, 3]).values())


def test_each_knows_the_load_of_all(gateways: list[KvGateway]) -> None:
    first, second = gateways[0].ranks()
    with ExitStack() as requests:
        for number, (gateway, at) in enumerate(zip(gateways, (first, first, second), strict=True)):
            requests.enter_context(held(gateway, prompt_of(number, 20 * BLOCK_SIZE), at))
        for gateway in gateways:
            wait_until(lambda: loads(gateway) == {first: 40, second: 20}, "the load of all")  # noqa: B023
            wait_until(lambda: is_prefilled(gateway), "the first tokens of all")  # noqa: B023
            assert gateway.route(prompt_of(99, 20)).rank == second
    for gateway in gateways:
        wait_until(lambda: not any(loads(gateway).values()), "the end of all load")  # noqa: B023
    assert [gateway.complaints for gateway in gateways] == [[], [], []]


def test_thresholds_set_at_one_hold_at_all_and_at_who_comes_later(gateways: list[KvGateway]) -> None:
    late = gateways[2]
    late.stop()
    gateways[1].call("PUT", THRESHOLDS, {"active_prefill_tokens_threshold": 12_345})
    late.start()
    for gateway in gateways:
        wait_until(lambda: told(gateway) == 12_345, "the threshold")  # noqa: B023


def told(gateway: KvGateway) -> int | None:
    thresholds = (gateway.get(THRESHOLDS) or {}).get("thresholds") or [{}]
    value: int | None = thresholds[0].get("active_prefill_tokens_threshold")
    return value


def test_the_load_of_one_that_falls_silent_is_forgotten_until_it_speaks_again(gateways: list[KvGateway]) -> None:
    survivor, other = gateways[:2]
    at = survivor.ranks()[0]
    with held(other, prompt_of(1, 20 * BLOCK_SIZE), at):
        wait_until(lambda: loads(survivor)[at] == 20, "the load of the other")
        with paused(other.pid_of("router")):
            wait_until(lambda: not loads(survivor)[at], "it to be forgotten")
        wait_until(lambda: loads(survivor)[at] == 20, "it to be known again")
    wait_until(lambda: not loads(survivor)[at], "its end")


def test_a_killed_router_s_load_is_told_by_its_successor(gateways: list[KvGateway]) -> None:
    survivor, victim = gateways[:2]
    at = survivor.ranks()[0]
    with held(victim, prompt_of(1, 20 * BLOCK_SIZE), at):
        wait_until(lambda: loads(survivor)[at] == 20, "the load of the victim")
        start = len(survivor.log)
        os.kill(victim.pid_of("router"), signal.SIGKILL)
        wait_until(lambda: "is silent" in survivor.log[start:], "the router to be missed")
        wait_until(lambda: loads(survivor)[at] == 20, "its successor to tell")
    wait_until(lambda: not loads(survivor)[at], "its end")
