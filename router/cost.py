"""What it costs to place a prompt on each of some ranks, in blocks; the lowest cost wins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dynamo.router.weights import Weights

Ints = NDArray[np.int64]
Ids = NDArray[np.uint64]
Floats = NDArray[np.floating[Any]]
MAX_COST = 1e300  # in a draw; weights of a request may well make it infinite
FEW_RANKS, FEW_PAIRS = 8, 4  # are cheaper one by one than all at once


class Candidates(Struct, frozen=True, gc=False):
    """Ranks that may be chosen, one row each.

    The prompt's leading blocks that a rank holds are `device_blocks`, then `host_blocks`, `disk_blocks` and
    `external_blocks`; `shared_blocks` are those behind its device's that a cache of the whole fleet holds.
    `prefill_tokens`, `decode_blocks` and `num_requests` are the load without the prompt, `new_blocks` those full blocks
    of it that no running request of the rank has. `preferred_weight` sums the weights of the preferred taints that a
    rank has. Without `has_lower_tiers`, all blocks below the device are 0.
    """

    slots: Ints
    instance_ids: Ids
    dp_ranks: Ints
    device_blocks: Ints
    host_blocks: Ints
    disk_blocks: Ints
    external_blocks: Ints
    prefill_tokens: Ints
    decode_blocks: Floats
    new_blocks: Ints
    num_requests: Ints
    preferred_weight: Floats | None = None
    shared_blocks: Ints | None = None
    has_lower_tiers: bool = True

    def __len__(self) -> int:
        return len(self.slots)


def costs(candidates: Candidates, num_tokens: int, block_size: int, weights: Weights) -> Floats:
    """The cost of a prompt of `num_tokens` for every candidate."""
    credit_blocks = _credit_blocks(candidates, num_tokens, block_size, weights)
    decode_blocks = _decode_blocks(candidates, num_tokens, block_size, weights)
    if weights.track_prefill_tokens:
        raw_prefill_blocks = _raw_prefill_blocks(candidates, num_tokens, block_size)
        prefill_blocks = weights.prefill_load_scale * np.maximum(raw_prefill_blocks - credit_blocks, 0.0)
        cost: Floats = prefill_blocks + decode_blocks
    else:  # where only decoding is weighed, cached blocks are taken off that
        cost = np.maximum(decode_blocks - credit_blocks, 0.0)
    if weights.decode_active_request_weight:
        cost += weights.decode_active_request_weight * candidates.num_requests
    if candidates.preferred_weight is not None:
        cost = cost * np.exp(-np.tanh(candidates.preferred_weight))
    return cost


def pick(costs: Floats, temperature: float, rng: random.Random) -> int:
    """The row of the lowest cost, of several the luckiest. With a temperature, rows are drawn by the softmax of minus
    their costs, these first scaled to 0 for the lowest and 1 for the highest. There must be costs, none of them NaN."""
    if temperature > 0:
        return _draw(costs, temperature, rng)
    (rows,) = (costs == costs[costs.argmin()]).nonzero()
    return int(rows[0] if len(rows) == 1 else rows[rng.randrange(len(rows))])


def spread(nested: Sequence[tuple[int, int]], slots: Ints, mask: int) -> Ints:
    """The number of each of `slots`, which `mask` has as bits: that of the last pair whose mask has it, 0 if none does.
    The pairs are (mask, number) with growing numbers and each mask within the one before, the first within `mask`."""
    if not nested:
        return np.zeros(len(slots), np.int64)
    base = 0
    if nested[0][0] == mask:
        (_, base), *nested = nested
    num_slots = mask.bit_length()
    by_slot = _spread_many(nested, base, num_slots) if len(nested) > FEW_PAIRS else _spread(nested, base, num_slots)
    return by_slot.take(slots)


def _spread(nested: Sequence[tuple[int, int]], base: int, num_slots: int) -> Ints:
    """By slot, `base` for those in none."""
    by_slot = np.full(num_slots, base)
    for ranks, number in nested:
        if ranks.bit_count() > FEW_RANKS:
            by_slot[_bits([ranks], num_slots)[0].view(np.bool)] = number
            continue
        while ranks:
            slot = ranks.bit_length() - 1
            by_slot[slot] = number
            ranks ^= 1 << slot
    return by_slot


def _spread_many(nested: Sequence[tuple[int, int]], base: int, num_slots: int) -> Ints:
    """The same, for less per pair and more in all."""
    numbers = np.array([base, *[number for _ranks, number in nested]])
    num_masks = np.add.reduce(_bits([ranks for ranks, _number in nested], num_slots), axis=0, dtype=np.intp)
    by_slot: Ints = numbers.take(num_masks)
    return by_slot


def _bits(masks: Sequence[int], num_slots: int) -> NDArray[np.uint8]:
    """A row for each mask, a column for each slot."""
    num_bytes = -(-num_slots // 8)
    packed = np.frombuffer(b"".join([mask.to_bytes(num_bytes, "little") for mask in masks]), np.uint8)
    return np.unpackbits(packed.reshape(len(masks), num_bytes), axis=1, count=num_slots, bitorder="little")


def _credit_blocks(candidates: Candidates, num_tokens: int, block_size: int, weights: Weights) -> Floats | float:
    """What the blocks that a rank need not compute take off its cost. As in Dynamo 1.6.1, no credit for the device's
    means none for others either: the choice is by load alone."""
    if weights.overlap_score_credit == 0:
        return 0.0
    device_credit = weights.overlap_score_credit * _credit_decay(candidates, num_tokens, block_size, weights)
    credit: Floats = device_credit * candidates.device_blocks
    if candidates.has_lower_tiers:
        below = candidates.disk_blocks + candidates.external_blocks
        credit += weights.host_cache_hit_weight * candidates.host_blocks + weights.disk_cache_hit_weight * below
    if candidates.shared_blocks is not None:
        credit += weights.shared_cache_multiplier * candidates.shared_blocks
    return credit


def _credit_decay(candidates: Candidates, num_tokens: int, block_size: int, weights: Weights) -> Floats | float:
    """Below 1 on ranks with more to prefill than the least busy one, measured in prompts like this."""
    if weights.overlap_score_credit_decay == 0 or not weights.track_prefill_tokens:
        return 1.0
    request_blocks = max(1, -(-num_tokens // block_size))
    excess_tokens = candidates.prefill_tokens - candidates.prefill_tokens.min()
    excess_requests: Floats = excess_tokens / (block_size * request_blocks)
    return 1.0 / (1.0 + weights.overlap_score_credit_decay * excess_requests)


def _raw_prefill_blocks(candidates: Candidates, num_tokens: int, block_size: int) -> Floats:
    """What the rank has to prefill with this prompt, as if nothing of it were cached."""
    raw_tokens: Ints = candidates.prefill_tokens + num_tokens
    return raw_tokens / block_size


def _decode_blocks(candidates: Candidates, num_tokens: int, block_size: int, weights: Weights) -> Floats | float:
    """The rank's blocks with those that this prompt adds."""
    if not weights.track_active_blocks:
        return 0.0
    new_blocks = candidates.new_blocks if weights.assume_kv_reuse else num_tokens // block_size
    return candidates.decode_blocks + new_blocks


def _draw(costs: Floats, temperature: float, rng: random.Random) -> int:
    costs = np.clip(costs, -MAX_COST, MAX_COST)
    lowest = costs.min()
    extent = costs.max() - lowest
    if extent == 0:
        return rng.randrange(len(costs))
    with np.errstate(over="ignore"):  # far too high is never drawn
        cumulated = np.cumsum(np.exp((lowest - costs) / extent / temperature))
    row = int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
    return min(row, len(costs) - 1)
