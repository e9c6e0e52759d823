"""Two routing policies to start from; see ../routing_policies.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dynamo.router.cost import Candidates
from dynamo.router.policies import PolicyRequest


def score(request: PolicyRequest, candidates: Candidates) -> NDArray[np.float64]:
    """Blocks that the worker would have to prefill before the first token, its own backlog included."""
    cached_blocks = candidates.device_blocks + 0.75 * candidates.host_blocks
    backlog_blocks = candidates.prefill_tokens / request.block_size
    return np.asarray(request.num_blocks - cached_blocks + backlog_blocks, np.float64)


class CacheUnlessBusy:
    """The worker with most of the prompt in its cache, among those that run at most `slack` requests more than the
    least busy one."""

    def __init__(self, slack: int = 8) -> None:
        self.slack = slack

    def score(self, request: PolicyRequest, candidates: Candidates) -> NDArray[np.float64]:
        is_busy = candidates.num_requests > candidates.num_requests.min() + self.slack
        return np.where(is_busy, np.inf, -candidates.device_blocks.astype(np.float64))
