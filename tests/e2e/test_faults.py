"""Everything that can die, dies under 200 concurrent answers: what may break, and what may not.

The answers are held back by their workers until the test opens the gate (tests/support/held_worker.py), so each fault
hits all of them, on any machine. An answer is whole when it has every token, its finish reason and its usage.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamo.frontend.main import DEMO_MODEL
from tests.support.completions import Completion, all_begun, all_ended
from tests.support.etcd import EtcdServer
from tests.support.fleet import LONG_PROMPT, SHORT_PROMPT, Fleet, HeldWorker, Metrics, fleet, fleet_in, get
from tests.support.processes import client_ports, cpu_ticks, is_alive, open_files, paused, resident_bytes
from tests.support.waiting import PATIENCE_S, until

STREAMS = 200
MIB = 1 << 20
MAX_TOKENS = 1 << 20  # that a request may ask for
LONG_TOKENS = " ConnectionResetError NotImplementedError DeprecationWarning"  # three in the demo's vocabulary


def not_whole(completions: list[Completion]) -> list[Completion]:
    """Empty, in a test that passes; else what to look at."""
    return [completion for completion in completions if not completion.is_whole]


async def running_streams(gateway: Fleet, count: int = STREAMS) -> list[Completion]:
    """All of them in the middle of their answer."""
    streams = await gateway.stream(count)
    await all_begun(streams)
    return streams


async def assert_serves(gateway: Fleet, count: int = 40) -> None:
    asked = await gateway.ask(count, SHORT_PROMPT)
    await all_ended(asked)
    assert not_whole(asked) == []


async def active_requests_are(gateway: Fleet, count: int) -> None:
    await until(lambda: num_active(gateway.metrics()) == count, f"{count} active requests at the router")


def num_active(metrics: Metrics, **labels: str) -> int:
    return metrics.total("dynamo_router_active_requests", **labels)


async def finish(gateway: Fleet, streams: list[Completion]) -> None:
    """Let the answers end: these are whole, and nothing is held for any request any more."""
    gateway.open_gates()
    await all_ended(streams)
    assert not_whole(streams) == []
    await active_requests_are(gateway, 0)


# ---- the router


def router_as_seen_by(acceptors: list[http.client.HTTPConnection]) -> set[str]:
    return {json.loads(get(acceptor, "/health")[1])["router"] for acceptor in acceptors}


async def test_no_request_fails_because_the_router_is_killed(tmp_path: Path) -> None:
    with fleet(tmp_path, num_workers=2) as gateway, gateway.connection_to_each_acceptor() as acceptors:
        streams = await running_streams(gateway)
        await until(lambda: num_placed(gateway.metrics()) == STREAMS, "every placement in the metrics")
        with paused(gateway.pid):  # or it would start another router at once
            kill(gateway.pid_of("router"))
            await assert_serves(gateway, 40)
            assert router_as_seen_by(acceptors) == {"away"}
        await until(lambda: router_as_seen_by(acceptors) == {"connected"}, "another router")
        await until(lambda: num_placed_locally(gateway.metrics()) == 40, "every local placement in the metrics")

        streams += await running_streams(gateway, 20)
        await active_requests_are(gateway, STREAMS + 20)
        await until(lambda: num_placed(gateway.metrics()) == STREAMS + 20, "placements by the new router")
        assert num_placed_locally(gateway.metrics()) == 40
        await finish(gateway, streams)


async def test_no_request_fails_while_routers_come_and_go(tmp_path: Path) -> None:
    """Other than above, placements are on their way at the very moment."""
    with fleet(tmp_path, num_workers=2) as gateway, gateway.connection_to_each_acceptor() as acceptors:
        for _ in range(3):
            asked = await gateway.ask(2 * STREAMS, SHORT_PROMPT)
            kill(gateway.pid_of("router"))
            await all_ended(asked)
            assert not_whole(asked) == []
            await until(lambda: router_as_seen_by(acceptors) == {"connected"}, "another router")
        await active_requests_are(gateway, 0)


def num_placed(metrics: Metrics) -> int:
    return metrics.total("dynamo_router_placements_total", outcome="placed")


def num_placed_locally(metrics: Metrics) -> int:
    return metrics.total("dynamo_frontend_local_placements_total")


def kill(pid: int) -> None:
    """Returns when it is dead; its parent may not have seen that yet."""
    os.kill(pid, signal.SIGKILL)
    while is_alive(pid):
        pass


# ---- an acceptor


async def test_a_killed_acceptor_takes_only_its_own_streams_along(tmp_path: Path) -> None:
    with fleet(tmp_path) as gateway:
        streams = await running_streams(gateway)
        victim, survivor = gateway.acceptors()
        lost, kept = gateway.held_by(victim, streams), gateway.held_by(survivor, streams)
        assert len(lost) + len(kept) == STREAMS
        with paused(victim):  # what it does not accept waits in the queue of its socket
            queued = await gateway.ask(64, SHORT_PROMPT)
            kill(victim)
        await all_ended(lost + queued)
        assert all(stream.is_broken for stream in lost)
        assert not_whole(queued) == []

        await active_requests_are(gateway, len(kept))
        [worker] = gateway.workers
        await until(lambda: worker.num_cancelled == len(lost), "the end of answers to the dead acceptor")
        await finish(gateway, kept)
        assert gateway.acceptors() == [gateway.pids_of("acceptor-0")[1], survivor]


# ---- a worker


async def test_a_killed_worker_takes_only_its_own_streams_along(tmp_path: Path) -> None:
    with fleet(tmp_path, "--inhibited-duration-s=600", "--migration-limit=0", num_workers=3) as gateway:
        streams = await running_streams(gateway, 160)
        answers = streams + await gateway.ask(40, LONG_PROMPT)
        await until(lambda: sum(worker.num_began for worker in gateway.workers) == len(answers), "begun answers")
        await active_requests_are(gateway, len(answers))
        victim, *others = gateway.workers
        num_lost = num_active(gateway.metrics(), worker=victim.instance_id)
        victim.kill()
        await until(lambda: sum(answer.has_failed for answer in answers) == num_lost, "errors told to clients")

        lost = [answer for answer in answers if answer.has_failed]
        assert {answer.is_stream for answer in lost} == {True, False}
        await assert_serves(gateway, 60)
        gateway.workers = others
        await finish(gateway, [answer for answer in answers if answer not in lost])
        await until(lambda: num_ended(gateway.metrics()) == len(answers) + 60, "every request in the metrics")
        # Whoever lost a stream to it said so, and from then on nobody was sent there.
        assert gateway.metrics().total("dynamo_frontend_dispatch_retries_total") == 0
        await until(lambda: gateway.metrics().total("dynamo_router_workers") == 2, "the end of its registration")
        await assert_serves(gateway)


def num_ended(metrics: Metrics) -> int:
    return metrics.total("dynamo_frontend_requests_total")


# ---- the supervisor


def processes_of(gateway: Fleet) -> list[int]:
    names = ("router", "acceptor-0", "acceptor-1", "mock-worker-0")
    return [gateway.pid_of(name) for name in names]


def run_dir_of(gateway: Fleet) -> Path:
    """The one whose lock it holds."""
    [lock] = {path for path in open_files(gateway.pid) if path.endswith("/lock")}
    return Path(lock).parent


async def drain(gateway: Fleet) -> None:
    gateway.signal(signal.SIGTERM)
    await until(lambda: gateway.log.count(": draining ") == 2, "the drain of both acceptors")


async def is_turned_away(gateway: Fleet) -> bool:
    """A new connection is refused, or told to go elsewhere; it is not left waiting."""
    try:
        [late] = await gateway.ask(1, SHORT_PROMPT)
    except ConnectionRefusedError:
        return True
    await all_ended([late])
    return (late.status, late.error and late.error["code"]) == (503, "shutting_down")


def status_of(gateway: Fleet, path: str) -> int:
    """On a new connection."""
    with contextlib.closing(http.client.HTTPConnection(*gateway.address, timeout=PATIENCE_S)) as connection:
        return get(connection, path)[0]


async def test_sigterm_lets_every_stream_finish_and_leaves_nothing(tmp_path: Path) -> None:
    with fleet(tmp_path, mock_workers=1) as gateway:
        streams = await running_streams(gateway)
        pids, run_dir = processes_of(gateway), run_dir_of(gateway)
        await drain(gateway)
        assert all([await is_turned_away(gateway) for _ in range(16)])
        assert (status_of(gateway, "/health"), status_of(gateway, "/live")) == (503, 200)
        gateway.open_gates()
        await all_ended(streams)
        assert not_whole(streams) == []
        assert await asyncio.to_thread(gateway.wait) == 0
        assert not any(map(is_alive, pids))
        assert not run_dir.exists()
        with pytest.raises(ConnectionRefusedError):
            await gateway.ask(1, SHORT_PROMPT)


async def test_a_second_sigterm_ends_everything_at_once(tmp_path: Path) -> None:
    with fleet(tmp_path, mock_workers=1) as gateway:
        streams = await running_streams(gateway)
        pids, run_dir = processes_of(gateway), run_dir_of(gateway)
        await drain(gateway)
        gateway.signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.wait) == 1
        await all_ended(streams)
        assert all(stream.is_broken for stream in streams)
        assert not any(map(is_alive, pids))
        assert not run_dir.exists()


async def test_a_killed_supervisor_leaves_no_orphans_and_no_stream_behind(tmp_path: Path) -> None:
    with fleet(tmp_path, mock_workers=1) as gateway:
        streams = await running_streams(gateway)
        pids = processes_of(gateway)
        gateway.kill()
        gateway.open_gates()
        await all_ended(streams)
        assert not_whole(streams) == []
        await until(lambda: not any(map(is_alive, pids)), "the end of all children")


# ---- discovery


async def test_no_request_fails_because_etcd_is_killed() -> None:
    with EtcdServer() as etcd:
        store = {"DYN_DISCOVERY_BACKEND": "etcd", "ETCD_ENDPOINTS": etcd.url}
        with fleet_in(store, num_workers=2) as gateway:
            streams = await running_streams(gateway)
            etcd.kill()
            await assert_serves(gateway)
            await asyncio.to_thread(etcd.start)
            await assert_serves(gateway)
            assert gateway.metrics().total("dynamo_router_workers") == 2
            with HeldWorker(gateway.environment()) as newcomer:
                await until(lambda: gateway.metrics().total("dynamo_router_workers") == 3, "a worker that is new")
                await assert_serves(gateway)
                assert newcomer.num_began > 0
                await finish(gateway, streams)


# ---- clients


async def test_clients_that_leave_stop_their_workers(tmp_path: Path) -> None:
    with fleet(tmp_path) as gateway:
        streams = await running_streams(gateway)
        leaving, staying = streams[:100], streams[100:]
        for stream in leaving:
            stream.abort()
        [worker] = gateway.workers
        await until(lambda: worker.num_cancelled == len(leaving), "the end of answers that nobody waits for")
        await active_requests_are(gateway, len(staying))
        await until(lambda: cancellations(gateway.metrics()) == {len(leaving)}, "every cancellation in the metrics")
        await finish(gateway, staying)
        assert worker.num_cancelled == len(leaving)


def cancellations(metrics: Metrics) -> set[int]:
    names = ("dynamo_frontend_model_cancellation_total", "dynamo_frontend_disconnected_clients")
    return {metrics.total(name) for name in names}


async def test_clients_that_leave_let_a_mock_worker_rest(tmp_path: Path) -> None:
    with fleet(tmp_path, mock_workers=1) as gateway:
        streams = await gateway.stream(100, model=DEMO_MODEL, max_tokens=MAX_TOKENS)  # minutes of work for the mocker
        await all_begun(streams)
        for stream in streams:
            stream.abort()
        await settled(lambda: cpu_ticks(gateway.pid_of("mock-worker-0")))
        await active_requests_are(gateway, 0)


async def test_a_client_that_does_not_read_holds_up_its_worker_and_nobody_else(tmp_path: Path) -> None:
    num_tokens = MAX_TOKENS  # 20 MB of text, and 64 MB on the way from the worker: more than sockets buffer
    with fleet(tmp_path, "--workers=1") as gateway:
        [worker], [acceptor] = gateway.workers, gateway.acceptors()
        [slow] = await gateway.stream(1, LONG_TOKENS * 20, max_tokens=num_tokens)
        await slow.begun.wait()
        slow.pause()
        before = resident_bytes(acceptor)
        await settled(lambda: worker.num_flooded)
        others = await running_streams(gateway)
        gateway.open_gates()
        await all_ended(others)
        assert not_whole(others) == []
        assert worker.num_flooded < num_tokens
        assert resident_bytes(acceptor) - before < 64 * MIB

        slow.resume()
        await all_ended([slow])
        assert (slow.is_answered, slow.has_said_done, slow.finish_reason) == (True, True, "length")
        assert slow.usage["completion_tokens"] == num_tokens
        assert slow.text == (slow.prompt * num_tokens)[: len(slow.text)]


async def settled(read: Callable[[], int]) -> None:
    """Until the number has not moved for a second."""
    seen = [read()]
    async with asyncio.timeout(PATIENCE_S):
        while seen[-2:] != [seen[-1]] * 2:
            await asyncio.sleep(1)
            seen.append(read())


# ---- several acceptors as one


async def test_connections_are_spread_over_all_acceptors(tmp_path: Path) -> None:
    """The kernel takes a socket by a hash of the connection's addresses: none of 4 is left out by 64 connections but
    once in 25 million times (4 * 0.75**64)."""
    with fleet(tmp_path, "--workers=4", num_workers=1) as gateway, contextlib.ExitStack() as connections:
        for _ in range(64):
            connection = http.client.HTTPConnection(*gateway.address, timeout=PATIENCE_S)
            connections.enter_context(contextlib.closing(connection))
            assert get(connection, "/live")[0] == 200
        shares = [len(client_ports(acceptor, gateway.address[1])) for acceptor in gateway.acceptors()]
        assert sum(shares) == 64
        assert min(shares) >= 1


async def test_metrics_are_the_same_whichever_acceptor_is_asked(tmp_path: Path) -> None:
    with fleet(tmp_path) as gateway:
        with gateway.connection_to_each_acceptor() as acceptors:
            streams = await running_streams(gateway)
            gateway.open_gates()
            counts = [0]
            while not all(stream.ended.is_set() for stream in streams):
                counts += [num_ended(Metrics(get(acceptor, "/metrics")[1])) for acceptor in acceptors]
                await asyncio.sleep(0)
            assert counts == sorted(counts), "a counter never goes back"
            await until(lambda: len({get(acceptor, "/metrics")[1] for acceptor in acceptors}) == 1, "one answer")
        metrics = gateway.metrics()
        assert num_ended(metrics) == STREAMS
        num_tokens = sum(stream.usage["completion_tokens"] for stream in streams)
        assert metrics.total("dynamo_frontend_output_tokens_total") == num_tokens

        kill(gateway.acceptors()[0])
        await until(lambda: len(gateway.pids_of("acceptor-0")) == 2, "its successor")
        with gateway.connection_to_each_acceptor() as acceptors:
            assert {num_ended(Metrics(get(acceptor, "/metrics")[1])) for acceptor in acceptors} == {STREAMS}
