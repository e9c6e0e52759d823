"""What a router sees of one rank: the events that it is sent, and the answers to its questions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from dynamo.shared.discovery import EVENT_SOURCES, Put
from dynamo.shared.discovery.mem import MemDiscovery
from dynamo.shared.event_plane.channel_watch import ChannelWatch
from dynamo.shared.event_plane.subscriber import EventSubscriber
from dynamo.shared.kv_events import (
    KV_EVENTS_TOPIC,
    LOAD_TOPIC,
    Change,
    EventSource,
    LoadReport,
    RecoveryAnswer,
    RouterEvent,
    decode_events,
    decode_load,
)
from dynamo.shared.nats import NatsConnection
from dynamo.worker import KvEventPublisher
from tests.support.waiting import until
from tests.worker.frontend import Frontend, open_frontend

Held = dict[str, dict[int, tuple[int | None, int]]]  # tier -> block hash -> its parent and the hash of its tokens

PROBE = 0xDEAD  # a block that is removed before anything was stored


class RouterView:
    """`events` and `loads` are what came over the event plane."""

    def __init__(self, frontend: Frontend, nats: NatsConnection | None) -> None:
        self.events: list[RouterEvent] = []
        self.num_messages = 0
        self.loads: list[LoadReport] = []
        self._frontend = frontend
        self._discovery = MemDiscovery()
        self._subscribers = (
            EventSubscriber(KV_EVENTS_TOPIC, lambda envelope: self._take(envelope.payload), nats=nats),
            EventSubscriber(LOAD_TOPIC, lambda envelope: self.loads.append(decode_load(envelope.payload)), nats=nats),
        )
        self._watch = ChannelWatch(self._discovery, self._subscribers)

    def _take(self, payload: bytes) -> None:
        self.num_messages += 1
        self.events += decode_events(payload)

    async def open(self) -> asyncio.Task[None]:
        await self._discovery.open()
        await self._watch.open()
        return asyncio.create_task(self._watch.follow())

    async def close(self) -> None:
        for subscriber in self._subscribers:
            subscriber.close()
        await self._discovery.close()

    async def meets(self, publisher: KvEventPublisher) -> None:
        """Until this one's events arrive; then forget them."""

        def has_arrived() -> bool:
            publisher.removed([PROBE])
            return bool(self.events)

        await until(has_arrived, "an event")
        await self.until_removed(PROBE + 1, publisher)
        self.events.clear()
        self.num_messages = 0

    async def until_removed(self, block_hash: int, publisher: KvEventPublisher) -> None:
        """Until everything that was published before has arrived."""
        publisher.removed([block_hash])
        await until(lambda: any(block_hash in removed_by(event) for event in self.events), "the last event")

    async def source(self) -> EventSource:
        """Waits for the first one."""
        async for changes in self._discovery.watch(EVENT_SOURCES):
            for change in changes:
                if isinstance(change, Put):
                    return msgspec.json.decode(change.value, type=EventSource)
        raise AssertionError("the watch ended")

    async def ask(self, **query: Any) -> RecoveryAnswer:
        """The recovery endpoint of the source; fields of the query that are not named are those of its rank."""
        source = await self.source()
        target = source.metadata.recovery_target
        assert target is not None
        answer = await self._frontend.ask_to_end(
            target.transport["tcp"], {**msgspec.to_builtins(source.metadata.worker), **query}
        )
        assert answer.is_complete
        return msgspec.convert(answer.data[0]["data"], RecoveryAnswer)


@asynccontextmanager
async def open_view(nats: NatsConnection | None = None) -> AsyncIterator[RouterView]:
    async with open_frontend() as frontend:
        view = RouterView(frontend, nats)
        following = await view.open()
        try:
            yield view
        finally:
            following.cancel()
            await view.close()


def stored_by(event: RouterEvent) -> list[int]:
    data = event.event.data
    return [block.block_hash for block in data.stored.blocks] if isinstance(data, Change) and data.stored else []


def removed_by(event: RouterEvent) -> list[int]:
    data = event.event.data
    return data.removed.block_hashes if isinstance(data, Change) and data.removed else []


def held_after(events: Iterable[RouterEvent]) -> Held:
    """What a router believes that was told all this."""
    held: Held = {}
    for event in events:
        data, tier = event.event.data, held.setdefault(event.storage_tier, {})
        if not isinstance(data, Change):
            held.clear()
        elif data.stored:
            parent_hash = data.stored.parent_hash
            for block in data.stored.blocks:
                tier.setdefault(block.block_hash, (parent_hash, block.tokens_hash))
                parent_hash = block.block_hash
        for block_hash in removed_by(event):
            tier.pop(block_hash, None)
    return {tier: blocks for tier, blocks in held.items() if blocks}
