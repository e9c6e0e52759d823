"""KV events of workers, from the event plane to the index.

The shell around `EventSources`: it watches discovery for sources and channels, sends the queries and keeps the time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec

from dynamo.router.event_sources import EventSources
from dynamo.router.event_traffic import Traffic
from dynamo.router.jetstream_feed import DurableRules, DurableSubscriber
from dynamo.router.recovery import RecoveryClient, RecoveryFailed
from dynamo.router.recovery_desk import Query
from dynamo.shared.discovery import EVENT_SOURCES, Change, Discovery, Put
from dynamo.shared.event_plane import EndpointScope, Envelope
from dynamo.shared.event_plane.channel_watch import ChannelWatch
from dynamo.shared.event_plane.subscriber import EventSubscriber
from dynamo.shared.kv_events import KV_EVENTS_TOPIC, EventSource, decode_events
from dynamo.shared.nats import NatsConnection

log = logging.getLogger("dynamo.router")

TICK_S = 0.1
BLOCKS_PER_TURN = 256  # of an answer; then other callbacks of the loop get their chance
MAX_SOURCES = 65_536

_decode_source = msgspec.json.Decoder(EventSource).decode


class EventFeed:
    """Made and used inside the running loop; with `history` a broker keeps events for us."""

    def __init__(
        self,
        discovery: Discovery,
        sources: EventSources,
        client: RecoveryClient,
        nats: NatsConnection,
        *,
        is_relevant: Callable[[EndpointScope], bool] = lambda _scope: True,
        durable: DurableRules | None = None,
    ) -> None:
        self.sources = sources
        self.num_malformed = 0  # payloads and sources that cannot be read
        self.num_left_out = 0  # sources beyond MAX_SOURCES
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._nats = nats
        self._is_relevant = is_relevant
        self.events = EventSubscriber(KV_EVENTS_TOPIC, self._take_events, nats=nats)
        self.durable = DurableSubscriber(self.events, nats, durable, self._end_replay) if durable else None
        self.channels = ChannelWatch(discovery, [self.durable or self.events], is_relevant)
        self._watch: AsyncIterator[list[Change]] = aiter(discovery.watch(EVENT_SOURCES))
        self._queries: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_working = False
        self._num_connects = 0

    async def open(self) -> None:
        """Learn of the sources and channels that are there now, and begin to ask and to listen."""
        self._discover(await anext(self._watch))
        await self.channels.open()
        if self.durable is not None:
            self.durable.begin()
        self._tick()

    async def follow(self) -> None:
        """Until the watches end. Call `open` first."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.channels.follow())
            group.create_task(self._follow_sources())

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for query in self._queries:
            query.cancel()
        await asyncio.gather(*self._queries, return_exceptions=True)
        if self.durable is not None:
            await self.durable.close()
        self.events.close()

    @property
    def traffic(self) -> Traffic:
        return Traffic.of([self.events], self.channels, self.num_malformed)

    # ---- discovery

    async def _follow_sources(self) -> None:
        async for changes in self._watch:
            self._discover(changes)
            self._send_queries()

    def _discover(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if isinstance(change, Put):
                self._source_up(change)
            else:
                self.sources.source_down(change.key, self._loop.time())

    def _source_up(self, put: Put) -> None:
        try:
            source = _decode_source(put.value)
        except (msgspec.MsgspecError, RecursionError) as error:
            self._note_malformed(f"event source {put.key}", error)
            self.sources.source_down(put.key, self._loop.time())
            return
        if source.topic != KV_EVENTS_TOPIC or not self._is_relevant(source.scope.endpoint):
            return
        if self.sources.num_sources >= MAX_SOURCES:
            self.num_left_out += 1
            return
        self.sources.source_up(put.key, source, self._loop.time())

    # ---- events

    def _take_events(self, envelope: Envelope) -> None:
        try:
            events = decode_events(envelope.payload)
        except msgspec.MsgspecError as error:
            self._note_malformed(f"a KV event of publisher {envelope.publisher_id:x}", error)
            return
        self.sources.events(envelope.publisher_id, events, self._loop.time())
        self._send_queries()

    def _note_malformed(self, what: str, error: Exception) -> None:
        self.num_malformed += 1
        if self.num_malformed == 1:
            log.warning("ignoring %s: %s. Others like it are only counted", what, error)

    # ---- queries

    def _send_queries(self) -> None:
        for query in self.sources.take_queries():
            task = self._loop.create_task(self._ask(query))
            self._queries.add(task)
            task.add_done_callback(self._queries.discard)

    async def _ask(self, query: Query) -> None:
        try:
            answer = await self._client.ask(query)
        except RecoveryFailed as error:
            self.sources.fail(query, str(error), self._loop.time())
        else:
            self.sources.answer(query, answer, self._loop.time())
        if not self._is_working:
            self._work()

    def _work(self) -> None:
        """Answers may be large: a piece per turn."""
        self._is_working = False  # also when this fails
        self._is_working = self.sources.work(BLOCKS_PER_TURN, self._loop.time())
        if self._is_working:
            self._loop.call_soon(self._work)
        self._send_queries()

    def _end_replay(self) -> None:
        self.sources.end_replay()
        self._send_queries()

    # ---- time

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        if self._num_connects != self._nats.num_connects:
            self._num_connects = self._nats.num_connects
            self.sources.check_all(self._loop.time())
        self.sources.tick(self._loop.time())
        self._send_queries()
