"""The route receipt: why a request went to the worker it went to, and what came of the router's expectation."""

from __future__ import annotations

from msgspec import Struct

from dynamo.frontend.metrics import RequestRecord
from dynamo.shared.messages import Receipt

PLACED_LOCALLY = Receipt("local")  # by this acceptor's own counts, while the router was away


class MatchedBlocks(Struct, frozen=True):
    """Blocks of the prompt that the worker was expected to hold, by where; `external` is beyond its own disk."""

    device: int = 0
    host: int = 0
    disk: int = 0
    external: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.disk + self.external


class RunnerUp(Struct, frozen=True):
    worker_id: int
    worker: str
    dp_rank: int | None
    cost: float | None


class RouteReceipt(Struct, frozen=True):
    """Of the last placement, where a request had several. `worker` is the hexadecimal form of `worker_id`.

    `reason`: cost, pinned, affinity, policy, mode, or local when the router was away. Costs are in blocks, lower is
    better. `cached_tokens` is what the worker says it found, None before its end or if it does not say.
    """

    worker_id: int
    worker: str
    dp_rank: int | None
    reason: str
    num_candidates: int
    request_blocks: int
    matched_blocks: MatchedBlocks
    predicted_cached_tokens: int
    cached_tokens: int | None
    cost: float | None
    runner_up: RunnerUp | None
    queue_wait_ms: float
    policy: str
    num_migrations: int


def route_receipt(record: RequestRecord, block_size: int) -> RouteReceipt | None:
    """None while the request is nowhere."""
    placed = record.placed
    if placed is None:
        return None
    said = placed.receipt or PLACED_LOCALLY
    matched = MatchedBlocks(said.device_blocks, said.host_blocks, said.disk_blocks, said.external_blocks)
    return RouteReceipt(
        worker_id=placed.instance_id,
        worker=f"{placed.instance_id:x}",
        dp_rank=placed.dp_rank,
        reason=said.reason,
        num_candidates=said.num_candidates,
        request_blocks=said.request_blocks,
        matched_blocks=matched,
        predicted_cached_tokens=min(matched.total * block_size, record.num_prompt_tokens),
        cached_tokens=record.num_cached_tokens,
        cost=said.cost,
        runner_up=_runner_up(said),
        queue_wait_ms=said.queue_wait_ms,
        policy=said.policy,
        num_migrations=record.num_migrations,
    )


def compact(receipt: RouteReceipt | None) -> str:
    """As a header tells it: `name=value; name=value`, without what is unknown."""
    if receipt is None:
        return ""
    matched, runner_up, was_compared = receipt.matched_blocks, receipt.runner_up, receipt.cost is not None
    parts = {
        "worker": receipt.worker,
        "rank": receipt.dp_rank,
        "reason": receipt.reason,
        "policy": receipt.policy or None,
        "device": matched.device if was_compared else None,
        "host": matched.host if was_compared else None,
        "disk": matched.disk if was_compared else None,
        "external": matched.external or None,
        "blocks": receipt.request_blocks if was_compared else None,
        "cost": receipt.cost,
        "runner_up": runner_up and runner_up.worker,
        "runner_up_cost": runner_up and runner_up.cost,
        "queue_ms": round(receipt.queue_wait_ms, 3),
        "predicted": receipt.predicted_cached_tokens if was_compared else None,
        "cached": receipt.cached_tokens,
        "migrations": receipt.num_migrations or None,
    }
    return "; ".join(f"{name}={_shown(value)}" for name, value in parts.items() if value is not None)


def _runner_up(said: Receipt) -> RunnerUp | None:
    if said.runner_up is None:
        return None
    return RunnerUp(said.runner_up, f"{said.runner_up:x}", said.runner_up_dp_rank, said.runner_up_cost)


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
