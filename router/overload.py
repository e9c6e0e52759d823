"""Which workers have so much to do that nothing more is sent to them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from operator import gt

from msgspec import Struct
from msgspec.structs import replace

from dynamo.router.active import ActiveSequences
from dynamo.shared.kv_events import LoadReport
from dynamo.shared.messages import Thresholds

_TESTS = tuple(name for name in Thresholds.__struct_fields__ if name != "model")


class _Rank(Struct, gc=False):
    """What a rank can hold, and what it last said of itself; 0 if it said nothing."""

    total_kv_blocks: int = 0
    max_num_batched_tokens: int = 0
    active_prefill_tokens: int = 0
    active_decode_blocks: int = 0
    kv_used_blocks: int = 0


_UNKNOWN = _Rank()


class _Limits:
    """What the router's own counts may not exceed under some thresholds, by slot: less than nothing for a rank whose
    reports exceed them already."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self.tokens = array("d")
        self.blocks = array("d")

    def __len__(self) -> int:
        return len(self.tokens)

    def grow(self, num_slots: int, ranks: dict[int, _Rank]) -> None:
        for slot in range(len(self), num_slots):
            rank = ranks.get(slot, _UNKNOWN)
            self.tokens.append(_max_tokens(self._thresholds, rank))
            self.blocks.append(_max_blocks(self._thresholds, rank))

    def update(self, slot: int, rank: _Rank) -> None:
        if slot < len(self):
            self.tokens[slot] = _max_tokens(self._thresholds, rank)
            self.blocks[slot] = _max_blocks(self._thresholds, rank)


class OverloadMonitor:
    """A rank is overloaded as long as anything known of it is above a threshold: the router's own counts, or the last
    value of any signal that it has reported. A worker is overloaded when all its ranks are.

    Models without thresholds of their own go by `defaults`. `is_watching` is False while no model has any.
    """

    def __init__(self, sequences: ActiveSequences, defaults: Thresholds) -> None:
        _check(defaults)
        self._sequences = sequences
        self._defaults = defaults
        self._own: dict[str, Thresholds] = {}
        self._ranks: dict[int, _Rank] = {}
        self._limits: dict[tuple[float | None, ...], _Limits] = {}  # models with equal thresholds share them
        self.is_watching = _tests_anything(defaults)

    # ---- ranks

    def set_capacity(self, slot: int, total_kv_blocks: int | None, max_num_batched_tokens: int | None) -> None:
        """A fraction of what is not known is never exceeded."""
        rank = self._ranks.setdefault(slot, _Rank())
        rank.total_kv_blocks = total_kv_blocks or 0
        rank.max_num_batched_tokens = max_num_batched_tokens or 0
        self._update(slot, rank)

    def report(self, slot: int, load: LoadReport) -> None:
        """A signal that a report leaves out keeps its last value."""
        rank = self._ranks.setdefault(slot, _Rank())
        if load.active_prefill_tokens is not None:
            rank.active_prefill_tokens = load.active_prefill_tokens
        if load.active_decode_blocks is not None:
            rank.active_decode_blocks = load.active_decode_blocks
        if load.kv_used_blocks is not None:
            rank.kv_used_blocks = load.kv_used_blocks
        self._update(slot, rank)

    def forget(self, slot: int) -> None:
        self._ranks.pop(slot, None)
        self._update(slot, _UNKNOWN)

    # ---- thresholds

    def thresholds(self, model: str) -> Thresholds:
        return self._own.get(model) or replace(self._defaults, model=model)

    def set_thresholds(self, wanted: Thresholds, *, replaces: bool) -> None:
        """None switches a test off if `replaces`, and leaves it as it is otherwise. Raises ValueError."""
        _check(wanted)
        if not replaces:
            given = {name: value for name in _TESTS if (value := getattr(wanted, name)) is not None}
            wanted = replace(self.thresholds(wanted.model), **given)
        self._own[wanted.model] = wanted
        self._limits.clear()
        self.is_watching = any(map(_tests_anything, (self._defaults, *self._own.values())))

    # ---- the question

    def is_overloaded(self, model: str, slots: Iterable[int]) -> bool:
        """Whether a worker of this model with these ranks is; one without ranks is not."""
        if not self.is_watching:
            return False
        limits, tokens, blocks = self._limits_of(model), self._sequences.prefill_tokens, self._sequences.blocks
        has_ranks = False
        for slot in slots:
            if tokens[slot] <= limits.tokens[slot] and blocks[slot] <= limits.blocks[slot]:
                return False
            has_ranks = True
        return has_ranks

    def overloaded_slots(self, model: str) -> set[int]:
        """All ranks that are overloaded by this model's thresholds, whoever serves it: one answer for a whole fleet."""
        if not self.is_watching:
            return set()
        limits, sequences = self._limits_of(model), self._sequences
        found: set[int] = set()
        for counts, most in ((sequences.prefill_tokens, limits.tokens), (sequences.blocks, limits.blocks)):
            if any(map(gt, counts, most)):
                found.update(slot for slot, is_over in enumerate(map(gt, counts, most)) if is_over)
        return found

    def _limits_of(self, model: str) -> _Limits:
        thresholds = self._own.get(model, self._defaults)
        key = _values(thresholds)
        limits = self._limits.get(key)
        if limits is None:
            limits = self._limits[key] = _Limits(thresholds)
        num_slots = len(self._sequences.num_requests)
        if len(limits) < num_slots:
            limits.grow(num_slots, self._ranks)
        return limits

    def _update(self, slot: int, rank: _Rank) -> None:
        for limits in self._limits.values():
            limits.update(slot, rank)


def _max_tokens(thresholds: Thresholds, rank: _Rank) -> float:
    most = math.inf
    if thresholds.active_prefill_tokens_threshold is not None:
        most = thresholds.active_prefill_tokens_threshold
    if thresholds.active_prefill_tokens_threshold_frac is not None and rank.max_num_batched_tokens:
        most = min(most, thresholds.active_prefill_tokens_threshold_frac * rank.max_num_batched_tokens)
    return -1.0 if rank.active_prefill_tokens > most else most


def _max_blocks(thresholds: Thresholds, rank: _Rank) -> float:
    if thresholds.active_decode_blocks_threshold is None or not rank.total_kv_blocks:
        return math.inf
    most = thresholds.active_decode_blocks_threshold * rank.total_kv_blocks
    return -1.0 if max(rank.active_decode_blocks, rank.kv_used_blocks) > most else most


def _values(thresholds: Thresholds) -> tuple[float | None, ...]:
    return (
        thresholds.active_decode_blocks_threshold,
        thresholds.active_prefill_tokens_threshold,
        thresholds.active_prefill_tokens_threshold_frac,
    )


def _tests_anything(thresholds: Thresholds) -> bool:
    return any(value is not None for value in _values(thresholds))


def _check(thresholds: Thresholds) -> None:
    block_share = thresholds.active_decode_blocks_threshold
    if block_share is not None and not 0 <= block_share <= 1:
        raise ValueError(f"active_decode_blocks_threshold must be a fraction between 0 and 1, not {block_share}")
    max_tokens = thresholds.active_prefill_tokens_threshold
    if max_tokens is not None and max_tokens < 0:
        raise ValueError(f"active_prefill_tokens_threshold must be a number of tokens, at least 0, not {max_tokens}")
    token_share = thresholds.active_prefill_tokens_threshold_frac
    if token_share is not None and not 0 <= token_share < math.inf:
        raise ValueError(
            f"active_prefill_tokens_threshold_frac must be a finite number of at least 0, not {token_share}"
        )
