"""KV events that NATS keeps: a JetStream stream over the subjects that workers publish to anyway.

Each replica has a durable consumer per stream and acknowledges what it has handed on. The consumer is set anew whenever
its deliveries may not continue where we are: at the start, where a snapshot's position decides, after a reconnect, and
when a delivery is missing. What the stream has kept no longer shows as a gap, and workers are asked as usual.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from dynamo.shared.event_plane import EventChannel
from dynamo.shared.event_plane.nats import KIND as NATS
from dynamo.shared.event_plane.nats import subject_of
from dynamo.shared.event_plane.subscriber import EventSubscriber
from dynamo.shared.nats import MAX_UNREAD_BYTES, NatsConnection
from dynamo.shared.turns import TurnBudget

log = logging.getLogger("dynamo.router")

BATCH = 512  # messages asked for at a time
PULL_S = 5.0  # how long the server waits for a batch to fill
GRACE_S = 2.0  # how much later it may say so
LOOK_S = 0.25  # between looks whether the connection is still the same
PAUSE_S = 1.0  # after a failure
ACK_EVERY = 64
CONSUMER_EXPIRY_S = 86_400.0  # of a replica that does not come back
END_OF_BATCH = ("404", "408")  # nothing (more) in time
REPLAY_LIMIT_S = 30.0  # then workers are asked rather than waited for


class DurableRules(Struct, frozen=True, kw_only=True):
    """`replica` names our consumers, and is nobody else's; `positions` are those of a snapshot, by stream. Bounds are
    per stream that we make."""

    replica: str
    positions: dict[str, int] = {}
    max_bytes: int = 256 << 20
    max_age_s: float = 86_400.0


class DurableSubscriber:
    """Stands in for `events` in a `ChannelWatch`: channels over NATS are read from their component's stream, all others
    as ever. `on_replayed` is called once, when what the streams had at the start has been handed on."""

    def __init__(
        self, events: EventSubscriber, nats: NatsConnection, rules: DurableRules, on_replayed: Callable[[], None]
    ) -> None:
        self.topic = events.topic
        self.positions = dict(rules.positions)  # stream -> sequence number of the last message handed on
        self._events = events
        self._nats = nats
        self._rules = rules
        self._on_replayed: Callable[[], None] | None = on_replayed
        self._readers: dict[str, StreamReader] = {}  # by subject
        self._limit: asyncio.TimerHandle | None = None

    def connect(self, channel: EventChannel) -> None:
        if channel.transport.kind != NATS:
            self._events.connect(channel)
            return
        subject = self._subject_of(channel)
        if (reader := self._readers.get(subject)) is None:
            reader = self._readers[subject] = StreamReader(
                subject, self._events.receive, self._nats, self._rules, self.positions, self._note_replayed
            )
        reader.num_channels += 1

    def disconnect(self, channel: EventChannel) -> None:
        if channel.transport.kind != NATS:
            self._events.disconnect(channel)
            return
        reader = self._readers[self._subject_of(channel)]
        reader.num_channels -= 1
        if not reader.num_channels:
            del self._readers[reader.subject]
            reader.stop()
            self._note_replayed()

    @property
    def num_pending(self) -> int:
        """Messages that the streams have for us and we have not seen."""
        return sum(reader.num_pending for reader in self._readers.values())

    @property
    def is_reading(self) -> bool:
        """Whether everything from now on is kept for us and comes."""
        return bool(self._readers) and all(reader.is_reading for reader in self._readers.values())

    def begin(self) -> None:
        """The channels that are there now are connected: theirs is the history to wait for."""
        self._limit = asyncio.get_running_loop().call_later(REPLAY_LIMIT_S, self._end_replay)
        self._note_replayed()

    async def close(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        for reader in self._readers.values():
            reader.stop()
        await asyncio.gather(*(reader.task for reader in self._readers.values()), return_exceptions=True)

    def _subject_of(self, channel: EventChannel) -> str:
        """Of all endpoints of a component. Raises OSError when names make no subject."""
        scope = channel.scope.endpoint
        component = subject_of(f"namespace.{scope.namespace}", f"component.{scope.component}")
        return f"{component}.endpoint.*.{self.topic}"

    def _note_replayed(self) -> None:
        if self._limit is not None and all(reader.is_replayed for reader in self._readers.values()):
            self._end_replay()

    def _end_replay(self) -> None:
        on_replayed, self._on_replayed = self._on_replayed, None
        if on_replayed is not None:
            on_replayed()


class ReaderStopped(Exception):
    """The consumer's deliveries do not continue where we are."""


