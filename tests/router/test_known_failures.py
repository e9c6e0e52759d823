"""What is known to go wrong in routers of this kind, looked for in fleets that serve hundreds of requests in virtual
time. What one placement can show is in `tests/scenarios`: miss_on_overloaded, long_contexts, thrashing_session.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate

import pytest

from tests.router.simulated_fleet import Prompt, SimulatedFleet

KV = "--router-mode=kv"


def fresh_blocks(rng: random.Random, num_blocks: int) -> list[int]:
    return [rng.getrandbits(63) for _ in range(num_blocks)]


def arrivals(rng: random.Random, num_requests: int, per_second: float) -> Iterator[float]:
    return accumulate(rng.expovariate(per_second) for _ in range(num_requests))


def ask_with_system_prompt(fleet: SimulatedFleet, num_requests: int, per_second: float) -> list[float]:
    """1,024 tokens that all have in common, 256 of its own, 2 seconds of output. When they come."""
    rng = random.Random(1)
    system_prompt = fresh_blocks(rng, 64)
    times = list(arrivals(rng, num_requests, per_second))
    for at in times:
        fleet.ask(at, Prompt([*system_prompt, *fresh_blocks(rng, 16)], 100))
    return times


def ask_about_documents(fleet: SimulatedFleet, num_requests: int, per_second: float) -> None:
    """Questions about 40 documents of 2,048 tokens, of which a worker's cache holds seven."""
    rng = random.Random(4)
    documents = [fresh_blocks(rng, 128) for _ in range(40)]
    for at in arrivals(rng, num_requests, per_second):
        fleet.ask(at, Prompt([*rng.choice(documents), *fresh_blocks(rng, 8)], 50))


def busiest_share(num_requests: list[int]) -> float:
    """Of the worker with the most, as a multiple of the mean."""
    return max(num_requests) * len(num_requests) / sum(num_requests)


@pytest.mark.parametrize("flags", [[KV], [KV, "--no-kv-events"], ["--load-aware"]], ids=" ".join)
def test_cold_requests_one_at_a_time_go_to_all_workers(flags: list[str]) -> None:
    """Each is a tie. 400 fair draws among 4 leave no worker with less than 70 or more than 130."""
    rng = random.Random(3)
    fleet = SimulatedFleet(*flags, num_workers=4)
    for number in range(400):
        fleet.ask(5.0 * number, Prompt(fresh_blocks(rng, 20), 100))
    fleet.run()
    assert all(70 <= num_requests <= 130 for num_requests in fleet.requests_of())


@pytest.mark.parametrize("per_second", [10, 40, 120])
def test_a_system_prompt_does_not_collapse_the_fleet_onto_one_worker(per_second: float) -> None:
    """64 of 80 blocks can be cached, so the best share is 0.8; each worker computes them once."""
    fleet = SimulatedFleet(KV, num_workers=8)
    ask_with_system_prompt(fleet, 600, per_second)
    fleet.run()
    assert len(fleet.served) == 600
    assert busiest_share(fleet.requests_of()) < 1.25
    assert fleet.hit_share > 0.75


def test_a_fleet_with_little_to_do_warms_no_more_workers_than_it_needs() -> None:
    """Four requests at a time: nobody waits, and more than one worker serves them."""
    fleet = SimulatedFleet(KV, num_workers=8)
    ask_with_system_prompt(fleet, 600, 2)
    fleet.run()
    assert fleet.hit_share > 0.79
    assert busiest_share(fleet.requests_of()) < 4
    assert max(each.first_token_s for each in fleet.served) < 0.2


@pytest.mark.parametrize("per_second", [10, 40])
def test_a_worker_that_joins_a_warm_fleet_gets_its_share(per_second: float) -> None:
    """All others have the system prompt cached, and it has nothing. Neither is it flooded."""
    fleet = SimulatedFleet(KV, num_workers=7)
    joins_at = ask_with_system_prompt(fleet, 900, per_second)[300]
    fleet.at(joins_at, lambda: fleet.join(8))
    fleet.run()
    for since in (joins_at, joins_at + 2):
        *others, newcomer = fleet.requests_of(since)
        assert 0.7 < newcomer * len(others) / sum(others) < 1.4
    assert fleet.hit_share > 0.75


def test_documents_are_read_by_those_who_know_them() -> None:
    """A fifth of them fits into each cache: by turns nearly all is computed anew, by cost most of it is found."""
    shares = {}
    for mode in ("kv", "round-robin"):
        fleet = SimulatedFleet(f"--router-mode={mode}", num_workers=8, blocks=1000)
        ask_about_documents(fleet, 800, 30)
        fleet.run()
        assert busiest_share(fleet.requests_of()) < 1.25
        shares[mode] = fleet.hit_share
    assert shares["kv"] > 0.5
    assert shares["round-robin"] < 0.2


@pytest.mark.parametrize("flags", [[KV], [KV, "--no-kv-events"]], ids=" ".join)
def test_eight_acceptors_find_as_much_cached_as_one(flags: list[str]) -> None:
    """One view of the fleet makes one sequence of placements, whoever asks."""
    one, eight = (SimulatedFleet(*flags, num_workers=8, num_acceptors=number, blocks=1000) for number in (1, 8))
    for fleet in (one, eight):
        ask_about_documents(fleet, 400, 60)
        fleet.run()
    assert eight.served == one.served
    assert one.hit_share > 0.3
