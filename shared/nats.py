"""A connection to NATS that a process keeps for as long as it lives, whatever happens to the server.

Nothing here waits for the server: what is published while it is away is kept up to a bound, and subscriptions are
wishes that are fulfilled whenever there is a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import SlowConsumerError

from dynamo.shared.nats_config import NatsConfig, nats_config
from dynamo.shared.turns import TurnBudget

log = logging.getLogger("dynamo.nats")

MAX_OUTBOX_BYTES = 8 << 20  # ours; the client library holds as much again while it reconnects
MAX_UNREAD_MESSAGES = 65_536  # per subscription
MAX_UNREAD_BYTES = 64 << 20
CONNECT_TIMEOUT_S = 2
RECONNECT_PAUSE_S = 0.25
PING_INTERVAL_S = 5
MAX_PINGS_UNANSWERED = 2
FAREWELL_S = 1.0  # how long `close` may wait for the last messages to leave

OnPayload = Callable[[bytes], None]


class NatsConnection:
    """Made and used inside the running loop; connects when it is first needed. `num_connects` grows each time the
    server is there (again): what was missed meanwhile is then to be caught up with."""

    def __init__(self, config: NatsConfig | None = None) -> None:
        self._config = config or nats_config()
        self._options = self._config.connect_options()
        self._wanted: dict[str, OnPayload] = {}
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._outbox_bytes = 0
        self._changed = asyncio.Event()
        self._connected = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._is_outage_told = False
        self.num_connects = 0
        self.num_dropped = 0  # messages to publish for which there was no room
        self.num_unread = 0  # messages to us that came faster than they were handled

    def publish(self, subject: str, payload: bytes) -> bool:
        """Queue it. False, and the message is dropped, when too much is waiting already."""
        if self._outbox_bytes + len(payload) > MAX_OUTBOX_BYTES:
            self.num_dropped += 1
            return False
        self._outbox.append((subject, payload))
        self._outbox_bytes += len(payload)
        self._note_change()
        return True

    def subscribe(self, subject: str, on_payload: OnPayload) -> None:
        """From now on, hand over the payloads sent to `subject`. One subscriber per subject."""
        self._wanted[subject] = on_payload
        self._note_change()

    def unsubscribe(self, subject: str) -> None:
        if self._wanted.pop(subject, None) is not None:
            self._note_change()

    @property
    def is_needed(self) -> bool:
        """Whether anybody has had a use for it."""
        return self._keeper is not None

    @property
    def is_connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    async def client(self) -> Client:
        """The client library's own object, for what goes beyond publish and subscribe; waits until it is connected. It
        is another one after the server has turned us away."""
        self._note_change()
        while self._client is None:
            await self._connected.wait()
        return self._client

    async def close(self) -> None:
        """Send what is waiting, briefly, and disconnect."""
        if self._keeper is None:
            return
        if self._client is not None:
            with contextlib.suppress(TimeoutError, NatsError):
                async with asyncio.timeout(FAREWELL_S):
                    await self._send_outbox(self._client)
                    await self._client.flush()
        self._keeper.cancel()
        await asyncio.wait([self._keeper])
        self._keeper = None

    def _note_change(self) -> None:
        self._changed.set()
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="nats")

    async def _keep(self) -> None:
        """The library reconnects by itself after a lost connection, but not after the server's refusal."""
        while True:
            client = Client()
            try:
                await self._connect(client)
                await self._serve(client)
            except Exception as error:  # top of this task, which must outlive whatever the library meets
                log.warning("NATS at %s: %r; trying again", self._config.server, error)
            finally:
                self._client = None
                self._connected.clear()
                await client.close()
            await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _connect(self, client: Client) -> None:
        """As long as it takes."""
        await client.connect(
            **self._options,
            name="dynamo",
            connect_timeout=CONNECT_TIMEOUT_S,
            reconnect_time_wait=RECONNECT_PAUSE_S,  # type: ignore[arg-type]  # it only sleeps that long
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=MAX_PINGS_UNANSWERED,
            pending_size=MAX_OUTBOX_BYTES,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_connect,
            closed_cb=self._on_closed,
        )
        self._client = client
        await self._on_connect()

    async def _serve(self, client: Client) -> None:
        """Bring what the server knows in line with what is wanted, until it turns us away."""
        subscribed: dict[str, Subscription] = {}
        while not client.is_closed:
            self._changed.clear()
            for subject in subscribed.keys() - self._wanted.keys():
                await subscribed.pop(subject).unsubscribe()
            for subject in self._wanted.keys() - subscribed.keys():
                subscribed[subject] = await self._subscribe(client, subject)
            await self._send_outbox(client)
            await self._changed.wait()

    async def _subscribe(self, client: Client, subject: str) -> Subscription:
        return await client.subscribe(
            subject,
            cb=self._deliverer(subject),
            pending_msgs_limit=MAX_UNREAD_MESSAGES,
            pending_bytes_limit=MAX_UNREAD_BYTES,
        )

    def _deliverer(self, subject: str) -> Callable[[Msg], Awaitable[None]]:
        budget = TurnBudget()

        async def deliver(message: Msg) -> None:
            if (on_payload := self._wanted.get(subject)) is not None:
                on_payload(message.data)
            if not budget.spend(len(message.data)):
                await asyncio.sleep(0)
                budget.renew()

        return deliver

    async def _send_outbox(self, client: Client) -> None:
        while self._outbox:
            subject, payload = self._outbox.popleft()
            self._outbox_bytes -= len(payload)
            try:
                await client.publish(subject, payload)
            except NatsError as error:
                if client.is_closed:
                    raise
                self._note_dropped(subject, payload, error)

    def _note_dropped(self, subject: str, payload: bytes, error: Exception) -> None:
        self.num_dropped += 1
        if self.num_dropped == 1:
            log.warning(
                "dropped a message of %d bytes to %s (%r); further ones are only counted", len(payload), subject, error
            )

    # ---- called by the client library

    async def _on_connect(self) -> None:
        self.num_connects += 1
        self._is_outage_told = False
        self._connected.set()
        log.info("connected to NATS at %s", self._config.server)

    async def _on_disconnect(self) -> None:
        self._tell_outage("the connection is lost")

    async def _on_closed(self) -> None:
        self._changed.set()

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, SlowConsumerError):
            self.num_unread += 1
        elif isinstance(error, NatsError | OSError):
            self._tell_outage(repr(error))
        else:  # a subscriber's own fault
            log.error("handling a message from NATS failed", exc_info=error)

    def _tell_outage(self, reason: str) -> None:
        """Once, however many attempts it takes."""
        if not self._is_outage_told:
            self._is_outage_told = True
            log.warning("NATS at %s: %s; trying until it is back. Check NATS_SERVER", self._config.server, reason)
