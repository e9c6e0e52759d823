"""Clients of a mock worker that ask again as soon as they are answered, with prompts that share their beginnings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tests.support.completions import Completion, complete
from tests.support.kv_gateway import KvGateway, prompt_of
from tests.support.waiting import PATIENCE_S

NUM_FAMILIES = 16
FAMILY_TOKENS = 320
NUM_SESSIONS = 8


def family(number: int) -> list[int]:
    """What the prompts of a family begin with."""
    return prompt_of(1000 + number % NUM_FAMILIES, FAMILY_TOKENS)


def prompt(number: int) -> list[int]:
    """Of the family of that number, with an end that every prompt has to itself."""
    return [*family(number), 1 + number % 15000, 1 + number // 15000, *range(30)]


async def begin(gateway: KvGateway, number: int, num_tokens: int) -> Completion:
    """Every other client belongs to a session."""
    headers = {"x-dynamo-session-id": f"session {number % NUM_SESSIONS}"} if number % 2 else {}
    fields: dict[str, Any] = {"model": gateway.model, "max_tokens": num_tokens, "ignore_eos": True}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    return await complete(gateway.address, prompt(number), headers, **fields, **usage)


def is_whole(answer: Completion, num_tokens: int) -> bool:
    """A mock worker's: every token, once."""
    return (
        (answer.status, answer.error, answer.is_answered, answer.has_said_done) == (200, None, True, True)
        and answer.finish_reason == "length"
        and answer.usage["completion_tokens"] == num_tokens
    )


class SteadyLoad:
    """`num_clients` at each gateway in turn, until the end of the block; then what they wait for comes to its end.

    `broken` are the answers that were not whole.
    """

    def __init__(self, gateways: Sequence[KvGateway], num_clients: int, num_tokens: int) -> None:
        self.num_answers = 0
        self.broken: list[Completion] = []
        self._gateways = gateways
        self._num_clients = num_clients
        self._num_tokens = num_tokens
        self._num_asked = 0
        self._is_over = False
        self._clients: list[asyncio.Task[None]] = []

    async def further(self, num_answers: int) -> None:
        """Until so many more have come."""
        wanted = self.num_answers + num_answers
        async with asyncio.timeout(PATIENCE_S):
            while self.num_answers < wanted:
                await asyncio.sleep(0.02)

    async def __aenter__(self) -> Self:
        for number in range(self._num_clients):
            self._clients.append(asyncio.create_task(self._keep_asking(self._gateways[number % len(self._gateways)])))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self._clients)

    async def _keep_asking(self, gateway: KvGateway) -> None:
        while not self._is_over:
            self._num_asked += 1
            answer = await begin(gateway, self._num_asked, self._num_tokens)
            await answer.ended.wait()
            self.num_answers += 1
            if not is_whole(answer, self._num_tokens):
                self.broken.append(answer)
