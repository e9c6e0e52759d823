from __future__ import annotations

import math
import random
from collections import Counter
from itertools import accumulate
from operator import and_

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.router.cost import Candidates, Ints, costs, pick, spread
from dynamo.router.weights import Weights
from dynamo.shared.card import CardError
from dynamo.shared.protocol import RouterConfigOverride

IDLE_ROW = {"device": 0, "host": 0, "disk": 0, "external": 0, "prefill": 0, "decode": 0.0, "new": 0, "requests": 0}


def candidates(
    *rows: dict[str, float], preferred: list[float] | None = None, shared: list[int] | None = None
) -> Candidates:
    """One idle rank per row, but for what the row says."""

    def column(name: str) -> Ints:
        return np.array([(IDLE_ROW | row)[name] for row in rows], np.int64)

    return Candidates(
        slots=np.arange(len(rows)),
        instance_ids=np.arange(100, 100 + len(rows), dtype=np.uint64),
        dp_ranks=np.zeros(len(rows), np.int64),
        device_blocks=column("device"),
        host_blocks=column("host"),
        disk_blocks=column("disk"),
        external_blocks=column("external"),
        prefill_tokens=column("prefill"),
        decode_blocks=np.array([(IDLE_ROW | row)["decode"] for row in rows], np.float64),
        new_blocks=column("new"),
        num_requests=column("requests"),
        preferred_weight=None if preferred is None else np.array(preferred),
        shared_blocks=None if shared is None else np.array(shared),
    )


def cost_of(row: dict[str, float], num_tokens: int = 64, **weights: float | bool) -> float:
    return float(costs(candidates(row), num_tokens, 16, Weights(**weights))[0])  # type: ignore[arg-type]


DECODE_ONLY = {"track_prefill_tokens": False}
COLD_AND_BUSY = {"decode": 6, "new": 2, "device": 2}


# A prompt of 64 tokens has 4 blocks of 16.
@pytest.mark.parametrize(
    ("expected", "num_tokens", "row", "weights"),
    [
        pytest.param(4.0, 64, {"device": 4, "new": 4}, {}, id="fully cached, a value recorded from Dynamo"),
        pytest.param(4.5, 40, {"new": 2}, {}, id="nothing cached, a value recorded from Dynamo"),
        pytest.param(2.0, 64, {"device": 2}, {}, id="a credit of 1 per device block"),
        pytest.param(3.0, 64, {"device": 2}, {"overlap_score_credit": 0.5}, id="half the credit"),
        pytest.param(4.0, 64, {"device": 2}, {"overlap_score_credit": 0.0}, id="no credit"),
        pytest.param(
            4.0, 64, {"host": 1, "disk": 2}, {"overlap_score_credit": 0.0}, id="no credit for lower tiers either"
        ),
        pytest.param(0.0, 64, {"device": 4}, {"overlap_score_credit": 3.0}, id="prefill is never negative"),
        pytest.param(2.5, 64, {"host": 2}, {}, id="host blocks"),
        pytest.param(3.5, 64, {"disk": 2}, {}, id="disk blocks"),
        pytest.param(3.5, 64, {"external": 2}, {}, id="external blocks count as on disk"),
        pytest.param(1.75, 64, {"device": 1, "host": 1, "disk": 1, "external": 1}, {}, id="all tiers"),
        pytest.param(14.0, 64, {"prefill": 160}, {}, id="prompts before it"),
        pytest.param(28.0, 64, {"prefill": 160}, {"prefill_load_scale": 2.0}, id="scaled prefill"),
        pytest.param(14.5, 64, {"decode": 7.5, "new": 3}, {}, id="blocks in use"),
        pytest.param(4.0, 64, {"decode": 7.5, "new": 3}, {"track_active_blocks": False}, id="blocks not tracked"),
        pytest.param(15.5, 64, {"decode": 7.5, "new": 1}, {"assume_kv_reuse": False}, id="no sharing assumed"),
        pytest.param(7.0, 64, {"requests": 6}, {"decode_active_request_weight": 0.5}, id="active requests"),
        pytest.param(6.0, 64, COLD_AND_BUSY, DECODE_ONLY, id="decoding only, less the cached blocks"),
        pytest.param(8.0, 64, COLD_AND_BUSY, DECODE_ONLY | {"overlap_score_credit": 0.0}, id="decoding only, by load"),
        pytest.param(
            8.0, 64, COLD_AND_BUSY | {"prefill": 999}, DECODE_ONLY | {"overlap_score_credit": 0.0}, id="no prefill"
        ),
        pytest.param(0.0, 64, {"decode": 1, "device": 4}, DECODE_ONLY, id="decoding is never negative"),
        pytest.param(
            3.0,
            64,
            {"decode": 1, "device": 4, "requests": 3},
            DECODE_ONLY | {"decode_active_request_weight": 1.0},
            id="requests count without decoding",
        ),
    ],
)
def test_terms(expected: float, num_tokens: int, row: dict[str, float], weights: dict[str, float | bool]) -> None:
    assert cost_of(row, num_tokens, **weights) == pytest.approx(expected)


