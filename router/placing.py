"""Who may serve a request: from a model's name to the workers among which a selector chooses."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from dynamo.router.affinity import Advice, Condition, SessionAffinity, Target
from dynamo.router.fleet import Fleet
from dynamo.router.overload import OverloadMonitor
from dynamo.router.ranks import Rank
from dynamo.router.selectors import Question
from dynamo.router.table import LiveSet, ModelTable
from dynamo.router.weights import Weights
from dynamo.shared.messages import Place, Refused, RoutingHints
from dynamo.shared.protocol import RoutingConstraints

NO_HINTS = RoutingHints()
SEPARATOR = "\n"  # no header has one
Pool = tuple[LiveSet, Sequence[int]]  # a set and those of it that may be asked, never none
ELIGIBLE = "eligible"
OVERLOADED = "Service temporarily overloaded"  # the words of Dynamo, which clients may know


class Placing:
    """Applies, in this order: name, card, pins and wishes of the request, failures, load, session."""

    def __init__(
        self,
        table: ModelTable,
        fleet: Fleet,
        overload: OverloadMonitor,
        affinity: SessionAffinity | None,
        rng: random.Random,
        *,
        weighs_cost: bool,
    ) -> None:
        self._table = table
        self._fleet = fleet
        self._overload = overload
        self._affinity = affinity
        self._rng = rng
        self._weighs_cost = weighs_cost
        self.has_enough_workers = False

    def question(self, place: Place, now: float, *, is_dry: bool = False) -> Question | Refused:
        """With `is_dry` a look at a session does not count as its use."""
        sets = self._sets(place)
        if isinstance(sets, Refused):
            return sets
        if (refusal := self._check_wishes(place, sets)) is not None:
            return refusal
        pools = self._healthy(place, sets)
        free = self._not_overloaded(pools) if self._overload.is_watching else pools
        hints = place.hints
        if self._affinity is not None and hints is not None and hints.session_id:
            found = self._by_session(self._affinity, place, pools, free, now, is_dry=is_dry)
            if found is not None:
                return found
        if not free:
            return refused(place, "overloaded", OVERLOADED)
        live, candidates = free[0] if len(free) == 1 else self._rng.choices(free, [len(ids) for _live, ids in free])[0]
        return Question(place, live, candidates, now, dp_rank=place.dp_rank)

    def verdicts(self, place: Place, live: LiveSet) -> dict[int, str]:
        """For every member why it may not be asked, or that it may."""
        excluded, hints = set(place.excluded), place.hints or NO_HINTS
        found = {}
        for instance_id in live.members:
            if not self._is_wanted(instance_id, hints) or place.instance_id not in (None, instance_id):
                found[instance_id] = "not wanted by the request"
            elif instance_id in excluded:
                found[instance_id] = "has failed this request"
            elif instance_id not in live.available:
                found[instance_id] = "has failed a moment ago"
            elif self._is_overloaded(live, instance_id):
                found[instance_id] = "overloaded"
            else:
                found[instance_id] = ELIGIBLE
        return found

    # ---- by name

    def _sets(self, place: Place) -> list[LiveSet] | Refused:
        if place.endpoint:
            return self._sets_at(place)
        sets = self._table.serving(place.model)
        if sets is None:
            return refused(place, "model_not_found", f"The model {place.model!r} is not registered with this gateway.")
        if not self.has_enough_workers:
            return refused(place, "model_not_ready", "The gateway is waiting for its first workers.")
        if place.mdcsum:
            sets = [live for live in sets if live.leader.mdcsum == place.mdcsum]
        if not sets:
            return refused(
                place, "model_not_ready", f"The model {place.model!r} is not ready: workers it needs are missing."
            )
        return sets

    def _sets_at(self, place: Place) -> list[LiveSet] | Refused:
        sets = self._table.at_endpoint(place.endpoint)
        if not sets or not self.has_enough_workers:
            return refused(place, "model_not_ready", f"No worker serves the endpoint {place.endpoint}.")
        return [live for live in sets if place.model in live.names] or sets

    # ---- by what the request wants

    def _check_wishes(self, place: Place, sets: list[LiveSet]) -> Refused | None:
        """Wishes that nobody could meet are the client's mistake."""
        if place.instance_id is None and place.dp_rank is None and place.hints is None:
            return None
        members = {instance_id for live in sets for instance_id in live.members}
        if place.instance_id is not None and place.instance_id not in members:
            return refused(
                place,
                "invalid_value",
                f"{_whose(place)} has no worker with the instance id {place.instance_id}.",
            )
        wanted = members if place.instance_id is None else {place.instance_id}
        with_rank = ""
        if place.dp_rank is not None:
            wanted = {i for i in wanted if self._fleet.ranks.slot_of(i, place.dp_rank) is not None}
            with_rank = f" with the data parallel rank {place.dp_rank}"
        if not wanted:
            return refused(place, "invalid_value", f"{_whose(place)} has no worker{with_rank}.")
        hints = place.hints
        if hints is None:
            return None
        if not any(self._is_wanted(instance_id, hints) for instance_id in wanted):
            return refused(
                place,
                "invalid_value",
                f"{_whose(place)} has no worker{with_rank} that is among the allowed ones and has the required taints.",
            )
        return _check_weights(place, hints)

    def _is_wanted(self, instance_id: int, hints: RoutingHints) -> bool:
        if hints.allowed_worker_ids is not None and instance_id not in hints.allowed_worker_ids:
            return False
        return hints.constraints is None or self._has_taints(instance_id, hints.constraints)

    def _has_taints(self, instance_id: int, constraints: RoutingConstraints) -> bool:
        slots = self._fleet.ranks.slots_of(instance_id).values()
        return any(set(constraints.required_taints) <= set(self._fleet.ranks.facts(slot).taints) for slot in slots)

    # ---- by health and load

    def _healthy(self, place: Place, sets: list[LiveSet]) -> list[Pool]:
        """A worker that failed a moment ago is asked before nobody is, and before one that has failed this very
        request. A pin is an order: then such a one is asked as well."""
        preferences: tuple[Callable[[LiveSet], Sequence[int]], ...] = (
            lambda live: _without(place.excluded, live.available),
            lambda live: _without(place.excluded, live.members),
            lambda live: live.members,
        )
        for candidates_of in preferences:
            pools = [(live, wanted) for live in sets if (wanted := self._wanted(place, candidates_of(live)))]
            if pools:
                return pools
        return []

    def _wanted(self, place: Place, candidates: Sequence[int]) -> Sequence[int]:
        if place.instance_id is not None:
            return [place.instance_id] if place.instance_id in candidates else []
        if place.dp_rank is not None:
            candidates = [i for i in candidates if self._fleet.ranks.slot_of(i, place.dp_rank) is not None]
        hints = place.hints
        if hints is None or (hints.allowed_worker_ids is None and hints.constraints is None):
            return candidates
        return [instance_id for instance_id in candidates if self._is_wanted(instance_id, hints)]

    def _not_overloaded(self, pools: list[Pool]) -> list[Pool]:
        return [(live, free) for live, candidates in pools if (free := self._free_ones(live, candidates))]

    def _free_ones(self, live: LiveSet, candidates: Sequence[int]) -> Sequence[int]:
        """The very same list if all are: selectors remember what they worked out for it."""
        busy = self._overload.overloaded_slots(live.model)
        if not busy:
            return candidates
        slots_of = self._fleet.ranks.slots_of
        return [i for i in candidates if not (ranks := slots_of(i).values()) or not busy.issuperset(ranks)]

    def _is_overloaded(self, live: LiveSet, instance_id: int) -> bool:
        slots = self._fleet.ranks.slots_of(instance_id).values()
        return self._overload.is_watching and self._overload.is_overloaded(live.model, slots)

    # ---- by session

    def _by_session(
        self,
        affinity: SessionAffinity,
        place: Place,
        pools: list[Pool],
        free: list[Pool],
        now: float,
        *,
        is_dry: bool,
    ) -> Question | Refused | None:
        """None: the session is bound to nobody, or no longer."""
        assert place.hints is not None
        session_id = session_key(pools[0][0].model, place.hints.session_id)
        bound = affinity.peek(session_id, now) if is_dry else affinity.bound(session_id, now)
        if bound is None:
            return None
        home = next((pool for pool in free if bound.instance_id in pool[1]), None)
        is_there = home is not None or any(bound.instance_id in candidates for _live, candidates in pools)
        condition = Condition.FIT if home else Condition.OVERLOADED if is_there else Condition.UNUSABLE
        match self._advice(affinity, session_id, bound, condition, place, now, is_dry=is_dry):
            case Advice.WAIT:
                return refused(place, "overloaded", "The worker that serves this session is overloaded.")
            case Advice.STAY if home is not None:
                return self._at_home(place, *home, bound, now, is_bound=affinity.is_hard or not self._weighs_cost)
        return None

    def _at_home(
        self, place: Place, live: LiveSet, candidates: Sequence[int], bound: Target, now: float, *, is_bound: bool
    ) -> Question:
        """`is_bound`: the session's worker must serve it, and of its ranks, if there are several, the one whose cache
        the session has filled."""
        rank = Rank(bound.instance_id, bound.dp_rank or 0)
        if not is_bound:
            return Question(place, live, candidates, now, rank, place.dp_rank)
        is_known = self._fleet.ranks.slot_of(*rank) is not None
        dp_rank = bound.dp_rank if place.dp_rank is None and is_known else place.dp_rank
        return Question(place, live, [bound.instance_id], now, rank, dp_rank)

    def _advice(
        self,
        affinity: SessionAffinity,
        session_id: str,
        bound: Target,
        condition: Condition,
        place: Place,
        now: float,
        *,
        is_dry: bool,
    ) -> Advice:
        if is_dry:
            return Advice.STAY if condition is Condition.FIT else Advice.MOVE
        cached = self._fleet.cached_blocks(bound.instance_id, bound.dp_rank, place.block_hashes, now)
        return affinity.advise(session_id, condition, now, place.block_hashes, cached)


def session_key(model: str, session_id: str) -> str:
    """A session has a binding per model: one that uses two would otherwise move with each turn."""
    return f"{model}{SEPARATOR}{session_id}"


def _check_weights(place: Place, hints: RoutingHints) -> Refused | None:
    if hints.router_config is not None:
        try:
            Weights().overridden(hints.router_config)
        except ValueError as error:
            return refused(place, "invalid_value", f"router_config_override: {error}")
    return None


def _whose(place: Place) -> str:
    return f"The endpoint {place.endpoint}" if place.endpoint else f"The model {place.model!r}"


def _without(excluded: Sequence[int], candidates: list[int]) -> Sequence[int]:
    return [i for i in candidates if i not in excluded] if excluded else candidates


def refused(place: Place, code: str, message: str, retry_after_s: int = 1) -> Refused:
    return Refused(place.request_id, code, message, retry_after_s)
