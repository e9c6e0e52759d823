"""Workers that die or leave under many answers: their clients notice nothing.

Answers are held back by their workers until the test opens the gate (tests/support/held_worker.py), so each fault hits
all of them. An answer is whole when it has every token once, its finish reason and its usage.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.completions import Completion, all_begun, all_ended
from tests.support.fleet import LONG_PROMPT, SHORT_PROMPT, Fleet, Metrics, fleet, fleet_in
from tests.support.waiting import until

MODES = ("round-robin", "kv")


async def running_answers(gateway: Fleet, num_streams: int, num_unary: int) -> list[Completion]:
    """All of them in the middle, and known to the router."""
    answers = await gateway.stream(num_streams)
    await all_begun(answers)
    answers += await gateway.ask(num_unary, LONG_PROMPT)
    num_begun = num_streams + num_unary
    await until(lambda: sum(worker.num_began for worker in gateway.workers) == num_begun, "begun answers")
    await until(lambda: num_active(gateway.metrics()) == num_begun, "every request at the router")
    return answers


def num_active(metrics: Metrics, **labels: str) -> int:
    return metrics.total("dynamo_router_active_requests", **labels)


def num_active_at(gateway: Fleet) -> int:
    """With the workers that are left."""
    metrics = gateway.metrics()
    return sum(num_active(metrics, worker=worker.instance_id) for worker in gateway.workers)


def num_migrations(gateway: Fleet) -> int:
    return gateway.metrics().total("dynamo_frontend_model_migration_total")


async def finish(gateway: Fleet, answers: list[Completion]) -> None:
    gateway.open_gates()
    await all_ended(answers)
    assert [answer for answer in answers if not answer.is_whole] == []
    await until(lambda: num_active(gateway.metrics()) == 0, "no active request at the router")


@pytest.mark.parametrize("mode", MODES)
async def test_no_answer_is_lost_with_a_killed_worker(tmp_path: Path, mode: str) -> None:
    with fleet(tmp_path, f"--router-mode={mode}", num_workers=3) as gateway:
        answers = await running_answers(gateway, 60, 20)
        victim, *gateway.workers = gateway.workers
        num_moving = num_active(gateway.metrics(), worker=victim.instance_id)
        assert num_moving > 0
        victim.kill()
        await until(lambda: num_active_at(gateway) == len(answers), "answers taken over")
        await finish(gateway, answers)
        await until(lambda: num_migrations(gateway) == num_moving, "every migration in the metrics")
        assert gateway.metrics().total("dynamo_frontend_model_migration_exhausted_total") == 0


async def test_answers_survive_one_worker_after_another(tmp_path: Path) -> None:
    with fleet(tmp_path, num_workers=3) as gateway:
        answers = await running_answers(gateway, 30, 0)
        for num_left in (2, 1):
            victim, *gateway.workers = gateway.workers
            victim.kill()
            assert len(gateway.workers) == num_left
            await until(lambda: num_active_at(gateway) == len(answers), "answers taken over")
        await finish(gateway, answers)


async def test_with_the_last_worker_answers_end_in_an_error(tmp_path: Path) -> None:
    with fleet(tmp_path, num_workers=1) as gateway:
        answers = await running_answers(gateway, 10, 10)
        gateway.workers[0].kill()
        await all_ended(answers)
        assert all(answer.has_failed for answer in answers)
        await until(
            lambda: gateway.metrics().total("dynamo_frontend_model_migration_exhausted_total") == len(answers),
            "every failed migration in the metrics",
        )


async def test_a_worker_that_may_drain_no_longer_leaves_its_answers_to_others(tmp_path: Path) -> None:
    store = {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": os.fspath(tmp_path / "store"),
        "DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT": "1",
    }
    with fleet_in(store, num_workers=2) as gateway:
        answers = await running_answers(gateway, 20, 10)
        leaving, *gateway.workers = gateway.workers
        leaving.stop()
        [stayed] = gateway.workers
        await until(lambda: stayed.num_began == len(answers), "answers taken over")
        late = await gateway.ask(10, SHORT_PROMPT)
        await finish(gateway, answers + late)


async def test_a_client_that_leaves_after_a_move_stops_its_new_worker(tmp_path: Path) -> None:
    with fleet(tmp_path, num_workers=2) as gateway:
        answers = await running_answers(gateway, 10, 0)
        victim, survivor = gateway.workers
        victim.kill()
        await until(lambda: survivor.num_began == len(answers), "answers taken over")
        for answer in answers:
            answer.abort()
        await until(lambda: survivor.num_cancelled == len(answers), "the end of answers that nobody waits for")
        await until(lambda: num_active(gateway.metrics()) == 0, "no active request at the router")