def test_credit_decays_with_prefill_beyond_the_least_busy_rank() -> None:
    rows = candidates(
        {"device": 4, "prefill": 32}, {"device": 4, "prefill": 32 + 64}, {"device": 4, "prefill": 32 + 192}
    )
    found = costs(rows, 64, 16, Weights(overlap_score_credit_decay=0.5))
    assert found == pytest.approx([2 + 4 - 4, 6 + 4 - 4 / 1.5, 14 + 4 - 4 / 2.5])
    assert costs(rows, 64, 16, Weights(overlap_score_credit_decay=0.5, track_prefill_tokens=False)) == pytest.approx(
        [0] * 3
    )


def test_a_prompt_of_no_tokens_has_a_cost() -> None:
    rows = candidates({"prefill": 32}, {"prefill": 64})
    assert costs(rows, 0, 16, Weights(overlap_score_credit_decay=0.5)) == pytest.approx([2, 4])


def test_a_cache_of_the_whole_fleet_counts_behind_the_device() -> None:
    rows = candidates({"device": 1}, {"device": 3}, shared=[3, 1])
    assert costs(rows, 64, 16, Weights()) == pytest.approx([3, 1])
    assert costs(rows, 64, 16, Weights(shared_cache_multiplier=0.5)) == pytest.approx([1.5, 0.5])


def test_preferred_taints_scale_the_whole_cost() -> None:
    rows = candidates({"new": 4}, {"new": 4}, {"new": 4}, preferred=[0.5, 0.0, -2.0])
    found = costs(rows, 64, 16, Weights())
    assert found == pytest.approx([8 * math.exp(-math.tanh(0.5)), 8, 8 * math.exp(math.tanh(2.0))])


# --------------------------------------------------------------------------- the choice


def shares(found: list[float], temperature: float, num_draws: int = 20_000) -> list[float]:
    rng = random.Random(5)
    drawn = Counter(pick(np.array(found), temperature, rng) for _ in range(num_draws))
    return [drawn[row] / num_draws for row in range(len(found))]


def test_the_lowest_cost_wins() -> None:
    assert pick(np.array([3.0, 1.0, 2.0]), 0.0, random.Random(0)) == 1


def test_ties_are_broken_evenly() -> None:
    assert shares([1.0, 2.0, 1.0, 1.0], 0.0) == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.02)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_temperature_draws_by_softmax_of_scaled_costs(temperature: float) -> None:
    weights = [math.exp(-scaled / temperature) for scaled in (0.0, 0.25, 1.0)]
    expected = [weight / sum(weights) for weight in weights]
    assert shares([10.0, 12.0, 18.0], temperature) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("temperature", [1e-300, 0.5])
def test_equal_costs_are_drawn_evenly(temperature: float) -> None:
    assert shares([7.0, 7.0], temperature) == pytest.approx([0.5, 0.5], abs=0.02)


def test_a_tiny_temperature_draws_the_lowest() -> None:
    assert shares([2.0, 1.0, 3.0], 1e-300, 100) == [0, 1, 0]


