"""`dynamo-router replay`: logged decisions, taken again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dynamo.router.decisions import Decision, Row, read
from dynamo.router.replay import by_weights, replay
from dynamo.router.weights import Weights
from tests.router.logged_router import LoggedRouter
from tests.support.fleet import Metrics
from tests.support.gateway import Gateway
from tests.support.waiting import PATIENCE_S, wait_until

POLICIES = """
import numpy as np

def last(request, candidates):
    return -candidates.instance_ids.astype(float)

def failing(request, candidates):
    raise RuntimeError(request.label)

def sometimes(request, candidates):
    if request.num_tokens > 8:
        raise RuntimeError("too long")
    return candidates.decode_blocks
"""
WARM = Row(1, device_blocks=4, decode_blocks=5.0, new_blocks=2, num_requests=1, cost=9.0)
COLD = Row(2, new_blocks=6, cost=12.0)
IDLE = Row(3, dp_rank=1, host_blocks=1, new_blocks=6, cost=11.25)


def decision(chosen: Row = WARM, **fields: Any) -> Decision:
    known = {"at": 1.0, "label": "r", "model": "m", "worker_set": "s", "num_tokens": 24, "block_size": 4}
    choice = {"instance_id": chosen.instance_id, "dp_rank": chosen.dp_rank, "reason": "cost"}
    return Decision(**{**known, **choice, "candidates": [WARM, COLD, IDLE], **fields})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


@pytest.fixture
def log(path: Path) -> Path:
    """A long prompt is being answered by worker 1, and others come and go."""
    router = LoggedRouter(path)
    router.place("a.b.c.d.e.f", worker=1)
    router.complete_prefill()
    for prompt in ("a.b.c.d.e.f.g", "a.b.c.d.e.f.h", "a.b.c.d.e.f.i", "q.r", "q.r.s"):
        router.place(prompt)
        router.free()
    router.log.close()
    return path


def run(log: Path, *flags: str, status: int = 0) -> str:
    """Returns stdout, or where it fails stderr."""
    (log.parent / "own_policies.py").write_text(POLICIES)
    done = subprocess.run(
        [sys.executable, "-m", "dynamo.router", "replay", str(log), *flags],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(log.parent), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def as_json(log: Path, *flags: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run(log, "--json", *flags))
    return told


# --------------------------------------------------------------------------- what is decided again


def test_the_same_weights_decide_the_same() -> None:
    found = replay([decision(WARM)] * 3, by_weights(Weights(), random.Random(0)))
    assert (found.num_decisions, found.num_agreed) == (3, 3)
    assert found.as_dict()["replayed"] == found.as_dict()["logged"]


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        (Weights(), WARM),
        (Weights(overlap_score_credit=0.0), COLD),
        (Weights(decode_active_request_weight=5.0), IDLE),
        (Weights(overlap_score_credit=0.0, prefill_load_scale=100.0), COLD),
    ],
)
def test_other_weights_decide_otherwise(weights: Weights, chosen: Row) -> None:
    candidates = [WARM, COLD] if chosen is COLD else [WARM, COLD, IDLE]
    found = replay([decision(candidates=candidates)], by_weights(weights, random.Random(0)))
    assert found.num_agreed == (chosen is WARM)
    assert {rank for rank, count in found.replayed.per_rank.items() if count} == {(chosen.instance_id, chosen.dp_rank)}
    assert found.replayed.cached_blocks == chosen.device_blocks + chosen.host_blocks


def test_of_equals_the_one_that_was_chosen_is_chosen_again() -> None:
    rows = [Row(worker, new_blocks=6) for worker in range(9)]
    decisions = [decision(row, candidates=rows) for row in rows]
    assert replay(decisions, by_weights(Weights(), random.Random(0))).num_agreed == 9


def test_what_was_no_choice_is_left_out() -> None:
    decisions = [
        decision(reason="pinned"),
        decision(reason="affinity"),
        decision(candidates=[]),
        decision(candidates=[COLD]),  # the worker that was chosen is not among them
        decision(),
    ]
    found = replay(decisions, by_weights(Weights(), random.Random(0)))
    assert (found.num_decisions, found.num_skipped) == (1, 4)


def test_ranks_that_nobody_chose_count_as_uneven_load() -> None:
    found = replay([decision(WARM)] * 6, by_weights(Weights(), random.Random(0)))
    assert found.logged.num_ranks_used == 1
    assert found.logged.load_spread == pytest.approx(2**0.5)
    found = replay([decision(row) for row in (WARM, COLD, IDLE)], by_weights(Weights(), random.Random(0)))
    assert (found.logged.num_ranks_used, found.logged.load_spread) == (3, 0.0)


def test_a_mode_without_ranks_is_replayed_by_worker() -> None:
    found = replay([decision(WARM, dp_rank=None)], by_weights(Weights(), random.Random(0)))
    assert (found.num_decisions, found.num_agreed) == (1, 1)


def test_an_empty_log_has_nothing_to_say() -> None:
    told = replay([], by_weights(Weights(), random.Random(0))).as_dict()
    assert (told["decisions"], told["agreement"]) == (0, 0.0)


# --------------------------------------------------------------------------- the command


def test_a_table_for_people(log: Path) -> None:
    first, *_ = lines = run(log).splitlines()
    assert first.startswith("5 decisions, 1 skipped, ")
    assert [line.split()[0] for line in lines[1:]] == ["cached", "logged", "replayed"]


def test_json_for_programs(log: Path) -> None:
    told = as_json(log)
    assert (told["decisions"], told["skipped"], told["policy"]) == (5, 1, {})
    assert set(told["logged"]) == set(told["replayed"]) == {"cached_share", "load_spread", "ranks_used"}
    assert told["logged"]["cached_share"] > 0.5


def test_flags_are_those_of_the_router(log: Path) -> None:
    told = as_json(log, "--router-kv-overlap-score-credit=0", "--router-decode-active-request-weight=1")
    assert told["agreement"] < 1
    assert told["replayed"]["cached_share"] < told["logged"]["cached_share"]


def test_the_same_seed_draws_the_same(log: Path) -> None:
    flags = ("--router-temperature=5", "--random-seed=7")
    assert run(log, *flags) == run(log, *flags)


def test_a_policy_of_ones_own(log: Path) -> None:
    told = as_json(log, "--router-policy=own_policies:last")
    assert told["policy"] == {"used": 5}
    assert told["replayed"]["cached_share"] < told["logged"]["cached_share"]
    assert "policy: 5 used" in run(log, "--router-policy=own_policies:last")


def test_where_a_policy_fails_the_built_in_selection_decides(log: Path) -> None:
    told = as_json(log, "--router-policy=own_policies:failing")
    assert told["policy"] == {"error": 5}
    assert told["replayed"] == as_json(log)["replayed"]
    assert as_json(log, "--router-policy=own_policies:sometimes")["policy"] == {"error": 4, "used": 1}


@pytest.mark.parametrize(
    ("flags", "status", "complaint"),
    [
        (["--router-policy=own_policies:nothing"], 1, "has no 'nothing'"),
        (["--router-policy=no_such_module:f"], 1, "cannot be imported"),
        (["--router-temperature=-1"], 2, "--router-temperature"),
    ],
)
def test_options_that_do_not_fit_are_named(log: Path, flags: list[str], status: int, complaint: str) -> None:
    told = run(log, *flags, status=status)
    assert complaint in told
    assert "Traceback" not in told


@pytest.mark.parametrize("content", [b"no json\n", b"\x93torn", None])
def test_a_file_that_is_no_log_is_one_line(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    told = run(path, status=1)
    assert told.startswith("dynamo-router replay: ")
    assert str(path) in told
    assert told.count("\n") == 1


def test_without_a_log_it_says_how(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dynamo.router", "replay"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        "dynamo-router replay: name the log first: dynamo-router replay LOG [options]\n",
    )


# --------------------------------------------------------------------------- from a gateway


def test_decisions_of_a_gateway(path: Path) -> None:
    flags = ("--router-mode=kv", f"--router-decision-log={path}")
    with Gateway(*flags, mock_workers=2) as gateway:
        wait_until(lambda: len(gateway.instances()) == 2, "both workers")
        for i in range(4):
            prompt = f"{i} Tell me about the sea and its many inhabitants. " * 8
            assert complete(gateway, prompt)["completion_tokens"] == 2
        wait_until(lambda: len(list(read(path))) == 4, "the decisions to be written")
        wait_until(lambda: num_written(gateway) == 4, "them to be counted")
    told = as_json(path)
    assert (told["decisions"], told["skipped"]) == (4, 0)
    assert all(decision.label and len(decision.candidates) == 2 for decision in read(path))


def complete(gateway: Gateway, prompt: str) -> dict[str, int]:
    body = json.dumps({"model": gateway.model, "prompt": prompt, "max_tokens": 2}).encode()
    request = urllib.request.Request(f"{gateway.base_url}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        usage: dict[str, int] = json.load(answer)["usage"]
        return usage


def num_written(gateway: Gateway) -> int:
    with urllib.request.urlopen(f"{gateway.base_url}/metrics", timeout=PATIENCE_S) as answer:
        return Metrics(answer.read()).total("dynamo_router_decisions_total", outcome="written")
