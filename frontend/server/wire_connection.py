"""The half of a connection that HTTP/1.1 and HTTP/2 share: its transport, and how the two stop each other."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

from dynamo.frontend.server.connection import Connection, StallWatch, peer_name, reset_transport
from dynamo.frontend.server.dispatcher import Dispatcher

NEVER = math.inf  # a deadline that does not come


class WireConnection(asyncio.Protocol, ABC):
    """A `Connection`; `on_lost` is told of its end."""

    def __init__(self, dispatcher: Dispatcher, scheme: str, on_lost: Callable[[Connection], None]) -> None:
        self.dispatcher = dispatcher
        self.limits = dispatcher.limits
        self.scheme = scheme
        self.client = ""
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._is_write_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(self.limits.high_water, self.limits.low_water)
        self._stall = StallWatch(self._transport, self.limits.stall_timeout_s)
        self.client = peer_name(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._forget_requests()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._stall.begin(self._loop.time())

    def resume_writing(self) -> None:
        self._is_write_paused = False

    def reset(self) -> None:
        """Close so that no client takes what it has for a whole answer, whatever its framing."""
        self._forget_requests()
        reset_transport(self._transport)

    @abstractmethod
    def _forget_requests(self) -> None:
        """Their client is gone."""

    @abstractmethod
    def sweep(self, now: float) -> None: ...

    @abstractmethod
    def shut_down(self) -> None: ...
