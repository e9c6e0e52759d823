"""An acceptor inside the router's process: asks the core as those of frontends do, without a socket in between.

So what it places waits in the same queue, counts as the same load and is logged like everything else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace

from dynamo.shared.messages import (
    AcceptorMessage,
    ActiveRequest,
    Free,
    Heartbeat,
    Hello,
    OutputGrown,
    Place,
    Placed,
    PrefillCompleted,
    Refused,
    RouterMessage,
    Settings,
    TableDelta,
    Welcome,
    WorkerFailed,
)

LOCAL_PEER = (
    b"\0local"  # ZeroMQ gives out identities of five bytes that begin with 0, and lets nobody choose such a one
)
NAME = "the router's own endpoints"

Send = Callable[[bytes, list[AcceptorMessage]], None]


class NotPlaced(Exception):
    """The router refused."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.message)
        self.code = refusal.code


class GivenUp(Exception):
    """Nobody wants the request any more."""


class LocalAcceptor:
    """`send` hands a message to the core; whoever owns the core calls `hear` with the answers, and each second with
    none."""

    def __init__(self, send: Send) -> None:
        self.settings = Settings()
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._incarnation = int.from_bytes(os.urandom(6), "big")
        self._asked: dict[int, tuple[Place, asyncio.Future[Placed]]] = {}
        self._held: dict[int, ActiveRequest] = {}
        self._serial = 0

    def open(self) -> None:
        """Also when the core took us for dead, for the process had been stopped: it knows nothing of us any more."""
        self._tell(Hello(NAME, self._incarnation, list(self._held.values())))
        for place, asked in list(self._asked.values()):
            if not asked.done():
                self._tell(place)

    def hear(self, messages: Iterable[RouterMessage]) -> None:
        is_probe = True
        for message in messages:
            is_probe = False
            match message:
                case Placed():
                    self._on_placed(message)
                case Refused():
                    self._asked[message.request_id][1].set_exception(NotPlaced(message))
                case Welcome():
                    self.settings = message.settings
                case Settings():
                    self.settings = message
                case TableDelta(version=0):
                    self.open()
        if is_probe:
            self._tell(Heartbeat())

    def _on_placed(self, placed: Placed) -> None:
        place, asked = self._asked[placed.request_id]
        self._held[placed.request_id] = ActiveRequest(
            placed.request_id,
            placed.instance_id,
            place.num_tokens,
            placed.dp_rank,
            block_hashes=place.block_hashes,
            label=place.label,
            hints=place.hints,
        )
        asked.set_result(placed)

    def next_request_id(self) -> int:
        self._serial += 1
        return self._serial

    def complete_prefill(self, request_id: int) -> None:
        self._held[request_id] = replace(self._held[request_id], is_prefill_completed=True)
        self._tell(PrefillCompleted(request_id))

    def grow_output(self, request_id: int, num_blocks: int) -> None:
        held = self._held[request_id]
        self._held[request_id] = replace(held, num_output_blocks=held.num_output_blocks + num_blocks)
        self._tell(OutputGrown(request_id, num_blocks))

    def report_failure(self, instance_id: int, reason: str) -> None:
        self._tell(WorkerFailed(instance_id, reason))

    def _tell(self, message: AcceptorMessage) -> None:
        self._send(LOCAL_PEER, [message])

    @asynccontextmanager
    async def placed(self, place: Place, until: asyncio.Future[Any]) -> AsyncIterator[Placed]:
        """The placement is freed however this is left. Raises NotPlaced; GivenUp if `until` is done first."""
        request_id = place.request_id
        try:
            yield await self._ask(place, until)
        finally:
            self._held.pop(request_id, None)
            self._tell(Free(request_id))

    async def _ask(self, place: Place, until: asyncio.Future[Any]) -> Placed:
        asked: asyncio.Future[Placed] = self._loop.create_future()
        self._asked[place.request_id] = place, asked
        try:
            self._tell(place)
            await asyncio.wait((asked, until), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise GivenUp
            return asked.result()
        finally:
            del self._asked[place.request_id]
