"""Which placements have to wait, and whose turn it is when a worker has room."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from dynamo.router.class_queue import PolicyClass
from dynamo.router.fleet import Fleet
from dynamo.router.placing import NO_HINTS, Placing
from dynamo.router.policy_config import PolicyFile, PolicyProfile
from dynamo.router.queue import PlacementQueue, Waiting
from dynamo.router.selectors import Question
from dynamo.router.table import LiveSet
from dynamo.shared.messages import Refused, RoutingHints


class Profiles:
    """The policy classes of every model: those of the policy file, else the one that the flags describe."""

    def __init__(self, fallback: PolicyClass, file: PolicyFile | None) -> None:
        self._fallback = PolicyProfile.single(fallback)
        self._file = file
        self.classes = [fallback] if file is None else file.classes(self._fallback)

    def of(self, model: str) -> PolicyProfile:
        return self._fallback if self._file is None else self._file.profile(model, self._fallback)


class Admission:
    """A placement waits while every worker that may be chosen has more to prefill than its class puts up with, and
    while others of its class wait for the same workers."""

    def __init__(self, profiles: Profiles, queue: PlacementQueue, placing: Placing, fleet: Fleet) -> None:
        self._profiles = profiles
        self._classes = {each.name: each for each in profiles.classes}
        self._queue = queue
        self._placing = placing
        self._fleet = fleet
        self.is_queueing = any(each.is_queueing for each in profiles.classes)

    def class_of(self, question: Question) -> PolicyClass:
        """By the name that the request gives, and where that leaves a choice by how much of it nobody has cached."""
        profile, hints = self._profiles.of(question.live.model), question.place.hints
        if len(profile.classes) == 1:
            return profile.classes[0]
        uncached = question.place.num_tokens - self._cached_tokens(question)
        return profile.classify("" if hints is None else hints.policy_class, max(0, uncached))

    def class_resumed(self, live: LiveSet | None, hints: RoutingHints | None) -> PolicyClass | None:
        """Of a request that runs already; None where it depends on what was cached when it was placed."""
        if live is None:
            return None
        profile = self._profiles.of(live.model)
        if len(profile.classes) == 1:
            return profile.classes[0]
        return None if hints is None else profile.explicit.get(hints.policy_class)

    def classes_of(self, model: str) -> Sequence[PolicyClass]:
        """Those that requests for it may wait in."""
        return self._profiles.of(model).classes

    def class_named(self, name: str) -> PolicyClass:
        return self._classes[name]

    def must_wait(self, question: Question, policy_class: PolicyClass) -> bool:
        if not policy_class.is_queueing:
            return False
        is_turn = self._queue.admits(policy_class.name, question.live.key, _pin(question))
        return not is_turn or self._is_busy(question, policy_class)

    def enqueue(self, peer: bytes, question: Question, policy_class: PolicyClass) -> None:
        """Raises QueueFull."""
        place = question.place
        waiting = Waiting(
            key=(peer, place.request_id),
            place=place,
            worker_set_key=question.live.key,
            policy_class=policy_class.name,
            arrived_at=question.now,
            cached_tokens=self._cached_tokens(question),
            pinned_to=_pin(question),
        )
        self._queue.push(waiting, question.now, num_workers=len(question.candidates))

    def startable(self, now: float) -> Iterator[tuple[Waiting, Question | Refused]]:
        """Those that need not wait any longer, in their order; the caller places one before it asks for the next."""
        found: dict[tuple[bytes, int], Question | Refused] = {}  # asked again, chance might lead to other workers

        def may_start(waiting: Waiting) -> bool:
            question = found[waiting.key] = self._placing.question(waiting.place, now)
            return self._may_start(question, self._classes[waiting.policy_class])

        for waiting in self._queue.startable(may_start):
            yield waiting, found.pop(waiting.key)

    def refresh(self, now: float) -> None:
        """Look anew at what is cached of those that have waited for long."""

        def cached_tokens(waiting: Waiting) -> int:
            question = self._placing.question(waiting.place, now)
            return waiting.cached_tokens if isinstance(question, Refused) else self._cached_tokens(question)

        self._queue.refresh(now, cached_tokens)

    def _may_start(self, question: Question | Refused, policy_class: PolicyClass) -> bool:
        """A placement that nobody can serve any more may leave too, with a refusal; overload passes."""
        if isinstance(question, Refused):
            return question.code != "overloaded"
        return not self._is_busy(question, policy_class)

    def _is_busy(self, question: Question, policy_class: PolicyClass) -> bool:
        fleet = self._fleet
        return all(
            fleet.sequences.prefill_tokens[slot]
            > policy_class.busy_above(fleet.ranks.facts(slot).max_num_batched_tokens)
            for slot in self._slots(question)
        )

    def _cached_tokens(self, question: Question) -> int:
        """The most that any rank that may be chosen is expected to have of this prompt."""
        place = question.place
        if not place.block_hashes:
            return 0
        candidates = sum(1 << slot for slot in self._slots(question))
        return self._fleet.most_cached(place.block_hashes, candidates, question.now) * question.live.block_size

    def _slots(self, question: Question) -> Iterator[int]:
        for instance_id in question.candidates:
            for dp_rank, slot in self._fleet.ranks.slots_of(instance_id).items():
                if question.dp_rank in (None, dp_rank):
                    yield slot


def _pin(question: Question) -> Hashable:
    """What narrows the choice down, by the request's own wish or by its session; None if nothing does. Whoever waits
    holds up those who want the same, and nobody else."""
    place, hints = question.place, question.place.hints or NO_HINTS
    is_bound = question.favoured is not None and len(question.candidates) == 1
    instance_id = question.candidates[0] if is_bound else place.instance_id
    allowed = None if hints.allowed_worker_ids is None else frozenset(hints.allowed_worker_ids)
    taints = None if hints.constraints is None else frozenset(hints.constraints.required_taints) or None
    wishes = instance_id, question.dp_rank, allowed, taints
    return None if wishes == (None,) * len(wishes) else wishes
