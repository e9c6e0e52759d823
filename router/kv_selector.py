"""Mode kv: the rank where a prompt costs least, by what is cached of it there and by what the rank has to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from dynamo.router.cost import Candidates, Floats, Ids, Ints, costs, pick, spread
from dynamo.router.fleet import Fleet, most
from dynamo.router.index import Matches
from dynamo.router.policies import PolicyRequest
from dynamo.router.selectors import Choice, Question
from dynamo.router.table import LiveSet
from dynamo.router.weights import Weights
from dynamo.shared.messages import Candidate, Receipt, RoutingHints

NO_HINTS = RoutingHints()
FAVOURED_WEIGHT = 1.0  # of a session's rank, as if its taint were preferred by so much


class _Pool(Struct, frozen=True):
    """The ranks of some workers; it holds as long as the table gives out the very same list of them."""

    workers: Sequence[int]
    dp_rank: int | None
    mask: int
    slots: Ints
    instance_ids: Ids
    dp_ranks: Ints


class View(Struct, frozen=True):
    """What one placement is decided on, the candidates in the order of `costs`."""

    candidates: Candidates
    costs: Floats
    weights: Weights
    num_blocks: int  # of the prompt, the last one perhaps not full
    best_overlap_blocks: int  # the most that any candidate has on its device


class KvSelector:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._pool: _Pool | None = None
        self._weights: tuple[bytes, Weights] | None = None  # as a card says, and what that means

    def select(self, question: Question) -> Choice:
        view = self.view(question)
        own = pick(view.costs, view.weights.router_temperature, self._fleet.rng)
        policy = self._fleet.policy_for(question.live.worker_type)
        scores = None if policy is None else policy.scores(_policy_request(question, view), view.candidates)
        if policy is None or scores is None:
            return self._choice(question, view, own, "cost")
        chosen = policy.settle(own, pick(scores, 0.0, self._fleet.rng))
        if policy.is_shadow:
            return self._choice(question, view, chosen, "cost")
        return self._choice(question, view, chosen, "policy", policy.name)

    def look(self, question: Question) -> list[Candidate]:
        view = self.view(question)
        return [_row(view, at) for at in range(len(view.candidates))]

    def view(self, question: Question) -> View:
        place, live = question.place, question.live
        weights = self._weights_for(question)
        pool = self._pool_of(question)
        held = self._fleet.match(place.block_hashes, pool.mask, question.now)
        candidates = self._candidates(question, pool, held)
        found = costs(candidates, place.num_tokens, live.block_size, weights)
        return View(candidates, found, weights, -(-place.num_tokens // live.block_size), most(held.device))

    # ---- choosing

    def _choice(self, question: Question, view: View, at: int, reason: str, policy: str = "") -> Choice:
        row, block_size = view.candidates, question.live.block_size
        device = int(row.device_blocks[at])
        cached_tokens = round(_effective_blocks(view, at) * block_size)
        return Choice(
            int(row.instance_ids[at]),
            int(row.dp_ranks[at]),
            device,
            min(cached_tokens, question.place.num_tokens),
            _receipt(view, at, policy) if question.wants_receipt else None,
            view.weights,
            reason,
            view.num_blocks,
            view.best_overlap_blocks,
        )

    # ---- what is compared

    def _candidates(self, question: Question, pool: _Pool, held: Matches) -> Candidates:
        place, slots, sequences = question.place, pool.slots, self._fleet.sequences
        num_full_blocks = len(place.block_hashes) // 8
        return Candidates(
            slots=slots,
            instance_ids=pool.instance_ids,
            dp_ranks=pool.dp_ranks,
            device_blocks=spread(held.device, slots, pool.mask),
            host_blocks=_counts(held.host, slots),
            disk_blocks=_counts(held.disk, slots),
            external_blocks=_counts(held.external, slots),
            prefill_tokens=np.frombuffer(sequences.prefill_tokens, np.int64).take(slots),
            decode_blocks=np.frombuffer(sequences.blocks, np.float64).take(slots),
            new_blocks=num_full_blocks - spread(sequences.match(place.block_hashes, pool.mask), slots, pool.mask),
            num_requests=np.frombuffer(sequences.num_requests, np.int64).take(slots),
            preferred_weight=self._preferences(question, pool),
            has_lower_tiers=bool(held.host or held.disk or held.external),
        )

    def _pool_of(self, question: Question) -> _Pool:
        pool, dp_rank = self._pool, question.dp_rank
        if pool is None or pool.workers is not question.candidates or pool.dp_rank != dp_rank:
            pool = self._pool = self._make_pool(question.candidates, dp_rank)
        return pool

    def _make_pool(self, workers: Sequence[int], dp_rank: int | None) -> _Pool:
        ranks = [
            (slot, instance_id, rank)
            for instance_id in workers
            for rank, slot in self._fleet.ranks.slots_of(instance_id).items()
            if dp_rank is None or rank == dp_rank
        ]
        return _Pool(
            workers,
            dp_rank,
            sum(1 << slot for slot, _instance, _rank in ranks),
            np.array([slot for slot, _instance, _rank in ranks], np.int64),
            np.array([instance_id for _slot, instance_id, _rank in ranks], np.uint64),
            np.array([rank for _slot, _instance, rank in ranks], np.int64),
        )

    def _preferences(self, question: Question, pool: _Pool) -> Floats | None:
        constraints = (question.place.hints or NO_HINTS).constraints
        if question.favoured is None and (constraints is None or not constraints.preferred_taints):
            return None
        weights = np.zeros(len(pool.slots))
        if constraints is not None and constraints.preferred_taints:
            weights += [self._taint_weight(slot, constraints.preferred_taints) for slot in pool.slots.tolist()]
        if question.favoured is not None and len(pool.slots) > 1:
            instance_id, dp_rank = question.favoured
            weights += FAVOURED_WEIGHT * ((pool.instance_ids == instance_id) & (pool.dp_ranks == dp_rank))
        return weights

    def _taint_weight(self, slot: int, preferred: dict[str, float]) -> float:
        return sum(preferred.get(taint, 0.0) for taint in self._fleet.ranks.facts(slot).taints)

    def _weights_for(self, question: Question) -> Weights:
        """The router's, unless the set's card has its own; over them the request's."""
        weights = self._set_weights(question.live)
        hints = question.place.hints
        return weights if hints is None or hints.router_config is None else weights.overridden(hints.router_config)

    def _set_weights(self, live: LiveSet) -> Weights:
        raw = bytes(live.leader.card.router_config)
        if self._weights is None or raw != self._weights[0]:
            self._weights = raw, Weights.from_card(raw) or self._fleet.weights_for(live.worker_type)
        return self._weights[1]


