"""The receiving end of the event plane: one subscriber per topic, for all its channels, whatever their transports."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import msgspec

from dynamo.shared.event_plane import Envelope, EventChannel, decode_envelope
from dynamo.shared.event_plane import nats as nats_plane
from dynamo.shared.event_plane import zmq as zmq_plane
from dynamo.shared.event_plane.zmq import ZmqInlet
from dynamo.shared.nats import NatsConnection

log = logging.getLogger("dynamo.events")

MAX_PUBLISHERS = 65_536  # whose numbering we follow; beyond, the longest known is forgotten


class EventSubscriber:
    """Hands every envelope of `topic` to `on_envelope`, in each publisher's order. Made inside the running loop.

    What cannot be read is counted, and logged once. `num_missed` counts the numbers that publishers left out, for we
    were not there yet, did not keep up, or they had to drop them.
    """

    def __init__(
        self, topic: str, on_envelope: Callable[[Envelope], None], *, nats: NatsConnection | None = None
    ) -> None:
        self.topic = topic
        self._on_envelope = on_envelope
        self._zmq = ZmqInlet(topic, self.receive, self._note_malformed)
        self._nats = nats
        self._num_users: Counter[tuple[str, str]] = Counter()  # of an address; NATS publishers share a subject
        self._next_sequence: dict[int, int] = {}
        self.num_received = 0
        self.num_missed = 0
        self.num_malformed = 0

    def connect(self, channel: EventChannel) -> None:
        """Raises OSError, and changes nothing, when there is no such address or transport."""
        route = _route_of(channel)
        if not self._num_users[route]:
            self._open(*route)
        self._num_users[route] += 1

    def disconnect(self, channel: EventChannel) -> None:
        """Of a channel that was connected."""
        route = _route_of(channel)
        self._num_users[route] -= 1
        if not self._num_users[route]:
            del self._num_users[route]
            self._shut(*route)
        self._next_sequence.pop(channel.instance_id, None)

    @property
    def num_routes(self) -> int:
        return len(self._num_users)

    def close(self) -> None:
        for kind, address in self._num_users:
            if kind == nats_plane.KIND:
                self._shut(kind, address)
        self._num_users.clear()
        self._zmq.close()

    def _open(self, kind: str, address: str) -> None:
        if kind == zmq_plane.KIND:
            self._zmq.connect(address)
        elif self._nats is not None:
            self._nats.subscribe(nats_plane.subject_of(address, self.topic), self.receive)
        else:
            raise OSError("this process does not use NATS")

    def _shut(self, kind: str, address: str) -> None:
        if kind == zmq_plane.KIND:
            self._zmq.disconnect(address)
        elif self._nats is not None:
            self._nats.unsubscribe(nats_plane.subject_of(address, self.topic))

    def receive(self, message: bytes) -> None:
        """An encoded envelope, from wherever."""
        try:
            envelope = decode_envelope(message)
        except msgspec.MsgspecError as error:
            self._note_malformed(error)
            return
        self.num_received += 1
        self._follow(envelope)
        self._on_envelope(envelope)

    def _follow(self, envelope: Envelope) -> None:
        expected = self._next_sequence.get(envelope.publisher_id)
        if expected is None and len(self._next_sequence) >= MAX_PUBLISHERS:
            del self._next_sequence[next(iter(self._next_sequence))]
        if expected is not None and envelope.sequence > expected:
            self.num_missed += envelope.sequence - expected
        self._next_sequence[envelope.publisher_id] = envelope.sequence + 1

    def _note_malformed(self, error: Exception) -> None:
        self.num_malformed += 1
        if self.num_malformed == 1:
            log.warning("dropped a message on topic %s: %s. Further ones are only counted", self.topic, error)


def _route_of(channel: EventChannel) -> tuple[str, str]:
    match channel.transport.kind, channel.transport.config:
        case zmq_plane.KIND, {"endpoint": str(endpoint)}:
            return zmq_plane.KIND, endpoint
        case nats_plane.KIND, {"subject_prefix": str(prefix)}:
            return nats_plane.KIND, prefix
        case kind, config:
            raise OSError(f"event transport {kind!r} with {config} is not supported; expected Zmq or Nats")
