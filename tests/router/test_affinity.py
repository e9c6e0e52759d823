"""Where sessions are bound, when they leave, and what replicas make of each other's bindings."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.router.affinity import (
    MAX_SESSION_ID_BYTES,
    OVERLOAD_PATIENCE_S,
    Advice,
    Condition,
    SessionAffinity,
    Target,
)
from dynamo.shared.replica_events import AffinityBinding


def prompt(num_blocks: int, conversation: int = 1) -> bytes:
    """Hashes of a prompt; a longer one of the same conversation goes on from a shorter one."""
    return b"".join((conversation << 32 | block).to_bytes(8, "little") for block in range(num_blocks))


# --------------------------------------------------------------------------- binding


def test_a_session_stays_where_it_was_placed_until_it_has_been_idle() -> None:
    affinity = SessionAffinity(ttl_s=60)
    assert affinity.bound("s", 0) is None
    affinity.bind("s", 7, 1, 0)
    affinity.release("s", 10)
    assert affinity.bound("s", 69) == Target(7, 1)
    assert affinity.bound("s", 128) == Target(7, 1)
    assert affinity.bound("s", 188) is None
    assert affinity.take_counts() == {"bound": 1, "expired": 1}


def test_a_request_that_runs_for_longer_than_that_keeps_its_session() -> None:
    affinity = SessionAffinity(ttl_s=60)
    affinity.bind("s", 7, 0, 0)
    assert affinity.expire(1000) == 0
    assert affinity.bound("s", 1000) == Target(7, 0)
    affinity.release("s", 2000)
    assert affinity.expire(2059) == 0
    assert affinity.expire(2060) == 1
    assert len(affinity) == 0


def test_only_those_idle_for_long_expire() -> None:
    affinity = SessionAffinity(ttl_s=60)
    for at, session_id in enumerate(["a", "b", "c"]):
        affinity.bind(session_id, 7, 0, at)
        affinity.release(session_id, at)
    affinity.bound("a", 30)
    assert affinity.expire(62) == 2
    assert affinity.bound("a", 62) == Target(7, 0)


def test_the_session_used_longest_ago_makes_room() -> None:
    affinity = SessionAffinity(ttl_s=60, max_sessions=2)
    affinity.bind("a", 1, 0, 0)
    affinity.bind("b", 2, 0, 1)
    affinity.bound("a", 2)
    affinity.bind("c", 3, 0, 3)
    assert [affinity.bound(each, 4) for each in "abc"] == [Target(1, 0), None, Target(3, 0)]
    assert affinity.take_counts()["evicted"] == 1


def test_a_session_that_ends_or_loses_its_worker_is_bound_to_nobody() -> None:
    affinity = SessionAffinity(ttl_s=60)
    for session_id, worker in (("a", 1), ("b", 2), ("c", 1)):
        affinity.bind(session_id, worker, 0, 0)
    assert affinity.end("b")
    assert not affinity.end("b")
    assert affinity.forget_instance(1) == 2
    assert [affinity.bound(each, 0) for each in "abc"] == [None, None, None]
    affinity.release("a", 1)
    assert affinity.take_counts() == {"bound": 3, "ended": 1, "moved_unusable": 2}


def test_an_id_that_is_too_long_binds_nothing() -> None:
    affinity = SessionAffinity(ttl_s=60)
    affinity.bind("é" * (MAX_SESSION_ID_BYTES // 2), 1, 0, 0)
    affinity.bind("é" * (MAX_SESSION_ID_BYTES // 2) + "x", 1, 0, 0)
    assert len(affinity) == 1
    assert affinity.take_counts() == {"bound": 1, "refused": 1}


# --------------------------------------------------------------------------- leaving a worker


@pytest.mark.parametrize("is_hard", [True, False])
def test_a_fit_worker_keeps_its_sessions_and_an_unusable_one_none(is_hard: bool) -> None:
    affinity = SessionAffinity(ttl_s=60, is_hard=is_hard)
    affinity.bind("s", 7, 0, 0)
    assert affinity.advise("s", Condition.FIT, 1) is Advice.STAY
    assert affinity.advise("s", Condition.UNUSABLE, 1) is Advice.MOVE
    assert affinity.bound("s", 1) is None
    assert affinity.advise("s", Condition.FIT, 1) is Advice.MOVE


def test_a_soft_session_leaves_an_overloaded_worker_at_once() -> None:
    affinity = SessionAffinity(ttl_s=60, is_hard=False)
    affinity.bind("s", 7, 0, 0)
    assert affinity.advise("s", Condition.OVERLOADED, 1) is Advice.MOVE
    affinity.bind("s", 8, 0, 1)
    assert affinity.bound("s", 2) == Target(8, 0)
    assert affinity.take_counts() == {"bound": 2, "moved_overloaded": 1}


def test_a_hard_session_waits_for_an_overloaded_worker_but_not_for_ever() -> None:
    affinity = SessionAffinity(ttl_s=3600)
    affinity.bind("s", 7, 0, 0)
    assert affinity.advise("s", Condition.OVERLOADED, 10) is Advice.WAIT
    assert affinity.advise("s", Condition.FIT, 20) is Advice.STAY  # it has recovered: patience starts anew
    assert affinity.advise("s", Condition.OVERLOADED, 30) is Advice.WAIT
    assert affinity.advise("s", Condition.OVERLOADED, 29.9 + OVERLOAD_PATIENCE_S) is Advice.WAIT
    assert affinity.advise("s", Condition.OVERLOADED, 30 + OVERLOAD_PATIENCE_S) is Advice.MOVE


@pytest.mark.parametrize(("is_hard", "expected"), [(False, 2), (True, 4)])
def test_a_session_leaves_a_worker_that_drops_its_cache_turn_after_turn(is_hard: bool, expected: int) -> None:
    affinity = SessionAffinity(ttl_s=60, is_hard=is_hard)
    advice, turn = Advice.STAY, 0
    while advice is Advice.STAY and turn < 10:
        affinity.bind("s", 7, 0, turn, prompt(100 + turn))
        affinity.release("s", turn)
        turn += 1
        advice = affinity.advise("s", Condition.FIT, turn, prompt(100 + turn), cached_blocks=10)
    assert (advice, turn) == (Advice.MOVE, expected)
    assert affinity.take_counts()["moved_uncached"] == 1


def test_one_turn_counts_once_however_often_it_is_looked_at() -> None:
    affinity = SessionAffinity(ttl_s=60, is_hard=False)
    affinity.bind("s", 7, 0, 0, prompt(100))
    affinity.release("s", 0)
    for _ in range(10):
        assert affinity.advise("s", Condition.FIT, 1, prompt(110), cached_blocks=0) is Advice.STAY


@pytest.mark.parametrize(
    ("hashes", "cached_blocks", "is_running"),
    [
        (prompt(101), 50, False),  # half of it is there
        (prompt(101), None, False),  # nobody knows
        (prompt(101, conversation=2), 0, False),  # another prompt, nobody has that
        (prompt(40), 0, False),  # cut short by its client
        (b"", 0, False),
        (prompt(101), 0, True),  # the turn before is not over: its blocks may come yet
    ],
)
def test_what_is_no_sign_of_a_worker_that_drops_its_cache(
    hashes: bytes, cached_blocks: int | None, is_running: bool
) -> None:
    affinity = SessionAffinity(ttl_s=60, is_hard=False)
    for turn in range(5):
        affinity.bind("s", 7, 0, turn, prompt(100))
        if not is_running:
            affinity.release("s", turn)
        assert affinity.advise("s", Condition.FIT, turn, hashes, cached_blocks) is Advice.STAY


def test_one_hit_forgives_the_misses_before() -> None:
    affinity = SessionAffinity(ttl_s=60, is_hard=False)
    for turn in range(9):
        affinity.bind("s", 7, 0, turn, prompt(100 + turn))
        affinity.release("s", turn)
        cached_blocks = 0 if turn % 2 else 100
        assert affinity.advise("s", Condition.FIT, turn, prompt(101 + turn), cached_blocks) is Advice.STAY


# --------------------------------------------------------------------------- replicas


def replica(router_id: int, first_sequence: int = 1) -> SessionAffinity:
    return SessionAffinity(ttl_s=60, router_id=router_id, first_sequence=first_sequence)


def test_replicas_hear_of_a_binding_once_and_again_while_it_is_used() -> None:
    affinity = replica(5, first_sequence=100)
    affinity.bind("s", 7, 0, 0)
    affinity.bind("s", 7, 0, 1)
    assert affinity.take_changes() == [AffinityBinding("s", 7, 0, 100, 5)]
    affinity.bound("s", 14)
    assert affinity.take_changes() == []
    affinity.bound("s", 15)
    assert affinity.take_changes() == [AffinityBinding("s", 7, 0, 100, 5)]
    affinity.bind("s", 8, None, 16)
    affinity.bind("gone", 8, 1, 16)
    affinity.end("gone")
    assert affinity.take_changes() == [AffinityBinding("s", 8, None, 101, 5)]
    assert affinity.snapshot() == [AffinityBinding("s", 8, None, 101, 5)]


def test_nobody_is_told_where_there_are_no_replicas() -> None:
    affinity = SessionAffinity(ttl_s=60)
    affinity.bind("s", 7, 0, 0)
    assert affinity.take_changes() == []


def test_a_binding_of_another_replica_is_followed_and_not_told_on() -> None:
    here = replica(1)
    assert here.apply_remote(AffinityBinding("s", 7, 2, 500, 9), 0)
    assert here.bound("s", 1) == Target(7, 2)
    assert here.take_changes() == []
    here.bind("s", 8, 0, 2)  # it failed there: ours must win everywhere
    (binding,) = here.take_changes()
    assert (binding.sequence, binding.writer_id) == (501, 1)


@pytest.mark.parametrize(
    ("binding", "is_followed"),
    [
        (AffinityBinding("s", 8, 0, 9, 99), False),  # older
        (AffinityBinding("s", 8, 0, 10, 4), False),  # at the same time, by a lower id
        (AffinityBinding("s", 8, 0, 10, 6), True),
        (AffinityBinding("s", 8, 0, 11, 1), True),
        (AffinityBinding("x" * 300, 8, 0, 11, 1), False),
    ],
)
def test_the_newer_binding_wins(binding: AffinityBinding, is_followed: bool) -> None:
    here = replica(5, first_sequence=10)
    here.bind("s", 7, 0, 0)
    assert here.apply_remote(binding, 0) == is_followed
    assert here.bound("s", 0) == (Target(8, 0) if is_followed else Target(7, 0))


def test_an_idle_binding_loses_to_an_older_one() -> None:
    here = replica(5, first_sequence=10)
    here.bind("s", 7, 0, 0)
    here.release("s", 0)
    assert here.apply_remote(AffinityBinding("s", 8, 0, 1, 1), 60)


def test_what_runs_of_a_session_still_counts_when_another_replica_moves_it() -> None:
    here = replica(1)
    here.bind("s", 7, 0, 0)
    here.apply_remote(AffinityBinding("s", 8, 0, 500, 9), 1)
    assert here.expire(1000) == 0
    here.release("s", 1000)
    assert here.expire(1060) == 1


@given(st.permutations(range(4)))
def test_replicas_agree_in_whatever_order_they_hear_of_each_other(order: list[int]) -> None:
    replicas = [replica(router_id) for router_id in range(3)]
    for router_id, each in enumerate(replicas):
        each.bind("s", router_id, 0, 0)
    replicas[1].bind("s", 10, 0, 0)
    said = [binding for each in replicas for binding in each.snapshot()]
    for index, each in enumerate(replicas):
        heard = [said[at % len(said)] for at in order]
        random.Random(index).shuffle(heard)
        for binding in [*heard, *said]:
            each.apply_remote(binding, 0)
    assert {each.bound("s", 0) for each in replicas} == {Target(10, 0)}


def test_the_last_writer_wins_in_every_order() -> None:
    bindings = [
        AffinityBinding("s", worker, 0, sequence, writer)
        for worker, sequence, writer in ((1, 5, 1), (2, 5, 2), (3, 4, 9))
    ]
    for order in permutations(bindings):
        here = replica(7)
        for binding in order:
            here.apply_remote(binding, 0)
        assert here.bound("s", 0) == Target(2, 0)
