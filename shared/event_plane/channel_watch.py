"""Keeps subscribers connected to the channels that discovery lists."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

import msgspec

from dynamo.shared.discovery import EVENT_CHANNELS, Change, Discovery, Put
from dynamo.shared.event_plane import EndpointScope, EventChannel

log = logging.getLogger("dynamo.events")

MAX_CHANNELS = 65_536

_decode_channel = msgspec.json.Decoder(EventChannel).decode


class Subscriber(Protocol):
    """Who receives the events of one topic."""

    @property
    def topic(self) -> str: ...

    def connect(self, channel: EventChannel) -> None:
        """Raises OSError, and changes nothing, when that cannot be."""

    def disconnect(self, channel: EventChannel) -> None: ...


class ChannelWatch:
    """One watch for all topics of a process. `is_relevant` says of which endpoints the events are wanted."""

    def __init__(
        self,
        discovery: Discovery,
        subscribers: Iterable[Subscriber],
        is_relevant: Callable[[EndpointScope], bool] = lambda _scope: True,
    ) -> None:
        self._subscribers = {subscriber.topic: subscriber for subscriber in subscribers}
        self._is_relevant = is_relevant
        self._watch: AsyncIterator[list[Change]] = aiter(discovery.watch(EVENT_CHANNELS))
        self._channels: dict[str, EventChannel] = {}
        self.num_unusable = 0  # entries that cannot be read or connected to
        self.num_left_out = 0  # entries beyond MAX_CHANNELS

    @property
    def num_channels(self) -> int:
        return len(self._channels)

    def connected(self) -> list[EventChannel]:
        return list(self._channels.values())

    async def open(self) -> None:
        """Connect to the channels that are there now."""
        self._apply(await anext(self._watch))

    async def follow(self) -> None:
        """Until the watch ends. Call `open` first."""
        async for changes in self._watch:
            self._apply(changes)

    def _apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._drop(change.key)
            if isinstance(change, Put):
                self._add(change)

    def _drop(self, key: str) -> None:
        if (channel := self._channels.pop(key, None)) is not None:
            self._subscribers[channel.topic].disconnect(channel)

    def _add(self, put: Put) -> None:
        try:
            channel = _decode_channel(put.value)
            if channel.topic not in self._subscribers or not self._is_relevant(channel.scope.endpoint):
                return
            if len(self._channels) >= MAX_CHANNELS:
                self.num_left_out += 1
                return
            self._subscribers[channel.topic].connect(channel)
        except (msgspec.MsgspecError, RecursionError, OSError) as error:
            self._note_unusable(put.key, error)
            return
        self._channels[put.key] = channel

    def _note_unusable(self, key: str, error: Exception) -> None:
        self.num_unusable += 1
        log.warning("ignoring event channel %s: %s", key, error)
