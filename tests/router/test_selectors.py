from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from dynamo.router.fleet import Fleet
from dynamo.router.selectors import SELECTORS, Question, Selector
from dynamo.router.table import LiveSet
from dynamo.router.weights import Weights
from dynamo.shared.card import read_registration
from dynamo.shared.messages import Place
from dynamo.shared.protocol import RuntimeConfig
from tests.router.registrations import card_value

PLACE = Place(1, "m", 100)
WORKERS = [11, 12, 13, 14]


def make(mode: str, num_active: Mapping[int, int], seed: int = 0) -> Selector:
    fleet = Fleet(random.Random(seed), dict(num_active), Weights())
    for worker in WORKERS:
        fleet.up(worker, RuntimeConfig())
    return SELECTORS[mode](fleet)


def question(selector: Selector, workers: Sequence[int] = WORKERS) -> Question:
    live = LiveSet("s", read_registration(card_value(1, "ns/backend/generate", {"model": "m"})), selector)
    return Question(PLACE, live, workers, 0.0)


def picks(selector: Selector, times: int, workers: Sequence[int] = WORKERS) -> list[int]:
    asked = question(selector, workers)
    choices = [selector.select(asked) for _ in range(times)]
    return [choice.instance_id for choice in choices if choice is not None]


def test_round_robin_gives_everyone_the_same_number_of_turns() -> None:
    assert picks(make("round-robin", {}), 8) == WORKERS + WORKERS


def test_round_robin_goes_on_when_workers_come_and_go() -> None:
    selector = make("round-robin", {})
    picks(selector, 3)
    assert set(picks(selector, 2, [11, 12])) == {11, 12}


def test_random_is_even_and_repeatable() -> None:
    counts = Counter(picks(make("random", {}), 4000))
    assert all(900 < counts[worker] < 1100 for worker in WORKERS)
    assert picks(make("random", {}, 7), 50) == picks(make("random", {}, 7), 50)


def test_power_of_two_never_picks_the_busiest_and_prefers_the_idlest() -> None:
    counts = Counter(picks(make("power-of-two", {11: 5, 12: 9, 13: 1}), 6000))
    assert counts[12] == 0  # every other candidate it can be drawn with is less busy
    # Six pairs: 14 wins three of them, 13 two, 11 one.
    assert 2800 < counts[14] < 3200
    assert 1800 < counts[13] < 2200
    assert 800 < counts[11] < 1200


def test_power_of_two_with_one_candidate() -> None:
    assert picks(make("power-of-two", {11: 100}), 2, [11]) == [11, 11]


def test_least_loaded_picks_the_fewest_active() -> None:
    assert picks(make("least-loaded", {11: 1, 12: 1, 13: 1}), 3) == [14, 14, 14]


def test_least_loaded_spreads_over_equals() -> None:
    assert Counter(picks(make("least-loaded", {}), 40)) == dict.fromkeys(WORKERS, 10)


@pytest.mark.parametrize("mode", SELECTORS)
def test_modes_choose_a_candidate_or_nobody(mode: str) -> None:
    selector = make(mode, {11: 3})
    choice = selector.select(question(selector))
    assert choice is None if mode == "direct" else choice is not None and choice.instance_id in WORKERS


@pytest.mark.parametrize("mode", SELECTORS)
def test_modes_show_what_they_compare(mode: str) -> None:
    selector = make(mode, {})
    assert [row.instance_id for row in selector.look(question(selector))] == WORKERS
