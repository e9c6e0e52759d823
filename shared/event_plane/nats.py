"""The event plane over NATS: an encoded envelope per message, on one subject per endpoint and topic."""

from __future__ import annotations

import re

from dynamo.shared.event_plane import EndpointScope, Transport
from dynamo.shared.nats import NatsConnection

KIND = "Nats"


_TOKEN = re.compile(r"[^\s.*>]+")


def subject_of(prefix: str, topic: str) -> str:
    """Raises OSError when names make no subject, or one that is a pattern."""
    subject = f"{prefix}.{topic}"
    if not all(_TOKEN.fullmatch(token) for token in subject.split(".")):
        raise OSError(f"{subject!r} is no NATS subject; choose names without spaces, '*', '>' and empty parts")
    return subject


class NatsOutlet:
    """The publisher's end. Sending never waits; a connection of its own is closed with it."""

    def __init__(self, scope: EndpointScope, topic: str, connection: NatsConnection | None) -> None:
        self._prefix = scope.subject_prefix
        self._topic = topic
        self._subject = ""
        self._connection = connection or NatsConnection()
        self._is_own = connection is None

    async def open(self) -> Transport:
        """Raises OSError."""
        self._subject = subject_of(self._prefix, self._topic)
        return Transport(KIND, {"subject_prefix": self._prefix})

    def send(self, _sequence: int, envelope: bytes) -> bool:
        return self._connection.publish(self._subject, envelope)

    async def close(self) -> None:
        if self._is_own:
            await self._connection.close()
