"""The event plane: one-way messages from processes to whoever is interested, over ZeroMQ or NATS.

A publisher announces a *channel* in discovery (`v1/event_channels`); a subscriber follows the channels of a topic, over
whichever transport each of them names. Delivery is best effort: a sequence number per publisher shows what is missing.
"""

from __future__ import annotations

import string
from typing import Any

import msgspec
from msgspec import Struct

from dynamo.shared.discovery import EVENT_CHANNELS, EVENT_SOURCES

_PLAIN = frozenset((string.ascii_letters + string.digits + "-_").encode())


class EndpointScope(Struct, frozen=True):
    """What the events are about: one endpoint's workers."""

    namespace: str
    component: str
    name: str

    @property
    def subject_prefix(self) -> str:
        """Of NATS subjects; `.topic` follows."""
        return f"namespace.{self.namespace}.component.{self.component}.endpoint.{self.name}"

    def key(self, topic: str, publisher_id: int) -> str:
        """Of a channel or a source below its bucket."""
        namespace, component, name, topic = map(_segment, (self.namespace, self.component, self.name, topic))
        return f"namespace/{namespace}/component/{component}/endpoint/{name}/topic/{topic}/{publisher_id:x}"


def _segment(text: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in text.encode())


class Scope(Struct, frozen=True, kw_only=True):
    kind: str = "endpoint"
    endpoint: EndpointScope


class Transport(Struct, frozen=True):
    """`Zmq` with `{"endpoint": "tcp://host:port"}`, `Nats` with `{"subject_prefix": ...}`."""

    kind: str
    config: dict[str, Any]


class EventChannel(Struct, tag_field="type", tag="EventChannel", frozen=True):
    """Value below `v1/event_channels`. `instance_id` is the publisher's id."""

    scope: Scope
    topic: str
    instance_id: int
    transport: Transport


class Envelope(Struct, gc=False):
    """One message. `sequence` counts from 0 per publisher; `published_at` in Unix milliseconds."""

    publisher_id: int
    sequence: int
    published_at: int
    topic: str
    payload: bytes


encode_envelope = msgspec.msgpack.Encoder().encode
decode_envelope = msgspec.msgpack.Decoder(Envelope).decode

__all__ = [
    "EVENT_CHANNELS",
    "EVENT_SOURCES",
    "EndpointScope",
    "Envelope",
    "EventChannel",
    "Scope",
    "Transport",
    "decode_envelope",
    "encode_envelope",
]
