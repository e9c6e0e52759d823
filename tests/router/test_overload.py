from __future__ import annotations

import math

import pytest

from dynamo.router.active import ActiveSequences
from dynamo.router.overload import OverloadMonitor
from dynamo.shared.kv_events import LoadReport
from dynamo.shared.messages import Thresholds

OFF = Thresholds("")


class Fleet:
    """Worker A has the ranks 0 and 1, worker B the rank 2; a rank holds 100 blocks and takes batches of 1000 tokens."""

    A = (0, 1)
    B = (2,)

    def __init__(self, defaults: Thresholds = OFF) -> None:
        self.sequences = ActiveSequences()
        self.sequences.reserve(3)
        self.monitor = OverloadMonitor(self.sequences, defaults)
        for slot in range(3):
            self.monitor.set_capacity(slot, total_kv_blocks=100, max_num_batched_tokens=1000)

    def set(
        self,
        model: str = "m",
        *,
        blocks: float | None = None,
        tokens: int | None = None,
        share: float | None = None,
        replaces: bool = False,
    ) -> None:
        self.monitor.set_thresholds(Thresholds(model, blocks, tokens, share), replaces=replaces)

    def report(
        self, slot: int, *, used: int | None = None, decoding: int | None = None, prefill: int | None = None
    ) -> None:
        self.monitor.report(slot, LoadReport(7, slot, decoding, prefill, used))

    def run(self, key: str, slot: int, num_tokens: int, num_blocks: int = 0) -> None:
        self.sequences.add(key, slot, b"", 16 * num_blocks, num_tokens, 16, None, shares_blocks=False)

    def overloaded(self, model: str = "m") -> str:
        workers = {"A": self.A, "B": self.B}
        return "".join(name for name, slots in workers.items() if self.monitor.is_overloaded(model, slots))


def test_nothing_is_watched_without_thresholds() -> None:
    fleet = Fleet()
    fleet.run("big", 2, 10**9, num_blocks=10**6)
    assert not fleet.monitor.is_watching
    assert fleet.overloaded() == ""
    assert fleet.monitor.overloaded_slots("m") == set()


def test_a_worker_is_overloaded_when_all_its_ranks_are() -> None:
    fleet = Fleet()
    fleet.set(tokens=100)
    fleet.run("one", 0, 101)
    fleet.run("two", 2, 101)
    assert fleet.overloaded() == "B"
    assert fleet.monitor.overloaded_slots("m") == {0, 2}
    fleet.run("three", 1, 101)
    assert fleet.overloaded() == "AB"
    fleet.sequences.complete_prefill("one")
    assert fleet.overloaded() == "B"


def test_a_worker_without_ranks_is_not_overloaded() -> None:
    fleet = Fleet()
    fleet.set(tokens=0)
    assert not fleet.monitor.is_overloaded("m", ())


@pytest.mark.parametrize(
    ("tokens", "share", "most"),
    [(100, None, 100), (None, 1.5, 1500), (100, 1.5, 100), (2000, 1.5, 1500), (0, None, 0), (None, 0.0, 0)],
)
def test_prefill_must_exceed_the_lower_limit(tokens: int | None, share: float | None, most: int) -> None:
    fleet = Fleet()
    fleet.set(tokens=tokens, share=share)
    fleet.run("just fits", 2, most)
    assert fleet.overloaded() == ""
    fleet.run("too much", 2, 1)
    assert fleet.overloaded() == "B"


def test_reported_prefill_counts_like_our_own() -> None:
    fleet = Fleet()
    fleet.set(share=0.5)
    fleet.report(2, prefill=501)
    assert fleet.overloaded() == "B"
    fleet.report(2, prefill=500)
    assert fleet.overloaded() == ""


def test_blocks_stay_too_many_until_both_signals_are_back() -> None:
    fleet = Fleet()
    fleet.set(blocks=0.9)
    fleet.report(2, used=91, decoding=20)
    assert fleet.overloaded() == "B"
    fleet.report(2, decoding=95)
    fleet.report(2, used=10)
    assert fleet.overloaded() == "B", "one signal is back, the other is not"
    fleet.report(2, prefill=0)
    assert fleet.overloaded() == "B", "a report that says nothing of blocks changes nothing"
    fleet.report(2, decoding=90)
    assert fleet.overloaded() == ""


def test_our_own_blocks_count_like_reported_ones() -> None:
    fleet = Fleet()
    fleet.set(blocks=0.5)
    fleet.run("one", 2, 0, num_blocks=51)
    assert fleet.overloaded() == "B"
    fleet.report(2, used=1, decoding=1)
    assert fleet.overloaded() == "B"
    fleet.sequences.free("one")
    assert fleet.overloaded() == ""


