"""How one worker is chosen among those that may be asked. One class per mode, made once per worker set."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from dynamo.shared.messages import Place


class Choice(NamedTuple):
    instance_id: int
    dp_rank: int | None = None
    overlap_blocks: int = 0


class Selector(Protocol):
    def select(self, place: Place, candidates: Sequence[int], num_active: Mapping[int, int]) -> Choice | None:
        """`candidates` is never empty; `num_active` has no entry for an idle one. None: this mode never chooses."""


class RoundRobin:
    def __init__(self, rng: random.Random) -> None:
        self._turn = 0

    def select(self, place: Place, candidates: Sequence[int], num_active: Mapping[int, int]) -> Choice:
        self._turn += 1
        return Choice(candidates[(self._turn - 1) % len(candidates)])


class Random:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def select(self, place: Place, candidates: Sequence[int], num_active: Mapping[int, int]) -> Choice:
        return Choice(self._rng.choice(candidates))


class PowerOfTwo:
    """The less busy of two different candidates drawn at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def select(self, place: Place, candidates: Sequence[int], num_active: Mapping[int, int]) -> Choice:
        if len(candidates) == 1:
            return Choice(candidates[0])
        first, second = self._rng.sample(range(len(candidates)), 2)
        one, other = candidates[first], candidates[second]
        return Choice(one if num_active.get(one, 0) <= num_active.get(other, 0) else other)


class LeastLoaded:
    """Fewest active requests; equals take turns, or an idle fleet would have one busy worker."""

    def __init__(self, rng: random.Random) -> None:
        self._turn = 0

    def select(self, place: Place, candidates: Sequence[int], num_active: Mapping[int, int]) -> Choice:
        loads = [num_active.get(instance_id, 0) for instance_id in candidates]
        lowest = min(loads)
        self._turn = turn = (self._turn + 1) % len(candidates)
        try:
            return Choice(candidates[loads.index(lowest, turn)])
        except ValueError:
            return Choice(candidates[loads.index(lowest)])


class Direct:
    """Whoever sends the request names the worker; the router only checks the name."""

    def __init__(self, rng: random.Random) -> None:
        pass

    def select(self, place: Place, candidates: Sequence[int], num_active: Mapping[int, int]) -> None:
        return None


SELECTORS: dict[str, Callable[[random.Random], Selector]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "power-of-two": PowerOfTwo,
    "least-loaded": LeastLoaded,
    "direct": Direct,
}
