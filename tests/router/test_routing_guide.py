"""docs/routing.md: its example is what the cost function says, and its table names every option."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dynamo.router.cost import Candidates, costs
from dynamo.router.weights import Weights
from dynamo.shared.config import flags_of
from dynamo.shared.kv_router_options import INERT, KvRouterOptions
from dynamo.shared.placement_options import PlacementOptions

GUIDE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()
OPTIONS = KvRouterOptions.options() | PlacementOptions.options()


def test_the_example() -> None:
    nothing = np.zeros(2, np.int64)
    candidates = Candidates(
        slots=np.arange(2),
        instance_ids=np.array([1, 2], np.uint64),
        dp_ranks=nothing,
        device_blocks=np.array([3, 0]),
        host_blocks=nothing,
        disk_blocks=nothing,
        external_blocks=nothing,
        prefill_tokens=nothing,
        decode_blocks=np.array([1.0, 0.0]),
        new_blocks=np.array([3, 3]),
        num_requests=np.array([1, 0]),
    )
    found = costs(candidates, num_tokens=57, block_size=16, weights=Weights())
    told = [float(cost) for cost in re.findall(r'"cost": ([\d.]+)', GUIDE)]
    assert found.tolist() == told == [4.5625, 6.5625]


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - set(INERT)))
def test_every_option_is_named(name: str) -> None:
    _field, option, _kind = OPTIONS[name]
    assert f"`{flags_of(name, option)[0]}`" in GUIDE


def test_no_option_is_named_that_is_not_there() -> None:
    known = {flag for name, (_field, option, _kind) in OPTIONS.items() for flag in flags_of(name, option)}
    table = GUIDE.partition("## Options")[2].partition("## Several replicas")[0]
    assert set(re.findall(r"`(--[a-z-]+)`", table)) <= known
