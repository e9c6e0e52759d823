"""The cost of a placement, and the load it is made of, against the selection core of the real Dynamo 1.6.1."""

from __future__ import annotations

import json
import math
import os
import random
import struct
import subprocess
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import fields

from dynamo.router.active import ActiveSequences
from dynamo.router.cost import Candidates, costs, pick, spread
from dynamo.router.weights import Weights
from dynamo.shared.hashing import block_hashes, pack_tokens, sequence_hashes
from dynamo.shared.protocol import RouterConfigOverride
from tests.interop.anchor import ANCHOR_PYTHON, LOOPBACK, MODEL_PATH, file_store

BLOCK_SIZE = 4
WORKERS = [1, 2, 3]
PROMPT = list(range(42))
STORED = [
    (1, "GPU", PROMPT[:24], 0),
    (2, "GPU", PROMPT[:8], 0),
    (2, "CPU", PROMPT[:16], 2),
    (2, "DISK", PROMPT[:20], 4),
    (2, "EXTERNAL", PROMPT[:28], 5),
]
TIERS = {"device_blocks": [6, 2, 0], "host_blocks": [0, 2, 0], "disk_blocks": [0, 1, 0], "external_blocks": [0, 2, 0]}
TAINTS = {"dear": 0.5, "unknown": -3.0}

# Requests that run: worker, prompt, whether prefill is over, blocks of output, expected output. The one with output is
# such that the weight of its blocks is whole, for Dynamo rounds.
RUNNING = [
    (1, PROMPT[:16] + [7] * 9, False, 0, None),
    (1, PROMPT[:16] + [7] * 4, True, 0, None),
    (2, [9] * 24, True, 2, 10),
    (3, PROMPT[:30], True, 0, None),
    (3, [5] * 3, False, 0, None),
]
GROUPS = [list(group) for size in (1, 2, 3) for group in combinations(WORKERS, size)]
OVERRIDES: dict[str, dict[str, float | bool]] = {  # 1.6.1 reads the other weights of a request, and goes by its own
    "none": {},
    "preferring": {},
    "no reuse": {"assume_kv_reuse": False},
    "decoding only": {"track_prefill_tokens": False},
    "decoding without reuse": {"track_prefill_tokens": False, "assume_kv_reuse": False},
}
VARIABLES = {
    "overlap_score_credit": "DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT",
    "overlap_score_credit_decay": "DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY",
    "prefill_load_scale": "DYN_ROUTER_PREFILL_LOAD_SCALE",
    "decode_active_request_weight": "DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT",
    "host_cache_hit_weight": "DYN_ROUTER_HOST_CACHE_HIT_WEIGHT",
    "disk_cache_hit_weight": "DYN_ROUTER_DISK_CACHE_HIT_WEIGHT",
    "router_temperature": "DYN_ROUTER_TEMPERATURE",
}
NUM_DRAWS = 3000
REGISTER = """
import asyncio, os, sys
from dynamo.llm import KvRouterConfig, ModelInput, ModelType, RouterConfig, RouterMode, WorkerType, register_model
from dynamo.runtime import DistributedRuntime

async def answer(request, context):
    yield {}

async def register():
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    endpoint = runtime.endpoint("costs.backend.generate")
    serving = asyncio.ensure_future(endpoint.serve_endpoint(answer))
    config = RouterConfig(RouterMode.KV, KvRouterConfig(**eval(sys.argv[2])))
    kinds = {"model_input": ModelInput.Tokens, "model_type": ModelType.Chat, "worker_type": WorkerType.Aggregated}
    await register_model(endpoint=endpoint, model_path=sys.argv[1], router_config=config, **kinds)
    os._exit(0)  # and leave the card in the store

asyncio.run(register())
"""


