"""How one worker is chosen among those that may be asked. One class per mode, made once per worker set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec import Struct

from dynamo.router.weights import Weights
from dynamo.shared.messages import Candidate, Place, Receipt

if TYPE_CHECKING:
    from dynamo.router.fleet import Fleet
    from dynamo.router.ranks import Rank
    from dynamo.router.table import LiveSet


class Question(Struct, frozen=True):
    """One placement to decide: on which of `candidates` (instance ids, never none) of `live`? `favoured` is where the
    request's session was served before, which may be weighed against load. With `dp_rank` no other rank will do."""

    place: Place
    live: LiveSet
    candidates: Sequence[int]
    now: float
    favoured: Rank | None = None
    dp_rank: int | None = None

    @property
    def wants_receipt(self) -> bool:
        return self.place.hints is not None and self.place.hints.wants_receipt


class Choice(NamedTuple):
    """`cached_tokens` of the prompt are expected on the worker, in whatever tier; `overlap_blocks` on its device, and
    no more than `best_overlap_blocks` on any candidate's. `prompt_blocks` is 0 in modes that do not look at blocks."""

    instance_id: int
    dp_rank: int | None = None
    overlap_blocks: int = 0
    cached_tokens: int = 0
    receipt: Receipt | None = None
    weights: Weights | None = None  # if others than the router's own counted
    reason: str = "mode"
    prompt_blocks: int = 0
    best_overlap_blocks: int = 0


class Selector(Protocol):
    def select(self, question: Question) -> Choice | None:
        """None: this mode never chooses."""

    def look(self, question: Question) -> list[Candidate]:
        """What would be compared, without choosing."""


class _ByRequests:
    """Base of those that look at nothing but how many requests a worker has."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def look(self, question: Question) -> list[Candidate]:
        return [self._fleet.as_candidate(instance_id) for instance_id in question.candidates]


class RoundRobin(_ByRequests):
    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._turn = 0

    def select(self, question: Question) -> Choice:
        """A request that could go to one worker only takes nobody's turn."""
        candidates = question.candidates
        if len(candidates) == 1:
            return Choice(candidates[0])
        self._turn += 1
        return Choice(candidates[(self._turn - 1) % len(candidates)])


class Random(_ByRequests):
    def select(self, question: Question) -> Choice:
        return Choice(self._fleet.rng.choice(question.candidates))


class PowerOfTwo(_ByRequests):
    """The less busy of two different candidates drawn at random."""

    def select(self, question: Question) -> Choice:
        candidates, num_active = question.candidates, self._fleet.num_active
        if len(candidates) == 1:
            return Choice(candidates[0])
        first, second = self._fleet.rng.sample(range(len(candidates)), 2)
        one, other = candidates[first], candidates[second]
        return Choice(one if num_active.get(one, 0) <= num_active.get(other, 0) else other)


class LeastLoaded(_ByRequests):
    """Fewest active requests; equals take turns, or an idle fleet would have one busy worker."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._turn = 0

    def select(self, question: Question) -> Choice:
        candidates, num_active = question.candidates, self._fleet.num_active
        loads = [num_active.get(instance_id, 0) for instance_id in candidates]
        lowest = min(loads)
        self._turn = turn = (self._turn + 1) % len(candidates)
        try:
            return Choice(candidates[loads.index(lowest, turn)])
        except ValueError:
            return Choice(candidates[loads.index(lowest)])


class Direct(_ByRequests):
    """Whoever sends the request names the worker; the router only checks the name."""

    def select(self, question: Question) -> Choice | None:
        place = question.place
        return None if place.instance_id is None else Choice(place.instance_id, place.dp_rank)


def _kv(fleet: Fleet) -> Selector:
    from dynamo.router.kv_selector import KvSelector  # with numpy, which the other modes need not pay for

    return KvSelector(fleet)


SELECTORS: dict[str, Callable[[Fleet], Selector]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "power-of-two": PowerOfTwo,
    "least-loaded": LeastLoaded,
    "direct": Direct,
    "kv": _kv,
}
