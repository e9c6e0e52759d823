from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.router.class_queue import PolicyClass
from dynamo.router.core import Router
from dynamo.router.rules import Rules
from dynamo.router.selectors import SELECTORS, Choice, Question
from dynamo.shared.discovery import CARDS, INSTANCES, Deleted, Put
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.messages import (
    ActiveRequest,
    Candidate,
    Explain,
    Free,
    Goodbye,
    Heartbeat,
    Hello,
    Place,
    Placed,
    Refused,
    WorkerFailed,
)
from dynamo.shared.replica_events import ACTIVE_SEQUENCES_TOPIC, decode_active_sequences
from tests.router.registrations import card_value, instance_value


def router_with(workers: dict[str, range], rules: Rules | None = None) -> Router:
    router = Router(rules or Rules(router_mode="random"), random.Random(3))
    for endpoint, ids in workers.items():
        add(router, endpoint, ids)
    return router


def add(router: Router, endpoint: str, ids: range) -> None:
    router.discover(INSTANCES, [Put(f"{endpoint}/{i:x}", instance_value(i, endpoint)) for i in ids])
    router.discover(CARDS, [Put(f"{endpoint}/{i:x}", card_value(i, endpoint, {"model": "m"})) for i in ids])


def test_sets_of_one_model_are_asked_in_proportion_to_their_size() -> None:
    router = router_with({"blue/backend/generate": range(1, 7), "green/backend/generate": range(7, 9)})
    router.receive(b"p", [Place(i, "m", 10) for i in range(4000)], 0.0)
    answers = router.take_outgoing()[b"p"]
    counts = Counter(answer.worker_set.partition("/")[0] for answer in answers if isinstance(answer, Placed))
    assert 2800 < counts["blue"] < 3200
    assert counts["blue"] + counts["green"] == 4000


def test_a_batch_of_changes_is_one_delta_and_versions_have_no_gap() -> None:
    router = router_with({"ns/backend/generate": range(1, 100)})
    delta = router.take_delta()
    assert delta is not None
    assert (delta.version, len(delta.workers_up), len(delta.sets_up)) == (1, 99, 1)
    assert router.take_delta() is None
    router.discover(INSTANCES, [Deleted("ns/backend/generate/1")])
    delta = router.take_delta()
    assert delta is not None
    assert (delta.version, delta.workers_down) == (2, [1])


def test_what_comes_and_goes_between_two_deltas_is_not_told() -> None:
    router = router_with({"ns/backend/generate": range(1, 3)})
    router.take_delta()
    add(router, "ns/backend/generate", range(5, 6))
    for bucket in (INSTANCES, CARDS):
        router.discover(bucket, [Deleted("ns/backend/generate/5")])
    assert router.take_delta() is None


def test_outcomes_are_counted_once() -> None:
    router = router_with({"ns/backend/generate": range(1, 3)})
    router.receive(b"p", [Hello("a", 1), Place(1, "m", 1), Place(2, "x", 1), Place(3, "m", 1, instance_id=99)], 0.0)
    assert router.take_outcomes() == {"placed": 1, "model_not_found": 1, "invalid_value": 1}
    assert router.take_outcomes() == {}


class Broken:
    """A selector with a bug."""

    def __init__(self, _fleet: object) -> None:
        pass

    def select(self, question: Question) -> Choice | None:
        if question.place.num_tokens == 13:
            raise ZeroDivisionError
        return Choice(question.candidates[0])

    def look(self, question: Question) -> list[Candidate]:
        self.select(question)
        return []


def test_a_bug_that_one_message_meets_costs_only_that_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(SELECTORS, "random", Broken)
    router = router_with({"ns/backend/generate": range(1, 2)})
    unlucky = Place(2, "m", 13)
    router.receive(b"p", [Hello("a", 1), Place(1, "m", 1), unlucky, Explain(unlucky), Place(3, "m", 1), Free(1)], 0.0)
    answers = router.take_outgoing()[b"p"]
    assert [answer.code for answer in answers if isinstance(answer, Refused)] == ["internal_error"] * 2
    assert [answer.request_id for answer in answers if isinstance(answer, Placed)] == [1, 3]
    assert router.acceptors.num_active == {1: 1}
    assert router.take_outcomes() == {"placed": 2, "internal_error": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "could not handle a message of kind Place",
        "could not handle a message of kind Explain",
    ]


def test_a_bug_that_one_of_those_who_wait_meets_costs_only_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS, "random", Broken)
    limit = PolicyClass(prefill_busy_threshold=1)
    router = router_with({"ns/backend/generate": range(1, 2)}, Rules(router_mode="random", policy_class=limit))
    router.receive(b"p", [Hello("a", 1), Place(1, "m", 10), Place(2, "m", 13), Place(3, "m", 10)], 0.0)
    router.take_outgoing()
    router.receive(b"p", [Free(1)], 1.0)
    refusal, placed = router.take_outgoing()[b"p"]
    assert isinstance(refusal, Refused)
    assert (refusal.request_id, refusal.code) == (2, "internal_error")
    assert isinstance(placed, Placed)
    assert placed.request_id == 3


