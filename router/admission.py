"""Which placements have to wait, and whose turn it is when a worker has room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dynamo.router.fleet import Fleet
from dynamo.router.placing import Placing
from dynamo.router.queue import PlacementQueue, PolicyClass, Waiting
from dynamo.router.selectors import Question
from dynamo.shared.messages import Place, Refused


class Admission:
    """A placement waits while every worker that may be chosen has more to prefill than its class puts up with, and
    while others of its class wait for the same workers."""

    def __init__(self, classes: Sequence[PolicyClass], queue: PlacementQueue, placing: Placing, fleet: Fleet) -> None:
        self._default = classes[0]
        self._classes = {each.name: each for each in classes}
        self._queue = queue
        self._placing = placing
        self._fleet = fleet

    def class_of(self, place: Place) -> PolicyClass:
        """Unknown names fall to the first class."""
        name = place.hints.policy_class if place.hints is not None else ""
        return self._classes.get(name, self._default)

    def must_wait(self, question: Question) -> bool:
        policy_class = self.class_of(question.place)
        if not policy_class.is_queueing:
            return False
        is_turn = self._queue.admits(policy_class.name, question.live.key, _pin(question.place))
        return not is_turn or self._is_busy(question, policy_class)

    def enqueue(self, peer: bytes, question: Question) -> None:
        """Raises QueueFull."""
        place = question.place
        waiting = Waiting(
            key=(peer, place.request_id),
            place=place,
            worker_set_key=question.live.key,
            policy_class=self.class_of(place).name,
            arrived_at=question.now,
            cached_tokens=self._fleet.most_cached(place.block_hashes, question.now) * question.live.block_size,
            pinned_to=_pin(place),
        )
        self._queue.push(waiting, question.now, num_workers=len(question.candidates))

    def startable(self, now: float) -> Iterator[tuple[Waiting, Question | Refused]]:
        """Those that need not wait any longer, in their order; the caller places one before it asks for the next."""
        for waiting in self._queue.startable(lambda each: self._may_start(each, now)):
            yield waiting, self._placing.question(waiting.place, now)

    def refresh(self, now: float) -> None:
        """Look anew at what is cached of those that have waited for long."""

        def cached_tokens(waiting: Waiting) -> int:
            question = self._placing.question(waiting.place, now)
            if isinstance(question, Refused):
                return waiting.cached_tokens
            return self._fleet.most_cached(waiting.place.block_hashes, now) * question.live.block_size

        self._queue.refresh(now, cached_tokens)

    def _may_start(self, waiting: Waiting, now: float) -> bool:
        """A placement that nobody can serve any more may leave too, with a refusal; overload passes."""
        question = self._placing.question(waiting.place, now)
        if isinstance(question, Refused):
            return question.code != "overloaded"
        return not self._is_busy(question, self._classes[waiting.policy_class])

    def _is_busy(self, question: Question, policy_class: PolicyClass) -> bool:
        fleet = self._fleet
        return all(
            fleet.sequences.prefill_tokens[slot]
            > policy_class.busy_above(fleet.ranks.facts(slot).max_num_batched_tokens)
            for instance_id in question.candidates
            for slot in fleet.ranks.slots_of(instance_id).values()
        )


def _pin(place: Place) -> tuple[int, int | None] | None:
    return None if place.instance_id is None else (place.instance_id, place.dp_rank)
