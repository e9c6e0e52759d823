"""The publishing end of the event plane."""

from __future__ import annotations

import logging
import os
import secrets
import time
from typing import Protocol

import msgspec

from dynamo.shared.event_plane import (
    EVENT_CHANNELS,
    EndpointScope,
    Envelope,
    EventChannel,
    Scope,
    Transport,
    encode_envelope,
)
from dynamo.shared.event_plane.nats import NatsOutlet
from dynamo.shared.event_plane.zmq import ZmqOutlet
from dynamo.shared.nats import NatsConnection
from dynamo.shared.network import routable_host

log = logging.getLogger("dynamo.events")

ID_BITS = 53  # what a JSON number carries exactly everywhere
TRANSPORTS = ("zmq", "nats")


class Registrar(Protocol):
    """A `Discovery`, or a `DistributedRuntime` that withdraws what it published when it drains."""

    @property
    def is_local(self) -> bool: ...

    async def publish(self, bucket: str, key: str, value: bytes) -> None: ...

    async def withdraw(self, bucket: str, key: str) -> None: ...


class Outlet(Protocol):
    """A transport's publishing end."""

    async def open(self) -> Transport: ...

    def send(self, sequence: int, envelope: bytes) -> bool:
        """False when it was dropped."""

    async def close(self) -> None: ...


class EventPublisher:
    """Publishes on one topic of one endpoint, under an identity of its own. Made inside the running loop.

    `host` is where ZeroMQ binds and what is announced; unset means DYN_EVENT_PLANE_HOST, else loopback where only this
    host can see the announcement, else the address this host would use to reach others. `nats` shares a connection.
    """

    def __init__(
        self,
        registrar: Registrar,
        scope: EndpointScope,
        topic: str,
        transport: str = "zmq",
        *,
        host: str | None = None,
        nats: NatsConnection | None = None,
    ) -> None:
        self.publisher_id = fresh_publisher_id()
        self.num_published = 0
        self.num_dropped = 0  # of those, messages that our own end had no room for
        self._registrar = registrar
        self._scope = scope
        self._topic = topic
        self._outlet: Outlet
        match transport:
            case "zmq":
                self._outlet = ZmqOutlet(host or event_plane_host(registrar), topic, self.publisher_id)
            case "nats":
                self._outlet = NatsOutlet(scope, topic, nats)
            case _:
                raise ValueError(f"event plane {transport!r} is unknown; expected one of {', '.join(TRANSPORTS)}")

    @property
    def key(self) -> str:
        """Of the announcement; an event source that publishes here has the same."""
        return self._scope.key(self._topic, self.publisher_id)

    async def open(self) -> None:
        """Bind and announce. Raises OSError when the host cannot be bound or the scope is no NATS subject,
        DiscoveryError."""
        transport = await self._outlet.open()
        channel = EventChannel(Scope(endpoint=self._scope), self._topic, self.publisher_id, transport)
        await self._registrar.publish(EVENT_CHANNELS, self.key, msgspec.json.encode(channel))

    def publish(self, payload: bytes) -> None:
        """Send to whoever listens; never waits. Messages are numbered, so what is lost shows as a gap."""
        sequence = self.num_published
        self.num_published += 1
        envelope = Envelope(self.publisher_id, sequence, time.time_ns() // 1_000_000, self._topic, payload)
        if not self._outlet.send(sequence, encode_envelope(envelope)):
            self.num_dropped += 1
            if self.num_dropped == 1:
                log.warning("dropped an event of topic %s: the way out is full. Others are only counted", self._topic)

    async def close(self) -> None:
        try:
            await self._registrar.withdraw(EVENT_CHANNELS, self.key)
        finally:
            await self._outlet.close()


def fresh_publisher_id() -> int:
    return 1 + secrets.randbelow(2**ID_BITS - 1)


def event_plane_host(registrar: Registrar) -> str:
    return os.environ.get("DYN_EVENT_PLANE_HOST") or ("127.0.0.1" if registrar.is_local else routable_host())