class StreamReader:
    """Reads one stream from where we are, for as long as the process wants it."""

    def __init__(
        self,
        subject: str,
        on_message: Callable[[bytes], None],
        nats: NatsConnection,
        rules: DurableRules,
        positions: dict[str, int],
        on_replayed: Callable[[], None],
    ) -> None:
        self.subject = subject
        self.num_channels = 0
        self.is_replayed = False
        self.is_reading = False
        self.num_pending = 0  # messages that the stream had for us when it sent the last one
        self._on_message = on_message
        self._nats = nats
        self._rules = rules
        self._positions = positions
        self._on_replayed = on_replayed
        self._stream = ""
        self._num_delivered = 0  # by the consumer as it is set now
        self._num_expected = 0  # still to come of the batch
        self._fault: str | None = None  # why deliveries do not continue where we are
        self._has_answer = asyncio.Event()  # the batch is complete, or ended by the server
        self._is_failure_told = False
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"jetstream {subject}")

    def stop(self) -> None:
        self.task.cancel()

    async def _run(self) -> None:
        while True:
            client = await self._nats.client()
            try:
                await self._read(client)
            except (NatsError, OSError, ReaderStopped) as error:  # TimeoutError is an OSError
                self._tell_failure(error)
                self._note_replayed()  # nothing to wait for: workers can be asked
                await asyncio.sleep(PAUSE_S)

    def _tell_failure(self, error: Exception) -> None:
        """Once, however many attempts it takes."""
        if not self._is_failure_told:
            self._is_failure_told = True
            log.warning(
                "cannot read KV events of %s from JetStream, trying on: %r. Check that the NATS server runs with "
                "--jetstream, and that no other replica is called %r",
                self.subject,
                error,
                self._rules.replica,
            )

    async def _read(self, client: Client) -> None:
        """Until the connection is another one, or a delivery is missing."""
        num_connects = self._nats.num_connects
        jetstream = client.jetstream()
        self._stream = await self._find_stream(jetstream)
        consumer = await self._set_consumer(jetstream)
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=self._deliverer(client), pending_bytes_limit=MAX_UNREAD_BYTES)
        self.is_reading = True
        try:
            while num_connects == self._nats.num_connects:
                await self._pull(client, consumer, inbox, num_connects)
                if self._fault is not None:
                    raise ReaderStopped(self._fault)
        finally:
            self.is_reading = False
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()

    async def _find_stream(self, jetstream: JetStreamContext) -> str:
        """Whoever has made a stream over the subject, also an operator, has decided what it keeps."""
        try:
            return await jetstream.find_stream_name_by_subject(self.subject)
        except NotFoundError:
            config = StreamConfig(
                name=re.sub(r"[^A-Za-z0-9_-]", "_", f"dynamo-{self.subject}"),
                subjects=[self.subject],
                storage=StorageType.FILE,
                max_bytes=self._rules.max_bytes,
                max_age=self._rules.max_age_s,
            )
            info = await jetstream.add_stream(config)
            assert info.config.name is not None
            return info.config.name

    async def _set_consumer(self, jetstream: JetStreamContext) -> str:
        """Begin after our position, or with the first message there is."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self._rules.replica)
        state = (await jetstream.stream_info(self._stream)).state
        position = self._positions.get(self._stream, 0)
        if position > state.last_seq:  # this stream is another one than it was
            position = self._positions[self._stream] = 0
        with contextlib.suppress(NotFoundError):
            await jetstream.delete_consumer(self._stream, name)
        info = await jetstream.add_consumer(
            self._stream,
            ConsumerConfig(
                name=name,
                durable_name=name,
                filter_subject=self.subject,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=position + 1,
                ack_policy=AckPolicy.ALL,
                max_ack_pending=-1,
                inactive_threshold=CONSUMER_EXPIRY_S,
            ),
        )
        self._num_delivered = 0
        self._fault = None
        self.num_pending = info.num_pending or 0
        if not self.num_pending:
            self._note_replayed()
        return name

    async def _pull(self, client: Client, consumer: str, inbox: str, num_connects: int) -> None:
        """One batch, or what comes of it in time."""
        self._has_answer.clear()
        self._num_expected = BATCH
        request = {"batch": BATCH, "expires": int(PULL_S * 1e9)}
        await client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{consumer}", msgspec.json.encode(request), reply=inbox
        )
        for _ in range(int((PULL_S + GRACE_S) / LOOK_S)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._has_answer.wait()
                    return
            if num_connects != self._nats.num_connects:
                return
        raise ReaderStopped("the server does not answer")

    def _deliverer(self, client: Client) -> Callable[[Msg], Awaitable[None]]:
        budget = TurnBudget()

        async def deliver(message: Msg) -> None:
            if message.headers is not None and "Status" in message.headers:
                self._end_batch(message.headers["Status"])
                return
            if self._is_next(message):
                self._on_message(message.data)
                await self._note_handed_on(client, message)
            if not budget.spend(len(message.data)):
                await asyncio.sleep(0)
                budget.renew()

        return deliver

    def _end_batch(self, status: str) -> None:
        if status not in END_OF_BATCH:
            self._fault = f"the server ended a batch with status {status}"
        self._has_answer.set()

    def _is_next(self, message: Msg) -> bool:
        self._num_delivered += 1
        self._num_expected -= 1
        if message.metadata.sequence.consumer != self._num_delivered:
            self._fault = "a delivery is missing"
        if self._fault is not None or not self._num_expected:
            self._has_answer.set()
        return self._fault is None

    async def _note_handed_on(self, client: Client, message: Msg) -> None:
        sequence, self.num_pending = message.metadata.sequence, message.metadata.num_pending
        self._positions[self._stream] = max(sequence.stream, self._positions.get(self._stream, 0))
        self._is_failure_told = False
        if not self.num_pending:
            self._note_replayed()
        if not self.num_pending or sequence.consumer % ACK_EVERY == 0:
            await client.publish(message.reply)

    def _note_replayed(self) -> None:
        if not self.is_replayed:
            self.is_replayed = True
            self._on_replayed()
