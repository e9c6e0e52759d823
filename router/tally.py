"""What placements add up to between two looks at the metrics: plain additions, for every placement pays for them."""

from __future__ import annotations

from dynamo.router.selectors import Choice
from dynamo.router.table import LiveSet
from dynamo.shared.metrics import Distribution

HIT_RATE_STEPS = 20
WAITS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
HIT_RATES = tuple(step * 0.05 for step in range(HIT_RATE_STEPS + 1))


class Tally:
    """Of the workers of one set. By the blocks of prompts: how many they had, how many of them the chosen rank was
    expected to have on its device, and how many the best of those that could be chosen.

    `queue_limits` counts whom a full queue turned away, by policy class and the limit that it had reached.
    """

    __slots__ = (
        "_hit_rate_sum",
        "_hits",
        "block_size",
        "model",
        "num_best_overlap_blocks",
        "num_overlap_blocks",
        "num_prompt_blocks",
        "queue_limits",
        "reasons",
        "scope",
        "worker_type",
    )

    def __init__(self, live: LiveSet) -> None:
        self.scope = live.scope
        self.model = live.model
        self.worker_type = live.worker_type
        self.block_size = live.block_size
        self.num_prompt_blocks = 0
        self.num_overlap_blocks = 0
        self.num_best_overlap_blocks = 0
        self.reasons: dict[str, int] = {}
        self.queue_limits: dict[tuple[str, str], int] = {}
        self._hits = [0] * (HIT_RATE_STEPS + 1)
        self._hit_rate_sum = 0.0

    def note_placed(self, choice: Choice, reason: str) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if num_blocks := choice.prompt_blocks:
            num_overlap = choice.overlap_blocks
            self.num_prompt_blocks += num_blocks
            self.num_overlap_blocks += num_overlap
            self.num_best_overlap_blocks += choice.best_overlap_blocks
            self._hits[-(-HIT_RATE_STEPS * num_overlap // num_blocks)] += 1
            self._hit_rate_sum += num_overlap / num_blocks

    def note_turned_away(self, policy_class: str, limit: str) -> None:
        key = (policy_class, limit)
        self.queue_limits[key] = self.queue_limits.get(key, 0) + 1

    @property
    def num_placed(self) -> int:
        return sum(self.reasons.values())

    @property
    def hit_rates(self) -> Distribution:
        """The share that the chosen rank had of each prompt."""
        rates = Distribution(HIT_RATES)
        rates.restore([*self._hits, 0, self._hit_rate_sum])
        return rates


class Tallies:
    """By worker set, as many as the table has had since the last call of `take`; and how long was waited in queues."""

    def __init__(self) -> None:
        self._by_set: dict[str, Tally] = {}
        self._waits: dict[str, Distribution] = {}

    def of(self, live: LiveSet) -> Tally:
        tally = self._by_set.get(live.key)
        if tally is None:
            tally = self._by_set[live.key] = Tally(live)
        return tally

    def take(self) -> list[Tally]:
        tallies, self._by_set = self._by_set, {}
        return list(tallies.values())

    def note_waited(self, policy_class: str, seconds: float) -> None:
        self._waits.setdefault(policy_class, Distribution(WAITS_S)).observe(seconds)

    def take_waits(self) -> dict[str, Distribution]:
        """Seconds that placements waited for their worker, by policy class, since the last call."""
        waits, self._waits = self._waits, {}
        return waits
