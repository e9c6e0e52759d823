"""The echo engine: the answer is the prompt, token by token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from dynamo.shared.request_plane.context import Context
from dynamo.shared.request_plane.exceptions import InvalidArgument
from dynamo.worker.mocker import GenerateItem, GenerateRequest


class EchoEngine:
    """`generate` is the handler to serve: `tokens_per_frame` tokens in each item, `delay_s` before each."""

    def __init__(self, tokens_per_frame: int = 1, delay_s: float = 0.0) -> None:
        self._tokens_per_frame = tokens_per_frame
        self._delay_s = delay_s

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[GenerateItem]:
        """Ends with `length` where max_tokens cuts the prompt short, else with `stop`."""
        token_ids, finish_reason = _answer_to(request)
        stopped = context.async_killed_or_stopped()
        try:
            for start in range(0, len(token_ids), self._tokens_per_frame):
                if self._delay_s:
                    await asyncio.wait((stopped,), timeout=self._delay_s)
                if context.is_stopped():
                    return
                yield GenerateItem(token_ids[start : start + self._tokens_per_frame])
            yield GenerateItem([], finish_reason)
        finally:
            stopped.cancel()


def _answer_to(request: dict[str, Any]) -> tuple[list[int], str]:
    try:
        body = msgspec.convert(request, GenerateRequest)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"not a generate request: {error}") from None
    max_tokens = body.stop_conditions.max_tokens if body.stop_conditions else None
    if max_tokens is None or max_tokens > len(body.token_ids):
        return body.token_ids, "stop"
    return body.token_ids[:max_tokens], "length"
