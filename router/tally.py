"""What placements add up to between two looks at the metrics: plain additions, for every placement pays for them."""

from __future__ import annotations

from msgspec import Struct

from dynamo.router.selectors import Choice
from dynamo.router.table import LiveSet
from dynamo.shared.event_plane import EndpointScope
from dynamo.shared.metrics import Distribution

HIT_RATES = tuple(i * 0.05 for i in range(21))


class Tally(Struct):
    """Of the workers of one set, by the blocks of prompts: how many they had, how many of them the chosen rank had on
    its device, and how many the best of those that might have been chosen."""

    scope: EndpointScope
    model: str
    worker_type: str
    block_size: int
    hit_rates: Distribution  # of placements: the share that the chosen rank had
    num_prompt_blocks: int = 0
    num_overlap_blocks: int = 0
    num_best_overlap_blocks: int = 0
    reasons: dict[str, int] = {}
    queue_limits: dict[tuple[str, str], int] = {}  # (policy class, limit that it had reached) of those turned away

    def note_placed(self, choice: Choice, reason: str) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if num_blocks := choice.prompt_blocks:
            self.num_prompt_blocks += num_blocks
            self.num_overlap_blocks += choice.overlap_blocks
            self.num_best_overlap_blocks += choice.best_overlap_blocks
            self.hit_rates.observe(choice.overlap_blocks / num_blocks)

    def note_turned_away(self, policy_class: str, limit: str) -> None:
        key = (policy_class, limit)
        self.queue_limits[key] = self.queue_limits.get(key, 0) + 1

    @property
    def num_placed(self) -> int:
        return sum(self.reasons.values())


class Tallies:
    """By worker set, as many as the table has had since the last call of `take`."""

    def __init__(self) -> None:
        self._by_set: dict[str, Tally] = {}

    def of(self, live: LiveSet) -> Tally:
        tally = self._by_set.get(live.key)
        if tally is None:
            tally = self._by_set[live.key] = Tally(
                live.scope, live.model, live.worker_type, live.block_size, Distribution(HIT_RATES)
            )
        return tally

    def take(self) -> list[Tally]:
        tallies, self._by_set = self._by_set, {}
        return list(tallies.values())
