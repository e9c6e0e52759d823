"""Load reports of workers, for as long as somebody wants to know."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from dynamo.router.event_traffic import Traffic
from dynamo.shared.discovery import Discovery
from dynamo.shared.event_plane import EndpointScope, Envelope
from dynamo.shared.event_plane.channel_watch import ChannelWatch
from dynamo.shared.event_plane.subscriber import EventSubscriber
from dynamo.shared.kv_events import LOAD_TOPIC, LoadReport, decode_load
from dynamo.shared.nats import NatsConnection

log = logging.getLogger("dynamo.router")


class LoadFeed:
    """Made and used inside the running loop. Busy workers report many times a second: subscribe only when it counts."""

    def __init__(
        self,
        discovery: Discovery,
        nats: NatsConnection,
        on_load: Callable[[LoadReport], None],
        is_relevant: Callable[[EndpointScope], bool],
    ) -> None:
        self.num_malformed = 0
        self._on_load = on_load
        self._reports = EventSubscriber(LOAD_TOPIC, self._take, nats=nats)
        self._channels = ChannelWatch(discovery, [self._reports], is_relevant)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self._channels.open()
            await self._channels.follow()
        finally:
            self._reports.close()

    @property
    def traffic(self) -> Traffic:
        return Traffic.of([self._reports], self._channels, self.num_malformed)

    def _take(self, envelope: Envelope) -> None:
        try:
            report = decode_load(envelope.payload)
        except msgspec.MsgspecError as error:
            self.num_malformed += 1
            if self.num_malformed == 1:
                publisher = envelope.publisher_id
                log.warning(
                    "ignoring a load report of publisher %x: %s. Others like it are only counted", publisher, error
                )
            return
        self._on_load(report)
