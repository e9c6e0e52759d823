"""What an acceptor asks the router besides placements: explanations and busy thresholds.

Nobody can answer these in the router's place, so without one they fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from dynamo.shared.errors import RouterAway
from dynamo.shared.messages import AcceptorMessage, Explained, Refused, ThresholdsAre

ANSWER_TIMEOUT_S = 5.0
MAX_PENDING = 256

Answer: TypeAlias = Explained | ThresholdsAre | Refused


class RouterQuestions:
    """Questions under way, by request id. `send` is False when the channel takes no message."""

    def __init__(self, send: Callable[[AcceptorMessage], bool]) -> None:
        self._send = send
        self._pending: dict[int, asyncio.Future[Answer]] = {}

    async def ask(self, request_id: int, question: AcceptorMessage) -> Answer:
        """Raises RouterAway when no answer comes."""
        if len(self._pending) >= MAX_PENDING:
            raise RouterAway(f"The router has {MAX_PENDING} questions of this kind to answer already; try again.")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = answer
        try:
            if not self._send(question):
                raise RouterAway("The router takes no messages right now; try again.")
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise RouterAway(f"The router has not answered within {ANSWER_TIMEOUT_S:g} s; try again.") from None
        finally:
            del self._pending[request_id]

    def answer(self, message: Answer) -> None:
        if (pending := self._pending.get(message.request_id)) is not None and not pending.done():
            pending.set_result(message)

    def give_up(self) -> None:
        """The router is gone, and what it was asked with it."""
        for pending in self._pending.values():
            if not pending.done():
                pending.set_exception(RouterAway("The router went away before it answered; try again."))
