"""Listens to an engine's own KV events, and asks it for those that were missed.

live      SUB to the engine's PUB:          topic | sequence u64 BE | batch
replay    DEALER to the engine's ROUTER:    empty | first sequence wanted u64 BE
          answered by many                  empty | [topic |] sequence u64 BE | batch; the last has the sequence -1

Sequences start at 0 with the engine. Without a replay endpoint, what is missed is lost, and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import zmq
import zmq.asyncio

from dynamo.shared.turns import TurnBudget
from dynamo.worker.engine_translator import EngineTranslator

log = logging.getLogger("dynamo.kv_events")

HIGH_WATER_MARK = 100_000  # batches, as vLLM's own side has; a relay that falls further behind sees a gap
MAX_BATCH_BYTES = 64 << 20
REPLAY_SILENCE_S = 5.0
SEQUENCE_BYTES = 8
END_OF_REPLAY = (-1).to_bytes(SEQUENCE_BYTES, "big", signed=True)


class NotAMessage(ValueError):
    """These frames are none of the above."""


class EngineRelay:
    """Feeds the translator every batch once, in order. Made inside the running loop, where it starts at once.

    Raises ValueError when an endpoint is no address.
    """

    def __init__(
        self, endpoint: str, translator: EngineTranslator, topic: str = "", replay_endpoint: str | None = None
    ) -> None:
        self.translator = translator
        self.num_lost = 0  # batches
        self.num_replayed = 0
        self._replay_endpoint = replay_endpoint
        self._context = zmq.asyncio.Context()
        if replay_endpoint is not None:
            self._connected(zmq.DEALER, replay_endpoint).close(linger=0)  # only to see that it is an address
        self._live = self._connected(zmq.SUB, endpoint)
        self._live.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._next = 0  # the sequence that follows what was translated
        self._last_live = -1
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._context.destroy(linger=0)

    def _connected(self, kind: int, endpoint: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        for option, value in ((zmq.IPV6, 1), (zmq.RCVHWM, HIGH_WATER_MARK), (zmq.MAXMSGSIZE, MAX_BATCH_BYTES)):
            socket.setsockopt(option, value)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ValueError(f"{endpoint!r} is no address of an engine's KV events: {error.strerror}") from None
        return socket

    async def _run(self) -> None:
        try:
            await self._replay()
            await self._listen()
        except Exception:  # top of this task: nobody else would hear of it
            log.exception("the relay of an engine's KV events failed: routers no longer learn what it holds")

    async def _listen(self) -> None:
        budget = TurnBudget()
        while True:
            frames = await self._live.recv_multipart()
            try:
                await self._take_live(*_live_message(frames))
            except NotAMessage as error:
                self.translator.note_malformed(error)
            if not budget.spend(len(frames[-1])):
                await asyncio.sleep(0)
                budget.renew()

    async def _take_live(self, sequence: int, batch: bytes) -> None:
        if sequence <= self._last_live:
            log.warning("an engine began anew: its KV cache is empty")
            self.translator.clear()
            self._next = 0
        self._last_live = sequence
        if sequence > self._next:
            await self._replay()
        if sequence >= self._next:  # else it was among those replayed
            self._translate(sequence, batch)

    async def _replay(self) -> None:
        """From the next batch on, as far as the engine remembers. What it does not answer in time remains missed."""
        if self._replay_endpoint is None:
            return
        socket = self._connected(zmq.DEALER, self._replay_endpoint)
        try:
            await socket.send_multipart([b"", self._next.to_bytes(SEQUENCE_BYTES, "big")])
            async for sequence, batch in _replayed(socket):
                if sequence >= self._next:
                    self._translate(sequence, batch)
                    self.num_replayed += 1
        except (TimeoutError, NotAMessage) as error:
            log.warning("the engine's replay at %s broke off: %s", self._replay_endpoint, error or "silence")
        finally:
            socket.close(linger=0)

    def _translate(self, sequence: int, batch: bytes) -> None:
        if sequence > self._next:
            if not self.num_lost:
                log.warning(
                    "missed %d batches of an engine's KV events before number %d, so routers misjudge what it holds; "
                    "further ones are only counted",
                    sequence - self._next,
                    sequence,
                )
            self.num_lost += sequence - self._next
        self.translator.push(batch)
        self._next = sequence + 1


async def _replayed(socket: zmq.asyncio.Socket) -> AsyncIterator[tuple[int, bytes]]:
    """Raises TimeoutError, NotAMessage."""
    while True:
        async with asyncio.timeout(REPLAY_SILENCE_S):
            frames = await socket.recv_multipart()
        if len(frames) not in (3, 4) or frames[0] or len(frames[-2]) != SEQUENCE_BYTES:
            raise NotAMessage(f"{len(frames)} frames that are no part of a replay")
        if frames[-2] == END_OF_REPLAY:
            return
        yield int.from_bytes(frames[-2], "big"), frames[-1]


def _live_message(frames: list[bytes]) -> tuple[int, bytes]:
    """Raises NotAMessage."""
    if len(frames) != 3 or len(frames[1]) != SEQUENCE_BYTES:
        raise NotAMessage(f"{len(frames)} frames, expected a topic, a sequence of {SEQUENCE_BYTES} bytes and a batch")
    return int.from_bytes(frames[1], "big"), frames[2]