def test_replicas_hear_of_requests_that_run_already() -> None:
    """Whether or not this router looks at more than their number: others may."""
    router = router_with({"ns/backend/generate": range(1, 2)}, Rules(router_mode="random", router_id=1))
    assert router.replicas is not None
    scope = EndpointScope("ns", "backend", "generate")
    router.replicas.open(scope, 5)
    router.receive(b"p", [Hello("a", 1, [ActiveRequest(7, 1, 10, label="r")])], 0.0)
    [(topic, payload)] = router.replicas.take_outgoing(scope)
    assert topic == ACTIVE_SEQUENCES_TOPIC
    assert [event.request_id for event in decode_active_sequences(payload)] == ["r"]
    assert len(router.fleet.sequences) == 0


def test_who_has_waited_goes_to_the_worker_that_has_room() -> None:
    """Though its model has another set of workers, and chance decides between them."""
    sets = {"blue/backend/generate": range(1, 2), "green/backend/generate": range(2, 3)}
    rules = Rules(router_mode="random", policy_class=PolicyClass(prefill_busy_threshold=0))
    router = router_with(sets, rules)
    pinned = [Place(1, "m", 1, instance_id=1), Place(2, "m", 1, instance_id=2)]
    router.receive(b"p", [Hello("a", 1), *pinned, *(Place(i, "m", 1) for i in range(3, 40))], 0.0)
    router.take_outgoing()
    running, hosts = 2, []
    for now in range(1, 100):
        router.receive(b"p", [Free(running)], float(now))
        router.tick(now + 0.5)
        for answer in router.take_outgoing().get(b"p", []):
            if isinstance(answer, Placed):
                running = answer.request_id
                hosts.append(answer.instance_id)
    assert hosts == [2] * 37


PEERS = st.sampled_from([b"p1", b"p2", b"p3"])
REQUEST_IDS = st.integers(1, 6)
WORKERS = st.integers(1, 4)
MESSAGES = st.one_of(
    st.builds(
        Hello,
        st.sampled_from(["a0", "a1"]),
        st.integers(1, 2),
        st.lists(st.builds(ActiveRequest, REQUEST_IDS, WORKERS, st.just(1)), max_size=4),
    ),
    st.builds(
        Place, REQUEST_IDS, st.sampled_from(["m", "unknown"]), st.just(10), excluded=st.lists(WORKERS, max_size=2)
    ),
    st.builds(Free, REQUEST_IDS),
    st.builds(WorkerFailed, WORKERS, st.just("gone")),
    st.builds(Heartbeat),
    st.builds(Goodbye),
)
STEPS = st.one_of(
    st.tuples(st.just("say"), PEERS, st.lists(MESSAGES, max_size=3)),
    st.tuples(st.just("lose"), PEERS),
    st.tuples(st.just("wait"), st.floats(0.1, 6)),
    st.tuples(st.just("add"), WORKERS),
    st.tuples(st.just("remove"), WORKERS),
)


@settings(deadline=None)  # the first kv example imports numpy
@given(st.sampled_from(["round-robin", "power-of-two", "least-loaded", "kv"]), st.lists(STEPS, max_size=40))
def test_active_counts_equal_the_outstanding_placements(mode: str, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    router = router_with({"ns/backend/generate": range(1, 4)}, Rules(router_mode=mode, max_active_per_acceptor=4))
    now, version = 0.0, 0
    for name, *arguments in steps:
        match name:
            case "say":
                router.receive(arguments[0], arguments[1], now)
            case "lose":
                router.forget(*arguments)
            case "wait":
                now += arguments[0]
                router.tick(now)
            case "add":
                add(router, "ns/backend/generate", range(arguments[0], arguments[0] + 1))
            case "remove":
                router.discover(INSTANCES, [Deleted(f"ns/backend/generate/{arguments[0]:x}")])
        held = [a.active.values() for a in router.acceptors.by_peer.values()]
        assert router.acceptors.num_active == Counter(worker for workers in held for worker in workers)
        assert all(len(workers) <= 4 for workers in held)
        assert len(router.fleet.sequences) <= sum(map(len, held))
        if (delta := router.take_delta()) is not None:
            version += 1
            assert delta.version == version
        assert {worker.instance_id for worker in router.table.published()[0]} == router.table.workers.keys()
    for peer in list(router.acceptors.by_peer):
        router.forget(peer)
    sequences = router.fleet.sequences
    assert not any(sequences.prefill_tokens)
    assert not any(sequences.blocks)
    assert not any(sequences.num_requests)
