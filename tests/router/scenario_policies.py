"""Routing policies as an operator might write them, for scenarios."""

from __future__ import annotations

from dynamo.router.cost import Candidates, Floats, Ints
from dynamo.router.policies import PolicyRequest


def busiest(_request: PolicyRequest, candidates: Candidates) -> Floats:
    return -candidates.decode_blocks


def least_cached(_request: PolicyRequest, candidates: Candidates) -> Ints:
    return candidates.device_blocks


def broken(_request: PolicyRequest, _candidates: Candidates) -> Floats:
    raise RuntimeError("a bug in the operator's code")
