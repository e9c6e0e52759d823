from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dynamo.router.recovery import RecoveryClient, RecoveryFailed
from dynamo.router.recovery_desk import History, Query
from dynamo.shared.kv_events import RecoveryTarget, TooNew, WorkerRank
from dynamo.shared.request_plane.client import EngineClient, EngineLimits
from dynamo.shared.request_plane.stream import ResponseServer
from tests.support.raw_worker import PATH, Call, RawWorker, raw_worker

EVENT = {
    "worker_id": 31,
    "storage_tier": "device",
    "residency_domain": "worker",
    "event": {"event_id": 7, "data": {"removed": {"block_hashes": [2**64 - 1]}}, "dp_rank": 1},
}
MAX_ANSWER_BYTES = 1 << 20


@asynccontextmanager
async def recovery_client(time_limit_s: float = 30) -> AsyncIterator[RecoveryClient]:
    server = ResponseServer("127.0.0.1", 0, max_message_size=MAX_ANSWER_BYTES)
    await server.start()
    client = EngineClient(server, EngineLimits())
    yield RecoveryClient(client, time_limit_s)
    client.close()
    server.stop()


def query_to(worker: RawWorker, codec: str | None = "msgpack", **transport: str) -> Query:
    transport = transport or {"tcp": f"{worker.address}/{PATH}"}
    target = RecoveryTarget("ns", "backend", "generate", 31, transport, request_plane_codec=codec)
    return Query(0, WorkerRank(31, 1), target, 7, is_check=False)


async def answered(worker: RawWorker, item: dict[str, Any]) -> Call:
    call = await worker.next_call()
    call.ack()
    await call.call_home()
    call.prologue()
    call.frame(item)
    call.complete()
    return call


async def ask(item: dict[str, Any], codec: str | None = "msgpack") -> tuple[History | TooNew, Call]:
    """What a worker is understood to say with this answer."""
    async with raw_worker() as worker, recovery_client() as client:
        asking = asyncio.create_task(client.ask(query_to(worker, codec)))
        call = await answered(worker, item)
        return await asking, call


@pytest.mark.parametrize("codec", ["msgpack", "json", None])
async def test_the_question_and_the_answer_are_in_the_codec_of_the_instance(codec: str | None) -> None:
    answer, call = await ask({"data": {"Events": {"events": [EVENT], "last_event_id": 7}}}, codec)
    assert call.control.payload_codec == (codec or "json")
    assert call.request == {
        "worker_id": 31,
        "dp_rank": 1,
        "start_event_id": 7,
        "end_event_id": None,
        "supports_tree_dump_failed": True,
        "kind": "recovery",
    }
    assert isinstance(answer, History)
    assert (answer.last_event_id, answer.is_whole) == (7, False)
    (event,) = answer.events
    assert event.event.event_id == 7


async def test_a_dump_is_whole() -> None:
    dump = {"events": [EVENT] * 3, "last_event_id": 12, "reset_scope": "all"}
    answer, _call = await ask({"data": {"TreeDump": dump}, "complete_final": False})
    assert isinstance(answer, History)
    assert (answer.last_event_id, answer.is_whole, len(list(answer.events))) == (12, True, 3)


async def test_the_newest_event_may_be_older_than_the_one_asked_for() -> None:
    answer, _call = await ask({"data": {"TooNew": {"requested_start": 7, "requested_end": 6, "newest_available": 6}}})
    assert answer == TooNew(7, 6, 6)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"data": {"Error": "dp_rank mismatch"}}, "dp_rank mismatch"),
        ({"data": {"InvalidRange": {"start_id": 7, "end_id": 3}}}, "the range 7 to 3"),
        ({"data": {"TreeDumpFailed": {"last_event_id": 5, "message": "too large"}}}, "too large"),
        ({"data": {"Novelty": 1}}, "nothing that is known"),
        ({"data": {"event": "error", "error": {"message": "boom"}}}, "nothing that is known"),
        ({"complete_final": True}, "nothing that is known"),
        ({"data": {"Events": {"events": "none"}}}, "cannot be read"),
        ({"data": {"Error": "x" * MAX_ANSWER_BYTES}}, "frame of"),
    ],
)
async def test_whatever_is_no_history_is_a_failure(item: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecoveryFailed, match=reason):
        await ask(item)


async def test_a_worker_that_says_nothing_has_failed_in_time() -> None:
    async with raw_worker() as worker, recovery_client(time_limit_s=0.05) as client:
        with pytest.raises(RecoveryFailed, match=r"no answer within 0\.05 s"):
            await client.ask(query_to(worker))


async def test_a_worker_that_is_gone_has_failed() -> None:
    async with raw_worker() as worker:
        query = query_to(worker)
    async with recovery_client() as client:
        with pytest.raises(RecoveryFailed, match="cannot be reached"):
            await client.ask(query)


async def test_a_request_plane_that_is_not_spoken_here_has_failed() -> None:
    async with raw_worker() as worker, recovery_client() as client:
        with pytest.raises(RecoveryFailed, match="nats_tcp"):
            await client.ask(query_to(worker, nats_tcp="subject"))
