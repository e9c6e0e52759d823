"""The event plane over NATS: an encoded envelope per message, on one subject per endpoint and topic."""

from __future__ import annotations

from dynamo.shared.event_plane import EndpointScope, Transport
from dynamo.shared.nats import NatsConnection

KIND = "Nats"


def subject_of(prefix: str, topic: str) -> str:
    return f"{prefix}.{topic}"


class NatsOutlet:
    """The publisher's end. Sending never waits; a connection of its own is closed with it."""

    def __init__(self, scope: EndpointScope, topic: str, connection: NatsConnection | None) -> None:
        self._prefix = scope.subject_prefix
        self._subject = subject_of(self._prefix, topic)
        self._connection = connection or NatsConnection()
        self._is_own = connection is None

    async def open(self) -> Transport:
        return Transport(KIND, {"subject_prefix": self._prefix})

    def send(self, _sequence: int, envelope: bytes) -> bool:
        return self._connection.publish(self._subject, envelope)

    async def close(self) -> None:
        if self._is_own:
            await self._connection.close()
