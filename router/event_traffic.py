"""What came over the event plane, and what should have: the same numbers for every feed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from dynamo.shared.event_plane.channel_watch import ChannelWatch
from dynamo.shared.event_plane.subscriber import EventSubscriber


class Traffic(Struct):
    """`messages` and `refusals` (of channels) are counted since the start, by what became of them."""

    num_channels: int = 0
    messages: Counter[str] = msgspec.field(default_factory=Counter)
    refusals: Counter[str] = msgspec.field(default_factory=Counter)

    @classmethod
    def of(cls, subscribers: Iterable[EventSubscriber], watch: ChannelWatch, num_malformed: int = 0) -> Traffic:
        """`num_malformed` payloads could not be read by those to whom they were handed over."""
        traffic = cls(
            watch.num_channels,
            Counter(malformed=num_malformed),
            Counter(unusable=watch.num_unusable, left_out=watch.num_left_out),
        )
        for each in subscribers:
            traffic.messages.update(received=each.num_received, missed=each.num_missed, malformed=each.num_malformed)
        return traffic

    def add(self, other: Traffic) -> None:
        self.num_channels += other.num_channels
        self.messages.update(other.messages)
        self.refusals.update(other.refusals)
