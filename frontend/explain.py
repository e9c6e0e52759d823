"""The router's view of one request as JSON for people: what it would do, and what each worker has to say for itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from dynamo.shared.messages import Candidate, Explained, Placed


class CachedBlocks(Struct, frozen=True):
    """Blocks of the prompt that a worker holds, by where; `external` is beyond its own disk."""

    device: int
    host: int
    disk: int
    external: int


class Load(Struct, frozen=True):
    """What a worker does already, without the request."""

    prefill_tokens: int
    decode_blocks: float
    requests: int


class ExplainedWorker(Struct, frozen=True):
    """`cost` is in blocks, lower is better; `new_blocks` of the prompt are in none of its running requests."""

    worker_id: int
    worker: str
    dp_rank: int
    verdict: str
    cost: float | None
    cached_blocks: CachedBlocks
    new_blocks: int
    load: Load


class ExplainedChoice(Struct, frozen=True):
    worker_id: int
    worker: str
    dp_rank: int | None
    overlap_blocks: int
    reason: str | None


class Explanation(Struct, frozen=True):
    """`worker` is the hexadecimal form of `worker_id`, as in logs: readers of JSON may lose digits of the number."""

    model: str
    num_tokens: int
    block_size: int
    request_blocks: int
    worker_set: str
    outcome: str
    choice: ExplainedChoice | None
    candidates: list[ExplainedWorker]


def explanation(model: str, num_tokens: int, explained: Explained) -> bytes:
    """The body of the answer; the cheapest worker comes first, and those without a cost last."""
    return msgspec.json.encode(
        Explanation(
            model=model,
            num_tokens=num_tokens,
            block_size=explained.block_size,
            request_blocks=explained.request_blocks,
            worker_set=explained.worker_set,
            outcome=explained.outcome,
            choice=None if explained.choice is None else _choice(explained.choice),
            candidates=[_worker(candidate) for candidate in _cheapest_first(explained.candidates)],
        )
    )


def _cheapest_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(
        candidates, key=lambda one: (math.inf if one.cost is None else one.cost, one.instance_id, one.dp_rank)
    )


def _choice(placed: Placed) -> ExplainedChoice:
    return ExplainedChoice(
        worker_id=placed.instance_id,
        worker=f"{placed.instance_id:x}",
        dp_rank=placed.dp_rank,
        overlap_blocks=placed.overlap_blocks,
        reason=None if placed.receipt is None else placed.receipt.reason,
    )


def _worker(candidate: Candidate) -> ExplainedWorker:
    return ExplainedWorker(
        worker_id=candidate.instance_id,
        worker=f"{candidate.instance_id:x}",
        dp_rank=candidate.dp_rank,
        verdict=candidate.verdict,
        cost=candidate.cost,
        cached_blocks=CachedBlocks(
            candidate.device_blocks, candidate.host_blocks, candidate.disk_blocks, candidate.external_blocks
        ),
        new_blocks=candidate.new_blocks,
        load=Load(candidate.prefill_tokens, candidate.decode_blocks, candidate.num_requests),
    )