class Selections:
    """What the selection core answered, and what it logged that its choices cost, by question."""

    def __init__(self, weights: Weights, questions: list[dict[str, Any]], running: list[Any]) -> None:
        default = Weights()
        variables = {
            VARIABLES[each.name]: str(getattr(weights, each.name))
            for each in fields(Weights)
            if getattr(weights, each.name) != getattr(default, each.name)
        }
        wanted = {
            "workers": WORKERS,
            "taints": ["dear"],
            "stored": STORED,
            "reserved": [_reservation(number, *each) for number, each in enumerate(running)],
            "questions": questions,
        }
        done = subprocess.run(
            [ANCHOR_PYTHON, "-P", str(Path(__file__).with_name("selection_service.py"))],
            input=json.dumps(wanted),
            env={**os.environ, **LOOPBACK, "DYN_LOGGING_JSONL": "1", "DYN_LOG": "info", **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        answered = json.loads(done.stdout)
        self.overlaps: list[dict[str, int]] = answered["overlaps"]
        self.loads: list[dict[str, int]] = sorted(answered["loads"], key=lambda load: load["worker_id"])
        self.chosen: list[int] = answered["chosen"]
        self.cost: dict[str, float] = {
            line["request_id"]: line["logit"]
            for line in _lines(done.stderr)
            if line.get("message") == "Selected worker"
        }


def _lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def _reservation(
    number: int, worker: int, prompt: list[int], is_prefill_completed: bool, num_output: int, expected: int | None
) -> dict[str, Any]:
    return {
        "selection": {"selection_id": f"running {number}", "token_ids": prompt, "allowed_worker_ids": [worker]},
        "is_prefill_completed": is_prefill_completed,
        "output_fractions": [_weight_of_output(len(prompt), grown + 1, expected) for grown in range(num_output)],
    }


def _weight_of_output(num_tokens: int, num_blocks: int, expected: int | None) -> float | None:
    """What Dynamo's frontend would say of an output that has just begun its latest block."""
    if expected is None:
        return None
    num_generated = (math.ceil(num_tokens / BLOCK_SIZE) + num_blocks - 1) * BLOCK_SIZE + 1 - num_tokens
    return max(0.0, 1 - num_generated / expected)


def hashes(prompt: list[int]) -> bytes:
    found = sequence_hashes(block_hashes(pack_tokens(prompt), BLOCK_SIZE))
    return struct.pack(f"<{len(found)}Q", *found)


def load_of(running: list[Any], cached_tokens: dict[int, int]) -> ActiveSequences:
    """Ours under the same requests; the slot of a worker is its place in WORKERS."""
    active = ActiveSequences()
    active.reserve(len(WORKERS))
    for number, (worker, prompt, is_prefill_completed, num_output, expected) in enumerate(running):
        uncached = len(prompt) - cached_tokens.get(number, 0)
        active.add(number, WORKERS.index(worker), hashes(prompt), len(prompt), uncached, BLOCK_SIZE, expected)
        if is_prefill_completed:
            active.complete_prefill(number)
        for _ in range(num_output):
            active.grow_output(number)
    return active


def candidates(active: ActiveSequences, workers: Sequence[int], taint_weight: float | None = None) -> Candidates:
    """`taint_weight` is what the taint of worker 1 weighs."""
    slots = np.array([WORKERS.index(worker) for worker in workers])
    mask = sum(1 << slot for slot in slots.tolist())
    num_blocks = len(PROMPT) // BLOCK_SIZE
    tiers: dict[str, Any] = {name: np.array(column)[slots] for name, column in TIERS.items()}
    return Candidates(
        slots=slots,
        instance_ids=np.array(workers, np.uint64),
        dp_ranks=np.zeros(len(workers), np.int64),
        prefill_tokens=np.frombuffer(active.prefill_tokens, np.int64)[slots],
        decode_blocks=np.frombuffer(active.blocks, np.float64)[slots],
        new_blocks=num_blocks - spread(active.match(hashes(PROMPT), mask), slots, mask),
        num_requests=np.frombuffer(active.num_requests, np.int64)[slots],
        preferred_weight=None if taint_weight is None else np.where(slots == 0, taint_weight, 0.0),
        **tiers,
    )


def constraints(name: str) -> dict[str, Any]:
    return {"required_taints": [], "preferred_taints": TAINTS if name == "preferring" else {}}


def question(name: str, workers: Sequence[int], **more: Any) -> dict[str, Any]:
    return {"selection_id": f"{name} {workers}", "token_ids": PROMPT, "allowed_worker_ids": workers, **more}


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(Weights(), id="defaults"),
        pytest.param(Weights(overlap_score_credit=0.0), id="no credit"),
        pytest.param(Weights(overlap_score_credit=2.5, prefill_load_scale=0.5), id="more credit"),
        pytest.param(
            Weights(
                overlap_score_credit=0.8,
                overlap_score_credit_decay=0.7,
                prefill_load_scale=1.25,
                decode_active_request_weight=0.5,
                host_cache_hit_weight=0.6,
                disk_cache_hit_weight=0.1,
            ),
            id="everything",
        ),
    ],
)
def test_costs_are_those_of_dynamo(weights: Weights) -> None:
    asked = [(name, workers) for name in OVERRIDES for workers in GROUPS]
    questions = [
        question(name, workers, router_config_override=OVERRIDES[name], routing_constraints=constraints(name))
        for name, workers in asked
    ]
    theirs = Selections(weights, questions, RUNNING)

    active = load_of(RUNNING, cached_tokens={0: 16, 1: 16})
    assert [load["potential_decode_blocks"] for load in theirs.loads] == active.blocks.tolist()
    assert [load["potential_prefill_tokens"] for load in theirs.loads] == active.prefill_tokens.tolist()
    assert [load["active_requests"] for load in theirs.loads] == active.num_requests.tolist()
    for (name, workers), chosen in zip(asked, theirs.chosen, strict=True):
        own = weights.overridden(RouterConfigOverride(**OVERRIDES[name]))  # type: ignore[arg-type]
        rows = candidates(active, workers, TAINTS["dear"] if name == "preferring" else None)
        found = costs(rows, len(PROMPT), BLOCK_SIZE, own)
        lowest = theirs.cost[f"{name} {workers}"]
        assert (found.min(), found[workers.index(chosen)]) == pytest.approx((lowest, lowest)), (name, workers)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_draws_are_those_of_dynamo(temperature: float) -> None:
    questions = [question(str(number), WORKERS) for number in range(NUM_DRAWS)]
    theirs = Counter(Selections(Weights(router_temperature=temperature), questions, []).chosen)
    found = costs(candidates(load_of([], {}), WORKERS), len(PROMPT), BLOCK_SIZE, Weights())
    rng = random.Random(1)
    ours = Counter(WORKERS[pick(found, temperature, rng)] for _ in range(NUM_DRAWS))
    for worker in WORKERS:
        assert theirs[worker] / NUM_DRAWS == pytest.approx(ours[worker] / NUM_DRAWS, abs=7 / math.sqrt(2 * NUM_DRAWS))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, Weights()),
        (
            {
                "overlap_score_credit": 0.5,
                "overlap_score_credit_decay": 0.1,
                "prefill_load_scale": 2.0,
                "decode_active_request_weight": 0.25,
                "host_cache_hit_weight": 0.5,
                "disk_cache_hit_weight": 0.125,
                "router_temperature": 0.75,
                "router_track_prefill_tokens": False,
                "router_track_active_blocks": False,
                "router_assume_kv_reuse": False,
            },
            Weights(
                overlap_score_credit=0.5,
                overlap_score_credit_decay=0.1,
                prefill_load_scale=2.0,
                decode_active_request_weight=0.25,
                host_cache_hit_weight=0.5,
                disk_cache_hit_weight=0.125,
                router_temperature=0.75,
                track_prefill_tokens=False,
                track_active_blocks=False,
                assume_kv_reuse=False,
            ),
        ),
    ],
)
def test_weights_of_a_worker_set_are_read_from_its_card(
    tmp_path: Path, asked: dict[str, float | bool], expected: Weights
) -> None:
    command = [ANCHOR_PYTHON, "-c", REGISTER, str(MODEL_PATH), repr(asked)]
    variables = {**LOOPBACK, **file_store(tmp_path).variables}
    subprocess.run(command, env={**os.environ, **variables}, check=True, capture_output=True, timeout=60)
    (card,) = (
        json.loads(path.read_bytes())["card_json"] for path in (tmp_path / "v1/mdc").rglob("*") if path.is_file()
    )
    assert Weights.from_card(json.dumps(card["router_config"]).encode()) == expected
