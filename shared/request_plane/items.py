"""An answer as an async iterator, for who has time to wait for each item; acceptors take theirs in `relay`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Generic, TypeVar

import msgspec

from dynamo.shared.protocol import ResponseItem
from dynamo.shared.request_plane.stream import AnswerStream, ItemDecoders

T = TypeVar("T")

ANYTHING: ItemDecoders[Any] = {
    "msgpack": msgspec.msgpack.Decoder(ResponseItem[Any]).decode,
    "json": msgspec.json.Decoder(ResponseItem[Any]).decode,
}


class _HandOver(Generic[T]):
    """Holds what one read has brought until it is used up; the worker's socket is left unread meanwhile."""

    def __init__(self) -> None:
        self._batch: list[T] = []
        self._is_over = False
        self._has_come = asyncio.Event()
        self._is_used_up = asyncio.Event()

    def take(self, outputs: list[T]) -> bool:
        self._batch = outputs
        self._is_used_up.clear()
        self._has_come.set()
        return False

    async def ready(self) -> bool:
        await self._is_used_up.wait()
        return True

    def end(self, _cause: asyncio.Future[Any]) -> None:
        self._is_over = True
        self._has_come.set()

    async def next(self) -> list[T]:
        """What has come since the last call; nothing at the end."""
        self._is_used_up.set()
        await self._has_come.wait()
        batch, self._batch = self._batch, []
        if not self._is_over:
            self._has_come.clear()
        return batch


async def items_of(stream: AnswerStream[T], until: asyncio.Future[Any]) -> AsyncGenerator[T, None]:
    """Each item as it comes, to the end of the answer or until that future is done. Raises what the stream fails with.
    Close the generator, then the stream."""
    held = _HandOver[T]()
    relay = asyncio.get_running_loop().create_task(stream.relay(held))
    relay.add_done_callback(held.end)
    until.add_done_callback(held.end)
    try:
        while batch := await held.next():
            for item in batch:
                yield item
        if relay.done():
            relay.result()
    finally:
        until.remove_done_callback(held.end)
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
