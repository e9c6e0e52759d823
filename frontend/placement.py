"""What an acceptor knows of one placement: the wish, the question it put to the router, and what it holds."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from dynamo.shared.messages import ActiveRequest, Place, Placed, RoutingHints


class PlacementWish(Struct, gc=False):
    """What the router needs to know to choose a worker for one request. `excluded` grows with each failure.

    `block_hashes` are packed u64 LE and may be empty; `block_size` is that of the workers, in tokens. `pinned_by` names
    the field or header that a refusal is about, `label` the request in logs.
    """

    model: str
    num_tokens: int
    mdcsum: str = ""
    block_hashes: bytes = b""
    block_size: int = 0
    instance_id: int | None = None
    dp_rank: int | None = None
    excluded: list[int] = []
    pinned_by: str = "nvext.backend_instance_id"
    label: str = ""
    hints: RoutingHints | None = None

    def message(self, request_id: int) -> Place:
        return Place(
            request_id,
            self.model,
            self.num_tokens,
            self.block_hashes,
            self.excluded,
            self.instance_id,
            self.dp_rank,
            self.mdcsum,
            self.label,
            self.hints,
        )

    def allows(self, instance_id: int) -> bool:
        """Whatever its load or health."""
        if self.instance_id is not None:
            return instance_id == self.instance_id
        allowed = None if self.hints is None else self.hints.allowed_worker_ids
        return allowed is None or instance_id in allowed


class Question(Struct):
    """A wish that the router was told of; `deadline` is in the loop's seconds, infinite once it is queued there."""

    placed: asyncio.Future[Placed]
    wish: PlacementWish
    deadline: float


class Held(Struct):
    """A placement in use, as far as the router is to know of it."""

    instance_id: int
    dp_rank: int | None
    wish: PlacementWish
    is_prefill_completed: bool = False
    num_output_blocks: int = 0

    def announced(self, request_id: int, *, with_hashes: bool) -> ActiveRequest:
        return ActiveRequest(
            request_id,
            self.instance_id,
            self.wish.num_tokens,
            self.dp_rank,
            self.is_prefill_completed,
            self.num_output_blocks,
            self.wish.block_hashes if with_hashes else b"",
            self.wish.label,
            self.wish.hints,
        )