def test_a_share_of_what_is_not_known_is_never_exceeded() -> None:
    fleet = Fleet()
    fleet.set(blocks=0.0, share=0.0)
    fleet.run("one", 2, 5, num_blocks=5)
    assert fleet.overloaded() == "B"
    fleet.monitor.set_capacity(2, None, None)
    assert fleet.overloaded() == ""
    fleet.monitor.set_capacity(2, None, 4)
    assert fleet.overloaded() == "B"


def test_a_rank_that_is_gone_leaves_nothing_to_the_next() -> None:
    fleet = Fleet()
    fleet.set(tokens=100, blocks=0.5)
    fleet.report(2, used=99, prefill=999)
    assert fleet.overloaded() == "B"
    fleet.monitor.forget(2)
    assert fleet.overloaded() == ""
    fleet.monitor.set_capacity(2, total_kv_blocks=100, max_num_batched_tokens=1000)
    assert fleet.overloaded() == ""


def test_ranks_that_come_later_are_judged_too() -> None:
    fleet = Fleet()
    fleet.set(tokens=100, blocks=0.5)
    assert fleet.monitor.overloaded_slots("m") == set()
    fleet.report(4, prefill=101)
    fleet.sequences.reserve(5)
    fleet.run("one", 3, 101)
    assert fleet.monitor.overloaded_slots("m") == {3, 4}


def test_models_go_by_the_defaults_until_they_have_their_own() -> None:
    fleet = Fleet(Thresholds("", active_prefill_tokens_threshold=100))
    fleet.run("one", 2, 150)
    assert fleet.overloaded("m") == fleet.overloaded("n") == "B"
    assert fleet.monitor.thresholds("m") == Thresholds("m", active_prefill_tokens_threshold=100)
    fleet.set("m", tokens=200)
    assert fleet.overloaded("m") == ""
    assert fleet.overloaded("n") == "B"


def test_setting_some_leaves_the_others() -> None:
    fleet = Fleet(Thresholds("", active_decode_blocks_threshold=0.8))
    fleet.set(tokens=100)
    assert fleet.monitor.thresholds("m") == Thresholds("m", 0.8, 100, None)
    fleet.set(share=0.5)
    assert fleet.monitor.thresholds("m") == Thresholds("m", 0.8, 100, 0.5)


def test_replacing_switches_the_others_off() -> None:
    fleet = Fleet(Thresholds("", active_decode_blocks_threshold=0.8))
    fleet.set(tokens=100, replaces=True)
    assert fleet.monitor.thresholds("m") == Thresholds("m", None, 100, None)
    fleet.report(2, used=100)
    assert fleet.overloaded("m") == ""
    assert fleet.overloaded("n") == "B"


def test_the_last_threshold_switched_off_ends_the_watch() -> None:
    fleet = Fleet()
    fleet.set("m", tokens=0)
    fleet.set("n", share=0.0)
    assert fleet.monitor.is_watching
    fleet.set("m", replaces=True)
    assert fleet.monitor.is_watching
    fleet.set("n", replaces=True)
    assert not fleet.monitor.is_watching


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (
            Thresholds("m", active_decode_blocks_threshold=1.1),
            "active_decode_blocks_threshold must be a fraction between",
        ),
        (Thresholds("m", active_decode_blocks_threshold=math.nan), "active_decode_blocks_threshold must be a fraction"),
        (
            Thresholds("m", active_prefill_tokens_threshold=-1),
            "active_prefill_tokens_threshold must be a number of tokens",
        ),
        (
            Thresholds("m", active_prefill_tokens_threshold_frac=-0.5),
            "active_prefill_tokens_threshold_frac must be a finite",
        ),
        (
            Thresholds("m", active_prefill_tokens_threshold_frac=math.inf),
            "active_prefill_tokens_threshold_frac must be a",
        ),
    ],
)
def test_bad_thresholds_change_nothing(wanted: Thresholds, complaint: str) -> None:
    fleet = Fleet()
    fleet.set(blocks=0.9)
    with pytest.raises(ValueError, match=complaint):
        fleet.monitor.set_thresholds(wanted, replaces=True)
    assert fleet.monitor.thresholds("m") == Thresholds("m", 0.9)
    with pytest.raises(ValueError, match=complaint):
        OverloadMonitor(fleet.sequences, wanted)
