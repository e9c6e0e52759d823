"""A public request trace as completion requests: when each comes, which prompt it has, how much it is answered.

The trace has no text, only ids of 512-token blocks, equal where prompts share a prefix. A block's tokens are made up of
its id, so prefixes are shared exactly as they were in production.

Format and default trace: Mooncake (FAST '25), `conversation_trace.jsonl` of github.com/kvcache-ai/Mooncake, Apache-2.0.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

BLOCK_TOKENS = 512
FIRST_TOKEN_ID, LAST_TOKEN_ID = 100, 16_000  # ordinary tokens of every vocabulary


@dataclass(frozen=True)
class Request:
    """`at_s` counts from the first request, in the trace's own time."""

    at_s: float
    block_ids: tuple[int, ...]
    num_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How much of a trace is replayed: the first `num_requests`, with what is longer than the caps cut off there."""

    num_requests: int
    max_input_tokens: int
    max_output_tokens: int


def read(path: Path, cut: Cut) -> list[Request]:
    """Raises SystemExit with what to do where there is no such trace."""
    try:
        with path.open() as lines:
            rows = [json.loads(line) for line in islice(lines, cut.num_requests)]
    except OSError as error:
        raise SystemExit(f"bench: no trace ({error}); bench/README.md says where to get it") from None
    return [_request(row, at_s, cut) for row, at_s in zip(rows, _arrivals(rows), strict=True)]


def reusable_share(requests: Sequence[Request]) -> float:
    """Of the prompt tokens, those whose prefix has come before: what one cache without limits would serve."""
    seen: set[int] = set()
    num_reused = 0
    for request in requests:
        num_known = next((i for i, block in enumerate(request.block_ids) if block not in seen), len(request.block_ids))
        num_reused += min(num_known * BLOCK_TOKENS, request.num_tokens)
        seen.update(request.block_ids)
    return num_reused / sum(request.num_tokens for request in requests)


def body(model: str, request: Request) -> bytes:
    """A completion with the prompt as token ids, streamed; its usage and its worker are told."""
    token_ids = [token for block in request.block_ids for token in _tokens(block)][: request.num_tokens]
    fields: dict[str, Any] = {
        "model": model,
        "prompt": token_ids,
        "max_tokens": request.num_output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "nvext": {"extra_fields": ["worker_id"]},
    }
    return msgspec.json.encode(fields)


@cache
def _tokens(block_id: int) -> list[int]:
    return random.Random(block_id).choices(range(FIRST_TOKEN_ID, LAST_TOKEN_ID), k=BLOCK_TOKENS)


def _arrivals(rows: Sequence[dict[str, Any]]) -> Iterator[float]:
    """The trace tells times in steps of three seconds: those of one step are spread evenly over it."""
    steps = [(at_ms, len(list(group))) for at_ms, group in groupby(map(itemgetter("timestamp"), rows))]
    ends = [at_ms for at_ms, _count in steps[1:]] + [steps[-1][0] + 3000]
    for (at_ms, count), end_ms in zip(steps, ends, strict=True):
        yield from ((at_ms + (end_ms - at_ms) * i / count) / 1000 for i in range(count))


def _request(row: dict[str, Any], at_s: float, cut: Cut) -> Request:
    num_tokens = min(row["input_length"], cut.max_input_tokens)
    num_blocks = -(-num_tokens // BLOCK_TOKENS)
    num_output_tokens = max(1, min(row["output_length"], cut.max_output_tokens))
    return Request(at_s, tuple(row["hash_ids"][:num_blocks]), num_tokens, num_output_tokens)