@pytest.mark.parametrize("temperature", [5e-324, 1.0, 1e308])
def test_costs_may_be_infinite(temperature: float) -> None:
    assert shares([math.inf, 1.0, math.inf], 5e-324, 100) == [0, 1, 0]
    assert shares([math.inf, math.inf], temperature) == pytest.approx([0.5, 0.5], abs=0.02)
    assert pick(np.array([math.inf, 1.0]), 0.0, random.Random(0)) == 1


def test_weights_that_make_costs_infinite_leave_a_choice() -> None:
    rows = candidates({"prefill": 1600}, {"prefill": 3200})
    with np.errstate(over="ignore"):
        found = costs(rows, 64, 16, Weights(prefill_load_scale=1e308))
    assert found.tolist() == [math.inf, math.inf]
    assert shares(found.tolist(), 1.0) == pytest.approx([0.5, 0.5], abs=0.02)


# --------------------------------------------------------------------------- masks to rows


ALL = 2**100 - 1
masks = st.integers(0, ALL) | st.sets(st.integers(0, 99)).map(lambda slots: sum(1 << slot for slot in slots))


@given(
    st.lists(st.integers(0, 99), unique=True, max_size=30) | st.permutations(range(100)),
    st.lists(masks | st.just(ALL), max_size=6),
    st.lists(st.integers(1, 50), min_size=6, max_size=6),
)
def test_spread_gives_every_slot_its_last_number(slots: list[int], wider: list[int], steps: list[int]) -> None:
    mask = sum(1 << slot for slot in slots)
    nested = list(zip(accumulate(wider, and_, initial=mask), accumulate(steps), strict=False))[1:]
    expected = [max((number for ranks, number in nested if ranks >> slot & 1), default=0) for slot in slots]
    assert spread(nested, np.array(slots, np.int64), mask).tolist() == expected


# --------------------------------------------------------------------------- weights


def test_a_request_overrides_what_it_names() -> None:
    weights = Weights(overlap_score_credit=2.0, track_active_blocks=False)
    assert weights.overridden(RouterConfigOverride()) is weights
    decode_leg = RouterConfigOverride(overlap_score_credit=0.0, assume_kv_reuse=False, track_prefill_tokens=False)
    assert weights.overridden(decode_leg) == Weights(
        overlap_score_credit=0.0, assume_kv_reuse=False, track_prefill_tokens=False, track_active_blocks=False
    )


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_weights_are_finite_and_not_negative(value: float) -> None:
    with pytest.raises(ValueError, match="host_cache_hit_weight must be a finite number of at least 0, not"):
        Weights().overridden(RouterConfigOverride(host_cache_hit_weight=value))


def test_blocks_further_down_are_worth_no_more_than_computed_ones() -> None:
    with pytest.raises(ValueError, match="disk_cache_hit_weight must be between 0 and 1"):
        Weights(disk_cache_hit_weight=1.5)


@pytest.mark.parametrize("router_config", [b"", b"null", b'{"router_mode":"random"}', b'{"kv_router_config":null}'])
def test_cards_need_not_ask_for_weights(router_config: bytes) -> None:
    assert Weights.from_card(router_config) is None


def test_a_card_asks_for_weights_by_the_names_of_dynamo() -> None:
    asked = {"overlap_score_credit": 0.5, "router_assume_kv_reuse": False, "router_ttl_secs": 120.0}
    raw = msgspec.json.encode({"router_mode": "k_v", "kv_router_config": asked, "enforce_disagg": False})
    assert Weights.from_card(msgspec.Raw(raw)) == Weights(overlap_score_credit=0.5, assume_kv_reuse=False)


@pytest.mark.parametrize(
    "router_config",
    [
        b"[",
        b"[]",
        b'{"kv_router_config":{"prefill_load_scale":"x"}}',
        b'{"kv_router_config":{"router_temperature":-1}}',
    ],
)
def test_a_card_that_asks_for_nonsense_says_so(router_config: bytes) -> None:
    with pytest.raises(CardError, match="router_config cannot be read: "):
        Weights.from_card(router_config)
