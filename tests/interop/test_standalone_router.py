"""Dynamo's standalone router and ours, each with a mocker of 1.6.1, asked the same by a client on 1.6.1's bindings."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.interop.anchor import ANCHOR_PYTHON, AnchorProcess, Mocker, Store, file_store
from tests.support.standalone_router import StandaloneRouter
from tests.support.waiting import PATIENCE_S, wait_until

PROMPT = list(range(1000, 1070))
NUM_BLOCKS = len(PROMPT) // 16
GENERATE = {"token_ids": PROMPT, "stop_conditions": {"max_tokens": 4}, "sampling_options": {}, "output_options": {}}
QUESTIONS: dict[str, Any] = {
    "cold": ["get_overlap_scores", {"token_ids": PROMPT}],
    "answer": ["generate", GENERATE],
    "warm": ["get_overlap_scores", {"token_ids": PROMPT}],
    "in part": ["get_overlap_scores", {"token_ids": [*PROMPT[:40], 1, 2, 3]}],
    "adapter": ["get_overlap_scores", {"token_ids": PROMPT, "lora_name": "adapter"}],
    "salted": ["get_overlap_scores", {"token_ids": PROMPT, "cache_namespace": "salt"}],
    "nothing": ["get_overlap_scores", {"token_ids": []}],
    "best": ["best_worker_id", PROMPT],
    "best of nothing": ["best_worker_id", []],
    "again": ["generate", GENERATE],
}


NULLABLE = {"tokens", "text", "cum_log_probs", "log_probs", "top_logprobs", "finish_reason", "index"}


class AnchorRouter(AnchorProcess):
    script = ("-m", "dynamo.router")

    def __init__(self, store: Store, *flags: str) -> None:
        super().__init__(store, *flags, environment={"DYN_DISCOVERY_BACKEND": store.backend})

    def arguments(self) -> list[str]:
        return [*self._flags]

    def is_ready(self, output: str) -> bool:
        entries = Path(self.environment()["DYN_FILE_KV"], "v1", "instances")
        return entries.exists() and any("best%5Fworker%5Fid" in entry.name for entry in entries.iterdir())


class Answers:
    """Of one router with two mockers."""

    def __init__(self, router: str, directory: Path) -> None:
        store = file_store(directory)
        flags = ["--endpoint=dynamo.backend.generate", "--router-block-size=16"]
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(Mocker(store, "--speedup-ratio=100", "--endpoint=dyn://dynamo.backend.generate"))
            if router == "theirs":
                stack.enter_context(AnchorRouter(store, *flags))
            else:
                environment = {**store.environment, "DYN_DISCOVERY_BACKEND": store.backend}
                ours = stack.enter_context(StandaloneRouter(environment, *flags))
                wait_until(lambda: json.loads(ours.get("/health")[1])["workers"] == 2, "both workers")
            self._answers = ask(store)

    def __getitem__(self, question: str) -> list[Any]:
        found: list[Any] = self._answers[question]
        return found

    @property
    def workers(self) -> list[int]:
        found: list[int] = self._answers["workers"]
        return found


def ask(store: Store) -> dict[str, Any]:
    done = subprocess.run(
        [ANCHOR_PYTHON, "-P", str(Path(__file__).with_name("router_client.py")), "dynamo", str(NUM_BLOCKS)],
        input=json.dumps(QUESTIONS),
        env={**store.environment, "DYN_LOG": "error", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module", params=["theirs", "ours"])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(request.param, tmp_path_factory.mktemp("store"))


def scores(worker_ids: list[int], num_blocks: int, **device_blocks: int) -> dict[str, Any]:
    rows = [
        {
            "worker_id": worker_id,
            "dp_rank": 0,
            "device_blocks": device_blocks.get(str(worker_id), 0),
            "host_pinned_blocks": device_blocks.get(str(worker_id), 0),
            "disk_blocks": device_blocks.get(str(worker_id), 0),
            "host_pinned_extension_blocks": 0,
            "disk_extension_blocks": 0,
            "shared_beyond_device_blocks": None,
        }
        for worker_id in sorted(worker_ids)
    ]
    shared = {"enabled": False, "total_hit_blocks": 0, "ranges": [], "error": None}
    return {"block_size": 16, "num_blocks": num_blocks, "workers": rows, "shared_cache": shared}


def test_overlaps(answers: Answers) -> None:
    first = str(answers["answer"][0]["routing_data"]["worker_id"]["decode_worker_id"])
    assert answers["cold"] == [scores(answers.workers, NUM_BLOCKS)]
    assert answers["warm"] == [scores(answers.workers, NUM_BLOCKS, **{first: NUM_BLOCKS})]
    assert answers["in part"] == [scores(answers.workers, 2, **{first: 2})]
    for foreign in ("adapter", "salted"):
        assert answers[foreign] == [scores(answers.workers, NUM_BLOCKS)]
    assert answers["nothing"] == [scores(answers.workers, 0)]


def test_the_best_worker_is_the_one_that_has_the_prompt(answers: Answers) -> None:
    whereabouts = [answers[name][0]["routing_data"]["worker_id"] for name in ("answer", "again")]
    assert whereabouts[0] == whereabouts[1]
    assert answers["best"] == [whereabouts[0]["decode_worker_id"]]
    assert answers["best of nothing"][0] in answers.workers


@pytest.mark.parametrize(("name", "num_cached"), [("answer", 0), ("again", NUM_BLOCKS)])
def test_answers(answers: Answers, name: str, num_cached: int) -> None:
    *items, last = answers[name]
    assert sum(len(item["token_ids"]) for item in answers[name]) == 4
    usage = items[0]["completion_usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (len(PROMPT), num_cached * 16)
    assert set(items[0]["routing_data"]) == {"worker_id"}
    assert set(items[0]["routing_data"]["worker_id"]) == {
        "prefill_worker_id",
        "prefill_dp_rank",
        "decode_worker_id",
        "decode_dp_rank",
    }
    assert (last["finish_reason"], last["completion_usage"]["completion_tokens"]) == ("length", 4)
    timing = last["routing_data"]["timing"]
    assert set(timing) == {
        "request_received_ms",
        "prefill_wait_time_ms",
        "prefill_time_ms",
        "ttft_ms",
        "total_time_ms",
        "kv_hit_rate",
        "router_queue_depth",
    }
    assert timing["kv_hit_rate"] == num_cached / 5
    assert set(items[0]) == {*NULLABLE, "token_ids", "output_type", "completion_usage", "routing_data"}