def _effective_blocks(view: View, at: int) -> float:
    """Cached blocks in units of those that cost nothing to use, as Dynamo counts them when it books the rest."""
    row, weights = view.candidates, view.weights
    below = int(row.disk_blocks[at]) + int(row.external_blocks[at])
    host = weights.host_cache_hit_weight * int(row.host_blocks[at])
    return int(row.device_blocks[at]) + host + weights.disk_cache_hit_weight * below


def _counts(blocks: dict[int, int], slots: Ints) -> Ints:
    if not blocks:
        return np.zeros(len(slots), np.int64)
    return np.array([blocks.get(slot, 0) for slot in slots.tolist()], np.int64)


def _policy_request(question: Question, view: View) -> PolicyRequest:
    place, hints = question.place, question.place.hints or NO_HINTS
    return PolicyRequest(
        model=place.model,
        num_tokens=place.num_tokens,
        block_size=question.live.block_size,
        num_blocks=view.num_blocks,
        priority_jump=hints.priority_jump,
        strict_priority=hints.strict_priority,
        session_id=hints.session_id,
        lora_name=hints.lora_name,
        label=place.label,
    )


def _receipt(view: View, at: int, policy: str) -> Receipt:
    """Without its reason, which is that of the choice."""
    row = view.candidates
    return Receipt(
        "",
        len(row),
        view.num_blocks,
        int(row.device_blocks[at]),
        int(row.host_blocks[at]),
        int(row.disk_blocks[at]),
        int(row.external_blocks[at]),
        float(view.costs[at]),
        *_runner_up(view, at),
        policy=policy,
    )


def _runner_up(view: View, at: int) -> tuple[int | None, int | None, float | None]:
    """Instance, rank and cost of the cheapest candidate besides this one."""
    if len(view.candidates) == 1:
        return None, None, None
    others = view.costs.copy()
    others[at] = np.inf
    second = int(np.argmin(others))
    row = view.candidates
    return int(row.instance_ids[second]), int(row.dp_ranks[second]), float(view.costs[second])


def _row(view: View, at: int) -> Candidate:
    row = view.candidates
    return Candidate(
        int(row.instance_ids[at]),
        int(row.dp_ranks[at]),
        device_blocks=int(row.device_blocks[at]),
        host_blocks=int(row.host_blocks[at]),
        disk_blocks=int(row.disk_blocks[at]),
        external_blocks=int(row.external_blocks[at]),
        prefill_tokens=int(row.prefill_tokens[at]),
        decode_blocks=float(row.decode_blocks[at]),
        new_blocks=int(row.new_blocks[at]),
        num_requests=int(row.num_requests[at]),
        cost=float(view.costs[at]),
    )
