"""Asks workers for KV events that the router has missed: a request on the request plane with one item for an answer.

The item is `{"data": <answer>, "complete_final": false}`, the answer being an object with one key that says its kind.
The events of a large one stay as they came until they are applied, a few at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from dynamo.router.recovery_desk import History, Query
from dynamo.shared.errors import DynamoError
from dynamo.shared.kv_events import InvalidRange, RecoveryQuery, RecoveryTarget, RouterEvent, TooNew, TreeDumpFailed
from dynamo.shared.messages import Worker
from dynamo.shared.protocol import Annotated, ResponseItem
from dynamo.shared.request_plane.client import EngineClient, fresh_uuid
from dynamo.shared.request_plane.stream import AnswerStream, Frame, ItemDecoders

TIME_LIMIT_S = 30.0
MAX_ANSWER_BYTES = 256 << 20  # what the `ResponseServer` of such a client should allow


class RecoveryFailed(Exception):
    """There is no answer, or one that is no history. The message says why."""


class UnreadEvents(Struct):
    events: list[msgspec.Raw]
    last_event_id: int


class UnreadAnswer(Struct):
    """Exactly one of these."""

    tree_dump: UnreadEvents | None = msgspec.field(default=None, name="TreeDump")
    events: UnreadEvents | None = msgspec.field(default=None, name="Events")
    too_new: TooNew | None = msgspec.field(default=None, name="TooNew")
    invalid_range: InvalidRange | None = msgspec.field(default=None, name="InvalidRange")
    tree_dump_failed: TreeDumpFailed | None = msgspec.field(default=None, name="TreeDumpFailed")
    error: str | None = msgspec.field(default=None, name="Error")


class Item(Struct):
    data: UnreadAnswer | None = None
    complete_final: bool = False


_read_event: dict[str, Callable[[msgspec.Raw], RouterEvent]] = {
    "msgpack": msgspec.msgpack.Decoder(RouterEvent).decode,
    "json": msgspec.json.Decoder(RouterEvent).decode,
}


def _unwrapped(decode: Callable[[Frame], Item]) -> Callable[[Frame], ResponseItem[UnreadAnswer]]:
    def decode_item(frame: Frame) -> ResponseItem[UnreadAnswer]:
        item = decode(frame)
        return ResponseItem(Annotated(item.data), item.complete_final)

    return decode_item


_answers: ItemDecoders[UnreadAnswer] = {
    "msgpack": _unwrapped(msgspec.msgpack.Decoder(Item).decode),
    "json": _unwrapped(msgspec.json.Decoder(Item).decode),
}


class RecoveryClient:
    def __init__(self, client: EngineClient, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._client = client
        self._time_limit_s = time_limit_s

    async def ask(self, query: Query) -> History | TooNew:
        """Raises RecoveryFailed."""
        worker = _worker_of(query.target)
        question = RecoveryQuery(query.rank.worker_id, query.rank.dp_rank, query.start_event_id)
        try:
            async with asyncio.timeout(self._time_limit_s):
                with await self._client.call(worker, fresh_uuid(), question, _answers) as stream:
                    answer = await _first_item(stream)
        except TimeoutError:
            raise RecoveryFailed(f"no answer within {self._time_limit_s:g} s") from None
        except DynamoError as error:
            raise RecoveryFailed(str(error)) from error
        return _history_of(answer, _read_event[worker.codec])


class _First:
    """Takes one item and no more."""

    item: UnreadAnswer | None = None

    def take(self, items: list[UnreadAnswer]) -> bool:
        self.item = items[0]
        return False

    async def ready(self) -> bool:
        return False


async def _first_item(stream: AnswerStream[UnreadAnswer]) -> UnreadAnswer | None:
    first = _First()
    await stream.relay(first)
    return first.item


def _worker_of(target: RecoveryTarget) -> Worker:
    address = target.transport.get("tcp")
    if address is None:
        raise RecoveryFailed(f"its request plane is {', '.join(target.transport)}; only tcp can be asked")
    host_port, _slash, path = address.partition("/")
    return Worker(target.instance_id, address=host_port, path=path, codec=target.request_plane_codec or "json")


def _history_of(answer: UnreadAnswer | None, read: Callable[[msgspec.Raw], RouterEvent]) -> History | TooNew:
    match answer:
        case UnreadAnswer(tree_dump=UnreadEvents() as dump):
            return History(_reading(dump.events, read), dump.last_event_id, is_whole=True)
        case UnreadAnswer(events=UnreadEvents() as replay):
            return History(_reading(replay.events, read), replay.last_event_id, is_whole=False)
        case UnreadAnswer(too_new=TooNew() as too_new):
            return too_new
        case UnreadAnswer(tree_dump_failed=TreeDumpFailed() as failed):
            raise RecoveryFailed(f"it cannot tell what it holds: {failed.message}")
        case UnreadAnswer(invalid_range=InvalidRange() as refused):
            raise RecoveryFailed(f"it refuses the range {refused.start_id} to {refused.end_id}")
        case UnreadAnswer(error=str(error)):
            raise RecoveryFailed(f"it answered with an error: {error}")
        case _:
            raise RecoveryFailed("it answered with nothing that is known here")


def _reading(events: Iterable[Any], read: Callable[[msgspec.Raw], RouterEvent]) -> Iterator[RouterEvent]:
    return map(read, events)
