"""The decision log: what is written, what is read again, and what happens where it cannot be."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest

from dynamo.router.decisions import Decision, DecisionLog, UnreadableLog, read
from dynamo.router.weights import Weights
from dynamo.shared.messages import RoutingHints
from dynamo.shared.protocol import RouterConfigOverride
from tests.router.logged_router import WORKERS, LoggedRouter
from tests.router.registrations import BLOCK_SIZE
from tests.router.test_process import RouterProcess


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


def write(path: Path, *prompts: str) -> None:
    router = LoggedRouter(path)
    for prompt in prompts:
        router.place(prompt)
    router.log.close()


def labels(path: Path) -> list[str]:
    return [decision.label for decision in read(path)]


def test_what_is_read_is_what_was_decided_on(path: Path) -> None:
    router = LoggedRouter(path)
    before = time.time()
    first = router.place("a.b.c", worker=2)
    hints = RoutingHints(
        2.5, 1, session_id="s", lora_name="adapter", router_config=RouterConfigOverride(overlap_score_credit=0.5)
    )
    second = router.place("a.b.x.y", hints=hints)
    router.log.close()

    pinned, chosen = read(path)
    assert (pinned.instance_id, pinned.reason, len(pinned.candidates)) == (first, "pinned", 1)
    assert before <= pinned.at <= chosen.at <= time.time()
    assert (chosen.label, chosen.model, chosen.worker_set) == (
        "request 2",
        "m",
        "ns/backend/generate/m/aggregated",
    )
    assert (chosen.num_tokens, chosen.block_size) == (4 * BLOCK_SIZE, BLOCK_SIZE)
    assert (chosen.instance_id, chosen.dp_rank, chosen.reason) == (second, 0, "cost")
    assert (chosen.session_id, chosen.priority_jump, chosen.strict_priority, chosen.lora_name) == (
        "s",
        2.5,
        1,
        "adapter",
    )
    assert chosen.weights == Weights(overlap_score_credit=0.5)
    assert {row.instance_id for row in chosen.candidates} == set(WORKERS)
    warm = next(row for row in chosen.candidates if row.instance_id == first)
    assert (warm.device_blocks, warm.new_blocks, warm.num_requests) == (2, 2, 1)
    assert (warm.prefill_tokens, warm.decode_blocks) == (3 * BLOCK_SIZE, 3.0)
    assert min(row.cost for row in chosen.candidates if row.cost is not None) == next(
        row.cost for row in chosen.candidates if row.instance_id == second
    )


def test_a_line_is_one_json_object(path: Path) -> None:
    write(path, "a", "b")
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["label"] == "request 1"


def test_nothing_is_written_before_it_is_asked_for(path: Path) -> None:
    router = LoggedRouter(path)
    router.place("a")
    assert path.read_bytes() == b""
    router.log.flush()
    assert labels(path) == ["request 1"]
    assert router.log.take_counts() == {"written": 1}
    assert router.log.take_counts() == {}


def test_a_log_goes_on_where_the_last_one_ended(path: Path) -> None:
    write(path, "a", "b")
    write(path, "c")
    assert labels(path) == ["request 1", "request 2", "request 1"]


def test_half_a_line_of_a_killed_router_goes(path: Path) -> None:
    write(path, "a", "b")
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 20)
    assert labels(path) == ["request 1"]
    write(path, "c")
    assert labels(path) == ["request 1", "request 1"]


def test_a_full_log_is_closed_and_the_rest_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, "a")
    size = path.stat().st_size
    router = LoggedRouter(path, max_bytes=size * 3)
    router.place("b")
    router.log.flush()
    with caplog.at_level(logging.ERROR, "dynamo.router"):
        for prompt in "cdef":
            router.place(prompt)
            router.log.flush()
    router.log.close()
    written = labels(path)
    counts = router.log.take_counts()
    assert path.stat().st_size <= size * 3
    assert counts["written"] == len(written) - 1
    assert counts["written"] + counts["dropped"] == 5
    (record,) = caplog.records
    assert f"the decision log {path} ends here: it has reached --router-decision-log-max-mb" in record.getMessage()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full disk")
def test_a_full_disk_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    router = LoggedRouter(Path("/dev/full"))
    for prompt in "abc":
        assert router.place(prompt) in WORKERS
    router.log.flush()
    router.place("d")
    router.log.close()
    assert router.log.take_counts() == {"dropped": 4}
    assert [record.getMessage() for record in caplog.records] == [
        "the decision log /dev/full ends here: [Errno 28] No space left on device"
    ]


def test_many_decisions_of_one_tick_do_not_pile_up(path: Path) -> None:
    router = LoggedRouter(path)
    for _ in range(1030):
        router.place("a")
    assert 0 < len(labels(path)) <= 1030
    router.log.close()
    assert len(labels(path)) == 1030


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ('{"at":1}\n', 1, "missing required field"),
        ("no json\n", 1, "malformed"),
        ("no json", 1, "malformed"),
        ("{WHOLE}\nno json\n{WHOLE}\n", 2, "malformed"),
        ('{WHOLE}\n{"at":"noon"}\n', 2, "at"),
    ],
)
def test_what_is_no_decision_is_named_by_its_line(path: Path, text: str, line: int, complaint: str) -> None:
    write(path, "a")
    path.write_text(text.replace("{WHOLE}", path.read_text().strip()))
    with pytest.raises(UnreadableLog, match=f"line {line}: not a decision: .*{complaint}"):
        list(read(path))


def test_an_empty_log_has_no_decisions(path: Path) -> None:
    DecisionLog(path, 1).close()
    assert list(read(path)) == list[Decision]()


def test_a_file_that_cannot_be_opened_is_told_at_start(tmp_path: Path) -> None:
    router = RouterProcess(tmp_path)
    with pytest.raises(RuntimeError, match="did not get ready") as raised:
        router.start("--router-decision-log", str(tmp_path / "no" / "such" / "folder"))
    assert "dynamo-router: " in str(raised.value)
    assert "No such file or directory" in str(raised.value)
    assert "Traceback" not in str(raised.value)
