"""The router's end of a real channel; the test decides what it answers. Nothing of the router's logic is here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias

from dynamo.shared.channel import RouterChannel
from dynamo.shared.messages import (
    AcceptorMessage,
    Explain,
    GetThresholds,
    Hello,
    Place,
    Placed,
    RouterMessage,
    SetThresholds,
    Settings,
    Welcome,
    Worker,
    WorkerSet,
)

WORKERS = [Worker(1, "127.0.0.1:1", "p"), Worker(2, "127.0.0.1:2", "p")]
SET = WorkerSet("set", "m", "ns", "backend", "generate", "aggregated", "sum", b"{}", [1, 2])

Question: TypeAlias = Explain | GetThresholds | SetThresholds


class ScriptedRouter:
    def __init__(
        self,
        endpoint: str,
        workers: Sequence[Worker] = tuple(WORKERS),
        sets: Sequence[WorkerSet] = (SET,),
        settings: Settings | None = None,
    ) -> None:
        self.heard: list[AcceptorMessage] = []
        self.answer: Callable[[Place], RouterMessage | None] = lambda place: Placed(place.request_id, 1, "set")
        self.answer_question: Callable[[Question], RouterMessage | None] = lambda _question: None
        self._welcome = Welcome("round-robin", 1, list(workers), list(sets), settings or Settings())
        self._news = asyncio.Event()
        self._peer = b""
        self.channel = RouterChannel(endpoint, on_messages=self._on_messages, on_lost=lambda _peer: None)

    def _on_messages(self, peer: bytes, messages: list[AcceptorMessage]) -> None:
        self._peer = peer
        for message in messages:
            self.heard.append(message)
            if (answer := self._answer_to(message)) is not None:
                self.say(answer)
        self._news.set()

    def _answer_to(self, message: AcceptorMessage) -> RouterMessage | None:
        match message:
            case Hello():
                return self._welcome
            case Place():
                return self.answer(message)
            case Explain() | GetThresholds() | SetThresholds():
                return self.answer_question(message)
        return None

    def say(self, message: RouterMessage) -> None:
        self.channel.send(self._peer, [message])

    async def hear(self, kind: type[AcceptorMessage]) -> AcceptorMessage:
        """The first message of a kind, waiting for it if need be."""
        async with asyncio.timeout(5):
            while not (found := [message for message in self.heard if isinstance(message, kind)]):
                self._news.clear()
                await self._news.wait()
        return found[0]
